"""A tiny recipe for the tests of the commands."""

from pathlib import Path

import yaml
from helpers import TINY_RECIPE


def write_recipe(folder: Path, **values) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY_RECIPE, **values}))
    return path
