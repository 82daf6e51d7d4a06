"""`hf-vaq push MODEL REPO_ID`: publish a packed model, or a store of soft labels, on the Hub."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "Publish a packed model with its card, or a store of soft labels, on the Hub, in one commit."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="folder of a model (one in training form is packed first), of a run of 'hf-vaq train', or of a store of"
        " soft labels",
    )
    parser.add_argument(
        "repo_id", metavar="REPO_ID", help="user/name or organization/name; a name alone is one of the token's user"
    )
    parser.add_argument(
        "--repo_type",
        "--repo-type",
        choices=("model", "dataset"),
        help="default: dataset for a store of soft labels, else model",
    )
    parser.add_argument(
        "--private",
        action="store_true",
        default=None,
        help="make a new repository private (an old one stays as it is)",
    )
    parser.add_argument("--revision", help="branch, made if need be, or pull request such as refs/pr/1")
    parser.add_argument(
        "--create_pr", "--create-pr", action="store_true", help="propose the commit as a new pull request"
    )
    parser.add_argument("--commit_message", "--commit-message", help="first line of the commit")
    parser.add_argument("--token", help="default: HF_TOKEN, or that of 'hf auth login'")
    parser.add_argument(
        "--overwrite", action="store_true", help="publish although the repository holds something else"
    )
    card = parser.add_argument_group("card of a model")
    card.add_argument("--license", help="identifier as the Hub has it, such as apache-2.0")
    card.add_argument(
        "--base_model", "--base-model", help="Hub id of the full-precision start (default: the recipe's)"
    )
    card.add_argument(
        "--dataset", action="append", help="Hub id of the training data (default: the recipe's); repeatable"
    )
    card.add_argument("--tag", action="append", default=[], help="further tag; repeatable")
    card.add_argument(
        "--evaluation",
        action="append",
        default=[],
        metavar="FILE",
        help="result that 'hf-vaq evaluate --output FILE' wrote; repeatable",
    )
    card.add_argument("--benchmark", metavar="FILE", help="result that 'hf-vaq benchmark --output FILE' wrote")
    card.add_argument(
        "--output", type=Path, metavar="FOLDER", help="write what would be published there, and publish nothing"
    )


def run(arguments: argparse.Namespace) -> int:
    """Check, gather, publish, and print what was published."""
    from ..soft_labels.metadata import METADATA

    is_store = (Path(arguments.model) / METADATA).is_file()
    wanted = "dataset" if is_store else "model"
    if arguments.repo_type not in (None, wanted):
        raise ValueError(
            f"--repo_type is {arguments.repo_type}, but {arguments.model!r} holds "
            f"{'a store of soft labels' if is_store else 'no store of soft labels'}; accepted: {wanted}."
        )
    return _push_labels(arguments) if is_store else _push_model(arguments)


def _push_model(arguments: argparse.Namespace) -> int:
    import tempfile

    from ..hub import CardOptions, check_target, publish_folder, stage_model
    from ..job.output import new_folder

    def stage(folder: Path, repo_id: str) -> None:
        options = CardOptions(
            name=repo_id.rpartition("/")[2],
            where=repo_id,
            license=arguments.license,
            base_model=arguments.base_model,
            datasets=arguments.dataset,
            tags=arguments.tag,
        )
        stage_model(
            arguments.model,
            folder,
            options,
            evaluations=arguments.evaluation,
            benchmark=arguments.benchmark,
            report=_report,
        )

    if arguments.output is not None:
        with new_folder(arguments.output) as partial:
            stage(partial, arguments.repo_id)
        print(f"{_table(arguments.output)}\nWritten to {arguments.output}; nothing was published.")
        return 0
    checked = check_target(_target(arguments, "model"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stage(folder, checked.target.repo_id)
        commit = publish_folder(folder, checked, report=_report)
        print(f"{_table(folder)}\n{commit.pr_url or commit.commit_url}")
    return 0


def _push_labels(arguments: argparse.Namespace) -> int:
    from ..hub.labels import push_labels
    from ..soft_labels import SoftLabelStore

    given = {"license": arguments.license, "base_model": arguments.base_model, "dataset": arguments.dataset,
             "tag": arguments.tag, "evaluation": arguments.evaluation, "benchmark": arguments.benchmark,
             "output": arguments.output}  # fmt: skip
    for name, value in given.items():
        if value:
            raise ValueError(f"--{name} is for models; {arguments.model!r} holds a store of soft labels.")
    store = SoftLabelStore(arguments.model)
    commit = push_labels(store, _target(arguments, "dataset"), report=_report)
    settings = store.settings
    print(
        f"{len(store):,} images, {settings.crops_per_image} crops each, {store.metadata.num_bytes / 1e6:,.2f} MB in"
        f" {len(store.metadata.shards)} shards\n{commit.pr_url or commit.commit_url}"
    )
    return 0


def _target(arguments: argparse.Namespace, repo_type: str):
    from ..hub import Target

    return Target(
        arguments.repo_id,
        repo_type=repo_type,
        private=arguments.private,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
        commit_message=arguments.commit_message,
        token=arguments.token,
        overwrite=arguments.overwrite,
    )


def _table(folder: Path) -> str:
    from ..tables import format_table

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    rows = [["file", "size"]]
    rows += [[path.relative_to(folder).as_posix(), f"{path.stat().st_size / 1000:,.1f} kB"] for path in files]
    return format_table(rows)


def _report(message: str) -> None:
    print(f"hf-vaq: {message}", file=sys.stderr, flush=True)
