"""What is written for others says nothing of keys and places of this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import unquote, urlsplit

_SECRET = r"secret|passw|passphrase|credential|authorization|cookie|(?:api|access|private|account)[_-]?key"
_PRIVATE_FIELD = re.compile(rf"{_SECRET}|token$|^key$|connection[_-]?string", re.IGNORECASE)
_OF_ONE_MACHINE = ("output_dir", "logging_dir", "run_name", "hub_model_id", "command")
_USER_INFO = re.compile(r"(?<=://)(?:[^\s/]*@|[^\s/@]+:[^\s@]*@)")
_SIGNED_QUERY = re.compile(rf"(?<=\S)[?#]\S*(?:{_SECRET}|token|signature|\bsig=)\S*", re.IGNORECASE)
_ASSIGNED = re.compile(rf"(?i)\b([\w-]*(?:{_SECRET}|token)[\w-]*\s*[=:]\s*)[^\s,;&]+")
_KEY = re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[\w-]{20,})")
REMOVED = "(removed)"


def public(value: Any) -> Any:
    """The same text, or JSON or YAML content, without what concerns one machine, or is nobody else's business.

    Fields that hold keys or tokens by their name, and output folders, are dropped. A path that is absolute, begins at
    the working folder or the home, or exists here, keeps its last part, as a file:// address does. Other addresses
    lose user, password and the query that signs them; what looks like a token of a known service is removed.
    """
    if isinstance(value, Mapping):
        return {key: public(entry) for key, entry in value.items() if not _is_private(str(key))}
    if isinstance(value, (list, tuple)):
        return [public(entry) for entry in value]
    if isinstance(value, Path):
        return public(str(value))
    return _public_text(value) if isinstance(value, str) else value


def _public_text(text: str) -> str:
    if re.match(r"file:", text, re.IGNORECASE):
        text = unquote(urlsplit(text).path)
    if PureWindowsPath(text).is_absolute():
        return PureWindowsPath(text).name
    if _is_path(text):
        return Path(text).name
    text = _ASSIGNED.sub(rf"\1{REMOVED}", text)
    return _KEY.sub(REMOVED, _SIGNED_QUERY.sub("", _USER_INFO.sub("", text)))


def _is_path(text: str) -> bool:
    if "/" not in text or "://" in text or "\n" in text:
        return False
    path = Path(text)
    return path.is_absolute() or text.startswith(("./", "../", "~")) or os.path.exists(path)


def _is_private(key: str) -> bool:
    return bool(_PRIVATE_FIELD.search(key)) or key in _OF_ONE_MACHINE
