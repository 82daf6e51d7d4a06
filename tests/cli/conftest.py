"""One run of a tiny recipe that several tests look at."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli_helpers import write_recipe

from hf_vaq.cli import main


@dataclass
class Run:
    recipe: Path
    folder: Path
    stdout: str
    stderr: str

    @property
    def results(self) -> dict:
        return json.loads((self.folder / "results.json").read_text())


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Run:
    """The whole main job through the command, with a few steps."""
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("run")
    recipe = write_recipe(folder)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["train", str(recipe), "--output_dir", str(folder / "out"), "--seed", "3"])
    assert code == 0, err.getvalue()
    return Run(recipe, folder / "out", out.getvalue(), err.getvalue())
