"""Blocks of Python and of console sessions in the documents are run; those of YAML are loaded."""

import doctest
import re
import shlex
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from document_helpers import DOCUMENTS, ROOT, RUN_ELSEWHERE, code_blocks, languages, parse, text_of
from helpers import IMAGE_SIZE, build, images, pictures
from PIL import Image
from sybil.evaluators.python import PythonEvaluator
from transformers import AutoImageProcessor, AutoModelForImageClassification, ViTImageProcessor

import hf_vaq
from hf_vaq.cli import main
from hf_vaq.inference import set_execution
from hf_vaq.recipe import load_recipe

LANGUAGES = {"python", "console", "bash", "yaml", "text"}
"""`text` is for what is neither typed nor compared: a listing of a folder, a message of another program."""
LABELS = ["tench", "goldfish", "great white shark"]


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """Tiny local models and data in the place of everything on the Hub, and an empty folder to work in."""
    model = build(id2label=dict(enumerate(LABELS)), label2id={label: index for index, label in enumerate(LABELS)})
    processor = ViTImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    start, work = tmp_path / "start", tmp_path / "work"
    packed = work / "outputs" / "digits" / "vit_w2a2" / "packed"  # what the main job leaves
    model.save_pretrained(start)
    hf_vaq.calibrate(hf_vaq.quantize(model, hf_vaq.QuantConfig()), [images()])
    hf_vaq.pack(model).save_pretrained(packed)
    processor.save_pretrained(start)
    processor.save_pretrained(packed)

    picture = work / "path" / "to" / "picture.png"
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (20, 24), "red").save(picture)

    for loader in (AutoModelForImageClassification, AutoImageProcessor):
        monkeypatch.setattr(loader, "from_pretrained", _redirected(loader.from_pretrained, start, packed))
    monkeypatch.setattr(datasets, "load_dataset", _data_set)
    (work / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(work)


def _redirected(from_pretrained, start: Path, packed: Path):
    def load(name, *args, **kwargs):
        stand_in = packed if re.search(r"packed|w\da\d", str(name)) else start
        return from_pretrained(name if Path(name).is_dir() else stand_in, *args, **kwargs)

    return load


def _data_set(*args, split: str | None = None, streaming: bool = False, **kwargs):
    rows = pictures(LABELS)
    if streaming:
        rows = rows.to_iterable_dataset()
    splits = datasets.IterableDatasetDict if streaming else datasets.DatasetDict
    return rows if split else splits(train=rows, validation=rows)


def run_session(example) -> None:
    """Run each `$ command` of a console block; what it prints is what follows, `...` standing for anything."""
    for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n?)*)", example.parsed, re.MULTILINE):
        program, *words = shlex.split(command, comments=True)
        assert program == "hf-vaq", f"{command}: say here how {program!r} is run"
        printed = StringIO()
        with redirect_stdout(printed), redirect_stderr(printed):
            main(words)
        options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        example_of_it = doctest.Example(command, expected)
        checker = doctest.OutputChecker()
        assert checker.check_output(expected, printed.getvalue(), options), checker.output_difference(
            example_of_it, printed.getvalue(), options
        )


def test_documents_that_are_run_elsewhere_are():
    for document, test in RUN_ELSEWHERE.items():
        assert Path(document).name in text_of(test)


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name not in RUN_ELSEWHERE])
def test_blocks_of_a_document_run_one_after_the_other(document, stand_ins):
    page = parse(document, python=PythonEvaluator(), console=run_session)
    page.namespace["__name__"] = "__main__"
    for example in page:
        example.evaluate()

    if document == "README.md":
        names, picture = page.namespace, Image.new("RGB", (20, 24), "red")
        model, trainer = names["model"], names["trainer"]
        assert model.config.quantization_config.packed
        assert trainer.state.global_step > 0
        inputs = names["image_processor"](picture, return_tensors="pt")
        set_execution(model, "simulation")  # the arithmetic of the training form
        with torch.no_grad():
            trained = trainer.model.eval().cpu()(**inputs).logits
            assert torch.equal(model(**inputs).logits, trained)
        assert {answer["label"] for answer in names["classify"](picture)} == set(model.config.label2id)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_yaml_in_a_document_is_made_of_fields_of_a_recipe(document, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for number, block in enumerate(code_blocks(document, "yaml")):
        fields = yaml.safe_load(block)
        if "dataset" not in fields:  # an excerpt: completed by a whole recipe
            fields = {**yaml.safe_load(text_of("recipes/digits/vit_w2a2.yaml")), **fields}
        recipe = tmp_path / f"block_{number}.yaml"
        recipe.write_text(yaml.safe_dump(fields), encoding="utf-8")
        assert load_recipe(recipe).values.keys() >= fields.keys()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_of_a_document_names_a_language_that_is_checked_here(document):
    assert set(languages(document)) <= LANGUAGES
