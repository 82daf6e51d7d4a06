"""Commands in the documents are accepted by the programs that they call; those of the first steps are run."""

import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from document_helpers import DOCUMENTS, ROOT, code_blocks, prose, shell_commands, text_of
from helpers import save_pictures
from torch.distributed.run import get_args_parser as torchrun_parser

from hf_vaq.cli import COMMANDS, build_parser, main
from hf_vaq.recipe import load_recipe

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest brings

ALL_COMMANDS = [
    pytest.param(words, id=f"{document}: {shlex.join(words)}")
    for document in DOCUMENTS
    for block in code_blocks(document, "bash")
    for words in shell_commands(block)
]
# Another data set, a few steps: the same code, in seconds.
SMALL_TRAINING = shlex.split(
    "--max_steps 2 --float_num_train_epochs 0.04 --calibration_batches 1 --per_device_eval_batch_size 180"
    " --logging_steps 1 --disable_tqdm true --use_cpu true"
)
SMALL = {
    "train": SMALL_TRAINING,
    "benchmark": ["--runs", "1", "--batch_sizes", "1", "--backends", "eager", "--no_memory"],
    "push": ["--output", "to_be_published"],  # instead of a Hub
    "analyze": ["--max_images", "20", "--calibration_images", "20", "--groups", "ffn", "mhsa", "--device", "cpu"],
}


def check_hf_vaq(words: list[str]) -> None:
    arguments, rest = build_parser().parse_known_args(words)
    if arguments.command in ("train", "label"):
        if arguments.recipe in ("mine.yaml", "RECIPE"):  # what `hf-vaq recipes --copy` makes; any recipe
            arguments.recipe = "digits/vit_w2a2"
        load_recipe(arguments.recipe, [*rest, "--use_cpu"])
    else:
        assert rest == []
    if arguments.command == "recipes" and arguments.copy:
        load_recipe(arguments.copy[0])


def check_accelerate(words: list[str]) -> None:
    assert words[0] == "launch"
    arguments = launch_command_parser().parse_args(words[1:])
    assert arguments.module
    assert arguments.training_script == "hf_vaq"
    check_hf_vaq(arguments.training_script_args)
    if arguments.config_file is not None:
        assert Path(arguments.config_file).is_file()


def check_torchrun(words: list[str]) -> None:
    arguments = torchrun_parser().parse_args(words)
    assert arguments.module
    assert arguments.training_script == "hf_vaq"
    check_hf_vaq(arguments.training_script_args)


def check_python(words: list[str]) -> None:
    if words[0] == "-m":
        assert words[1] in ("venv", "hf_vaq", "pytest")
        if words[1] == "hf_vaq":
            check_hf_vaq(words[2:])
        return
    script = ROOT / words[0]
    source = script.read_text(encoding="utf-8")
    for option in words[1:]:
        if option.startswith("--"):
            assert option.partition("=")[0] in source


def check_pip(words: list[str]) -> None:
    assert words[0] == "install"
    extras = {name for group in re.findall(r"hf-vaq\[(.*?)\]|\.\[(.*?)\]", " ".join(words)) for name in group if name}
    known = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
    assert {name for names in extras for name in names.split(",")} <= known.keys()


def check_make(words: list[str]) -> None:
    for target in words:
        assert re.search(rf"^{target}:", text_of("Makefile"), re.MULTILINE)


def check_pre_commit(words: list[str]) -> None:
    assert words == ["install"]
    hooks = yaml.safe_load(text_of(".pre-commit-config.yaml"))
    assert {repository["repo"] for repository in hooks["repos"]} == {"local"}


CHECKS = {
    "hf-vaq": check_hf_vaq,
    "accelerate": check_accelerate,
    "torchrun": check_torchrun,
    "python": check_python,
    "python3": check_python,
    "pip": check_pip,
    "make": check_make,
    "pre-commit": check_pre_commit,
}


@pytest.mark.parametrize("words", ALL_COMMANDS)
def test_command_in_a_document_is_accepted(words, pytestconfig, monkeypatch):
    monkeypatch.chdir(ROOT)
    program, *arguments = words
    if program == "pytest":
        for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
            if option == "-m":
                assert value in {line.partition(":")[0] for line in pytestconfig.getini("markers")}
    elif program == ".":
        assert arguments == [".venv/bin/activate"]
    elif (ROOT / program).is_file():
        assert (ROOT / program).stat().st_mode & 0o111
    else:
        assert program in CHECKS, f"unknown program {program!r}: say here how its command line is checked"
        CHECKS[program](arguments)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_named_in_running_text_exist(document):
    for command in re.findall(r"`hf-vaq ([a-z]+)", prose(document)):
        assert command in COMMANDS


@pytest.mark.parametrize("document", ["README.md", "docs/quickstart.md"])
def test_commands_of_the_first_steps_run_one_after_the_other(document, tmp_path, monkeypatch, capsys):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    save_pictures(tmp_path / "path" / "to" / "pictures")
    monkeypatch.chdir(tmp_path)
    ran = []
    for block in code_blocks(document, "bash"):
        for program, *words in shell_commands(block):
            # Not here: installation, other processes; the export has its own tests, and takes longest.
            if program != "hf-vaq" or words[0] == "export":
                continue
            code = main([*words, *SMALL.get(words[0], [])])
            assert code == 0, f"{shlex.join(words)}: {capsys.readouterr().err}"
            ran.append(words[0])
    assert ran.count("train") >= 2
    assert "evaluate" in ran
