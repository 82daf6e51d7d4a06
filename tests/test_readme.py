"""What the documents say is true: commands parse, snippets run, and files they name exist."""

import re
import shlex
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from accelerate.commands.launch import launch_command_parser
from helpers import IMAGE_SIZE, build, images
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTImageProcessor

import hf_vaq
from hf_vaq.cli import COMMANDS, build_parser, main
from hf_vaq.recipe import load_recipe

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "recipes/**/*.md", "benchmarks/**/*.md", "hub_cards/*.md")
    for path in ROOT.glob(pattern)
)
TOP_FOLDERS = ("hf_vaq", "recipes", "docs", "tests", "benchmarks", "hub_cards", ".ci")


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def code_blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text_of(document), re.MULTILINE | re.DOTALL)


def prose(document: str) -> str:
    return re.sub(r"^```.*?^```$", "", text_of(document), flags=re.MULTILINE | re.DOTALL)


def shell_commands(block: str) -> Iterator[list[str]]:
    """The single commands of a shell block, each as its words, without leading assignments of variables."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "&&"]:
            if word in ("&&", ";"):
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    words.pop(0)
                if words:
                    yield words
                words = []
            else:
                words.append(word)


ALL_COMMANDS = [
    pytest.param(words, id=f"{document}: {shlex.join(words)}")
    for document in DOCUMENTS
    for block in code_blocks(document, "bash")
    for words in shell_commands(block)
]


@pytest.fixture(autouse=True)
def at_the_top_of_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def check_hf_vaq(words: list[str]) -> None:
    arguments, rest = build_parser().parse_known_args(words)
    if arguments.command in ("train", "label"):
        if arguments.recipe == "mine.yaml":  # what `hf-vaq recipes --copy` makes on the page before
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
    extras = re.findall(r"\[(.*?)\]", " ".join(words))
    assert set(extras) <= set(metadata.metadata("hf-vaq").get_all("Provides-Extra"))


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
    "python": check_python,
    "python3": check_python,
    "pip": check_pip,
    "make": check_make,
    "pre-commit": check_pre_commit,
}


@pytest.mark.parametrize("words", ALL_COMMANDS)
def test_command_in_a_document_is_accepted(words, pytestconfig):
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
    for command in re.findall(r"`hf-vaq (\w+)", prose(document)):
        assert command in COMMANDS


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_of_a_document_lead_somewhere(document):
    here = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (here / path) if path else ROOT / document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_named_in_a_document_exist(document):
    for name in re.findall(rf"`((?:{'|'.join(map(re.escape, TOP_FOLDERS))})/[\w./-]*)`", prose(document)):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_yaml_in_a_document_is_made_of_fields_of_a_recipe(document, tmp_path):
    for number, block in enumerate(code_blocks(document, "yaml")):
        fields = yaml.safe_load(block)
        if "dataset" not in fields:  # an excerpt: completed by a whole recipe
            fields = {**yaml.safe_load(text_of("recipes/digits/vit_w2a2.yaml")), **fields}
        recipe = tmp_path / f"block_{number}.yaml"
        recipe.write_text(yaml.safe_dump(fields), encoding="utf-8")
        assert load_recipe(recipe).values.keys() >= fields.keys()


def test_ci_installs_tests_and_runs_as_the_readme_says():
    first, second = (list(shell_commands(block)) for block in code_blocks("README.md", "bash")[:2])
    ci = list(shell_commands(text_of(".ci/run").partition("step() {")[2].partition("\n")[2]))
    install, job = first[-2:]
    assert install[:2] == ["pip", "install"] and job[:2] == ["hf-vaq", "train"]
    assert any(words[:2] == install[:2] and words[-2:] == install[-2:] for words in ci)
    assert any(words[: len(job)] == job for words in ci)
    assert any(words[: len(second[-1])] == second[-1] for words in ci)


# Snippets


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Tiny local models and data in the place of everything on the Hub, and an empty folder to work in."""
    labels = ["tench", "goldfish", "great white shark"]
    model = build(id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)})
    processor = ViTImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    start, work = tmp_path / "start", tmp_path / "work"
    packed = work / "outputs" / "digits" / "vit_w2a2" / "packed"  # what the main job leaves
    model.save_pretrained(start)
    hf_vaq.calibrate(hf_vaq.quantize(model, hf_vaq.QuantConfig()), [images()])
    hf_vaq.pack(model).save_pretrained(packed)
    processor.save_pretrained(start)
    processor.save_pretrained(packed)

    for loader in (AutoModelForImageClassification, AutoImageProcessor):
        monkeypatch.setattr(loader, "from_pretrained", _redirected(loader.from_pretrained, start))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, split=None, **kwargs: _pictures(labels, split))
    monkeypatch.chdir(work)


def _redirected(from_pretrained, start: Path):
    def load(name, *args, **kwargs):
        return from_pretrained(name if Path(name).is_dir() else start, *args, **kwargs)

    return load


def _pictures(labels: list[str], split: str | None) -> datasets.DatasetDict | datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=labels)})
    random = np.random.default_rng(0)
    rows = {
        "image": [Image.fromarray(random.integers(0, 256, (20, 24), dtype=np.uint8)) for _ in range(36)],
        "label": [0, 1, 2] * 12,
    }
    pictures = datasets.Dataset.from_dict(rows, features=features)
    return pictures if split else datasets.DatasetDict(train=pictures, validation=pictures)


@pytest.mark.parametrize("document", [document for document in DOCUMENTS if code_blocks(document, "python")])
def test_snippets_of_a_document_run_one_after_the_other(document, stand_ins):
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in code_blocks(document, "python"):
        exec(compile(block, document, "exec"), namespace)

    if document == "README.md":
        model, trainer, picture = namespace["model"], namespace["trainer"], Image.new("RGB", (20, 24), "red")
        assert model.config.quantization_config.packed
        assert trainer.state.global_step > 0
        inputs = namespace["image_processor"](picture, return_tensors="pt")
        with torch.no_grad():
            trained = trainer.model.eval().cpu()(**inputs).logits
            assert torch.equal(model(**inputs).logits, trained)
        assert {answer["label"] for answer in namespace["classify"](picture)} == set(model.config.label2id)


def test_error_messages_in_the_readme_are_those_of_the_command(capsys):
    (session,) = code_blocks("README.md", "console")
    lines = session.splitlines()
    assert len(lines) >= 4
    for command, message in zip(lines[::2], lines[1::2], strict=True):
        prompt, program, *words = shlex.split(command)
        assert (prompt, program) == ("$", "hf-vaq")
        assert main(words) == 1
        assert capsys.readouterr().err.strip().splitlines()[-1] == message
