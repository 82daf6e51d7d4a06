"""What the project promises about itself: its version, its public names, and a tree free of any machine's paths."""

import ast
import inspect
import re
import subprocess
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path

import pytest

import hf_vaq

ROOT = Path(__file__).parents[1]
PUBLIC_NAMES = {"QuantConfig", "VaqTrainer", "VaqTrainingArguments", "calibrate", "pack", "quantize"}


def tracked_text_files() -> list[Path]:
    try:
        listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout: there is no list of the project's files")
    files = [ROOT / name for name in listing.stdout.split("\0") if name]
    return [file for file in files if file.is_file() and b"\0" not in file.read_bytes()]


def test_changelog_and_installed_package_have_the_version_of_the_code():
    newest = re.search(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == hf_vaq.__version__ == metadata.version("hf-vaq")


def test_package_is_marked_as_typed():
    assert resources.files("hf_vaq").joinpath("py.typed").is_file()


def test_public_names_are_listed_and_documented():
    assert set(hf_vaq.__all__) >= PUBLIC_NAMES
    for name in hf_vaq.__all__:
        public = getattr(hf_vaq, name)
        assert isinstance(public, str) or (inspect.getdoc(public) or "").strip(), f"hf_vaq.{name} has no docstring"


def public_functions(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
    for child in node.body:
        name = f"{prefix}.{getattr(child, 'name', '')}"
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from public_functions(child, name)
        elif isinstance(child, ast.FunctionDef) and not child.name.startswith("_"):
            yield name, child


def test_public_functions_and_methods_are_typed_throughout():
    untyped = []
    functions = 0
    for file in sorted((ROOT / "hf_vaq").rglob("*.py")):
        for name, function in public_functions(ast.parse(file.read_text(encoding="utf-8")), file.stem):
            functions += 1
            arguments = [node for node in ast.iter_child_nodes(function.args) if isinstance(node, ast.arg)]
            missing = [node.arg for node in arguments if node.annotation is None and node.arg not in ("self", "cls")]
            if missing or function.returns is None:
                untyped.append(f"{file.relative_to(ROOT)}: {name} {missing}")
    assert functions > 100
    assert not untyped, "\n".join(untyped)


def test_no_file_names_a_path_of_some_machine():
    folders = ["home", "Users", "root", "work", "mnt", "scratch"]
    machine_path = re.compile(rf"(?<![\w.])/(?:{'|'.join(folders)})/\w")
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line.strip()}"
        for file in tracked_text_files()
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if machine_path.search(line)
    ]
    assert not found, "\n".join(found)
