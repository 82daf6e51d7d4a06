"""Where recipes are found: by path, or by short name among those that come with the package."""

from __future__ import annotations

import difflib
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
LAUNCH_FILES = "accelerate"
"""Folder beside those of the recipes with launch files of accelerate, which are YAML as well."""


def recipes_folder() -> Path:
    """Return the folder of the shipped recipes: inside an installed package, or at the top of the repository."""
    inside = _PACKAGE / "shipped_recipes"
    return inside if inside.is_dir() else _PACKAGE.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Return the shipped recipes by short name, such as "digits/vit_w2a2", in alphabetical order."""
    root = recipes_folder()
    files = sorted(path for path in root.glob("**/*.yaml") if path.parent.name != LAUNCH_FILES)
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in files}


def find_recipe(name: str | Path) -> Path:
    """Return the file of a recipe given by its path or by its short name (with or without `recipes/` and `.yaml`).

    Raises:
        ValueError: there is neither such a file nor such a shipped recipe; the message suggests the nearest name.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = shipped_recipes()
    short = path.with_suffix("").as_posix() if path.suffix in (".yaml", ".yml") else path.as_posix()
    short = short.removeprefix("./").removeprefix("recipes/")
    if short in shipped:
        return shipped[short]
    near = difflib.get_close_matches(short, shipped, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"There is no recipe {str(name)!r}: neither a file nor a shipped recipe.{hint} The shipped ones: "
        f"{', '.join(shipped)}."
    )


def recipe_name(path: Path) -> str:
    """Return the short name of a shipped recipe's file; of any other file its name without the suffix."""
    for name, shipped in shipped_recipes().items():
        if shipped.resolve() == path.resolve():
            return name
    return path.stem


def summary(path: Path) -> str:
    """Return the first comment line of a recipe, which says what it does; empty if it has none."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            return line.lstrip("# ").strip()
        if line.strip():
            break
    return ""
