"""Symbolic links in folders that are published: what they lead to elsewhere on this machine is not meant."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .errors import HubError


def check_links(paths: Iterable[Path], root: Path) -> None:
    """Refuse links that lead out of a folder; those that stay inside it are followed.

    In a snapshot of the Hub's cache all files are links into the blobs beside the snapshots, which are allowed.

    Args:
        paths: files and folders to be published, with everything below them; some may not exist.
        root: the folder.

    Raises:
        HubError: naming the link and what it leads to.
    """
    root = root.resolve()
    allowed = [root]
    if root.parent.name == "snapshots" and root.parents[1].name.startswith(("models--", "datasets--")):
        allowed.append(root.parents[1] / "blobs")
    seen: set[Path] = set()
    waiting = list(paths)
    while waiting:
        path = waiting.pop()
        try:
            real = path.resolve()
        except (OSError, RuntimeError) as error:  # links that lead to each other
            raise HubError(f"{str(path)!r} leads nowhere, so it cannot be published: {error}.") from error
        if not any(real.is_relative_to(place) for place in allowed):
            raise HubError(
                f"{str(path)!r} is a link to {str(real)!r}, outside of {str(root)!r}: such things are not published."
                " Put a copy in its place, or remove it."
            )
        if real not in seen and real.is_dir():
            waiting += real.iterdir()
        seen.add(real)
