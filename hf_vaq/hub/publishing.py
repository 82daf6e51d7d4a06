"""One commit on the Hub from a folder, with huggingface_hub's own tools."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    DatasetCard,
    HfApi,
    ModelCard,
    get_token,
)
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..config import QUANT_METHOD
from ..soft_labels.metadata import METADATA
from . import layout
from .errors import LOG_IN, HubError, explained, patiently
from .links import check_links

MODEL, DATASET = "model", "dataset"
_NO_CONTENT = (".gitattributes", "README.md", "LICENSE", "LICENSE.md", ".gitignore")
"""Files that a repository may have which nothing was published to yet."""
_LABEL_FILES = "data/*.arrow"


@dataclass(frozen=True)
class Target:
    """Where something is published.

    Attributes:
        repo_id: "user/name", or "name" for the user of the token.
        repo_type: "model" or "dataset".
        private: of a repository that is made anew; None leaves it to the Hub.
        revision: branch, made if need be, or pull request ("refs/pr/1"); None is the main branch.
        create_pr: propose the commit as a pull request.
        commit_message, commit_description: of the commit.
        token: None takes the one of this machine.
        overwrite: publish where something else lies, too.
    """

    repo_id: str
    repo_type: str = MODEL
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False
    commit_message: str | None = None
    commit_description: str | None = None
    token: str | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class CheckedTarget:
    """A target that was looked at.

    Attributes:
        target: with the whole id of the repository.
        exists: whether the repository does.
        head: commit that the next one follows; None where there is none yet.
        branch_exists: whether `target.revision` does.
        files: in that commit.
        is_ours: whether they are a model, or labels, that this package published.
    """

    target: Target
    exists: bool
    head: str | None
    branch_exists: bool
    files: frozenset[str]
    is_ours: bool


def check_target(target: Target) -> CheckedTarget:
    """Ask the Hub, before any work, whether something of this kind can be published there.

    Raises:
        HubError: no token, one that may only read, a repository with something else in it, or no such revision.
    """
    with explained(target.repo_id, "looking for"):
        validate_repo_id(target.repo_id)
        if (target.token or get_token()) is None:
            raise HubError(f"there is no token for the Hub: {LOG_IN}.")
        api = HfApi(token=target.token)
        user = patiently(api.whoami)
        role = user.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise HubError(f"the token of {user['name']} may only read; accepted: one with write access ({LOG_IN}).")
        if target.create_pr and target.revision is not None and target.revision.startswith("refs/pr/"):
            raise HubError(
                f"--create_pr makes a new pull request, and --revision {target.revision} adds to one: give one of"
                " them."
            )
        if "/" not in target.repo_id:
            target = replace(target, repo_id=f"{user['name']}/{target.repo_id}")
        return patiently(lambda: _look(api, target))


def _look(api: HfApi, target: Target) -> CheckedTarget:
    try:
        info = api.repo_info(target.repo_id, repo_type=target.repo_type)
    except RepositoryNotFoundError:
        if target.create_pr:
            raise HubError(f"--create_pr: there is no repository {target.repo_id} to propose anything to.") from None
        if target.revision is not None and target.revision.startswith("refs/pr/"):
            raise HubError(f"--revision is {target.revision}, but there is no repository {target.repo_id}.") from None
        other = DATASET if target.repo_type == MODEL else MODEL
        if not target.overwrite and api.repo_exists(target.repo_id, repo_type=other):
            raise HubError(
                f"{target.repo_id} is the name of a {other} on the Hub, and this is a {target.repo_type}; choose"
                " another name, or use this one for both with --overwrite."
            ) from None
        return CheckedTarget(target, exists=False, head=None, branch_exists=False, files=frozenset(), is_ours=False)
    branch_exists = True
    if target.revision is not None:
        try:
            info = api.repo_info(target.repo_id, repo_type=target.repo_type, revision=target.revision)
        except RevisionNotFoundError:
            if target.create_pr or target.revision.startswith("refs/"):
                raise HubError(
                    f"--revision is {target.revision!r}, which {target.repo_id} does not have; accepted with"
                    " --create_pr: a branch that exists; without: also the name of a new branch."
                ) from None
            branch_exists = False  # it will start from the main branch, whose files `info` has
    files = frozenset(file.rfilename for file in info.siblings or [])
    is_ours = _is_published_by_us(api, target, files, target.revision if branch_exists else None)
    foreign = files - set(_NO_CONTENT)
    if foreign and not is_ours and not target.overwrite:
        wanted = "a store of soft labels" if target.repo_type == DATASET else "a model of hf_vaq"
        raise HubError(
            f"{target.repo_id} exists and holds something else than {wanted} (such as {min(foreign)!r}); choose"
            " another name, another --revision, or publish there all the same with --overwrite."
        )
    return CheckedTarget(target, True, head=info.sha, branch_exists=branch_exists, files=files, is_ours=is_ours)


def _is_published_by_us(api: HfApi, target: Target, files: frozenset[str], revision: str | None) -> bool:
    if target.repo_type == DATASET:
        return METADATA in files
    if layout.CONFIG not in files:
        return False
    path = api.hf_hub_download(target.repo_id, layout.CONFIG, revision=revision)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False  # whatever it is, we did not write it
    quantization = content.get("quantization_config") if isinstance(content, dict) else None
    return isinstance(quantization, dict) and quantization.get("quant_method") == QUANT_METHOD


def publish_folder(
    folder: Path,
    checked: CheckedTarget,
    *,
    extra: Mapping[str, Path] | None = None,
    files: Sequence[str] | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> CommitInfo:
    """Upload a folder in one commit; before that commit, readers of the repository see nothing of it.

    Large files go first and by their content: what an interrupted upload has brought is not sent again. Files of an
    earlier model that this one does not replace are removed in the same commit.

    Args:
        folder: every file in it is published.
        checked: what `check_target` returned.
        extra: folders to publish as well, by their path in the repository.
        files: only these files of `folder`.
        report: receives a line at every step.

    Raises:
        HubError: the card or the commit was refused, the connection was cut, or a link leads out of a folder.
    """
    target = checked.target
    check_links([folder] if files is None else [folder / name for name in files], folder)
    paths = {name: folder / name for name in files} if files is not None else _files(folder)
    for prefix, place in (extra or {}).items():
        check_links([place], place)
        paths |= {f"{prefix}/{name}": path for name, path in _files(place).items()}
    additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in paths.items()]
    gone = checked.files - paths.keys() if checked.is_ours else ()
    stale = [name for name in gone if _is_ours(name, target.repo_type)]
    api = HfApi(token=target.token)
    with explained(target.repo_id, "publishing to"):
        patiently(lambda: _validate_card(folder, target))
        place = {"repo_id": target.repo_id, "repo_type": target.repo_type}
        if not checked.exists:
            patiently(lambda: api.create_repo(**place, private=target.private, exist_ok=True))
        if target.revision is not None and not checked.branch_exists:
            branch = target.revision
            patiently(lambda: api.create_branch(**place, branch=branch, exist_ok=True))
        size = sum(addition.upload_info.size for addition in additions)
        report(f"uploading {len(additions)} files, {size / 1e6:,.2f} MB, to {target.repo_id}")
        place |= {"revision": target.revision, "create_pr": target.create_pr}
        patiently(lambda: api.preupload_lfs_files(**place, additions=additions, free_memory=False))
        return patiently(
            lambda: api.create_commit(
                **place,
                operations=[*additions, *(CommitOperationDelete(path_in_repo=name) for name in sorted(stale))],
                commit_message=target.commit_message or _message(target.repo_type),
                commit_description=target.commit_description,
                # Somebody else's commit since `check_target` is not overwritten.
                parent_commit=checked.head,
            )
        )


def _validate_card(folder: Path, target: Target) -> None:
    """Have the Hub check the card's metadata before anything is made or sent there."""
    card_class = DatasetCard if target.repo_type == DATASET else ModelCard
    card = folder / layout.CARD
    if not card.is_file():
        return
    try:
        card_class.load(card).validate()
    except ValueError as error:
        raise HubError(f"the card ({layout.CARD}) does not validate: {' '.join(str(error).split())}") from error


def _files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _is_ours(name: str, repo_type: str) -> bool:
    folder, _, rest = name.partition("/")
    if repo_type == DATASET:
        return fnmatch.fnmatchcase(name, _LABEL_FILES)
    if rest:
        return folder in layout.OWN_FOLDERS
    return name in layout.OWN_NAMES or any(fnmatch.fnmatchcase(name, pattern) for pattern in layout.OWN_WEIGHTS)


def _message(repo_type: str) -> str:
    return "Upload soft labels" if repo_type == DATASET else "Upload packed model"
