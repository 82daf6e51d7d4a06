"""`hf-vaq analyze` as it is typed."""

import json
import re
import shlex
import sys
from html import escape as html_escape

import pandas
import pytest
import yaml
from analysis_helpers import TINY, Labelled, train
from helpers import build
from transformers import ViTImageProcessor

import hf_vaq
from hf_vaq import QuantConfig
from hf_vaq.cli import main
from hf_vaq.cli.analyze.common import short_name
from hf_vaq.recipe import load_recipe

DIGITS = ["--dataset", "digits", "--split", "test[:24]", "--train_split", "train[:16]", "--device", "cpu"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A float model, its packed twin, and two runs of training."""
    folder = tmp_path_factory.mktemp("models")
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    model = build("vit", **TINY | {"num_labels": 10})
    for name in ("float", "packed"):
        if name == "packed":
            hf_vaq.quantize(model, QuantConfig())
            hf_vaq.calibrate(model, [Labelled(4, size=8).images])
            model = hf_vaq.pack(model)
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    for name, weight in (("with", 0.01), ("without", 0.0)):
        train(folder / name, 6, weight)
    return folder


def check_folder(folder, analysis, command):
    results = json.loads((folder / "results.json").read_text())
    html = (folder / "report.html").read_text()
    assert results["analysis"] == analysis and results["command"] == command and results["versions"]["hf_vaq"]
    assert html_escape(command) in html
    figures = sorted(path.stem for path in (folder / "figures").iterdir())
    assert figures == sorted(re.findall(r'<figure id="(.*?)">', html))
    return results, figures


def test_sensitivity_leaves_report_overrides_and_numbers(models, tmp_path, capsys):
    words = [
        "analyze",
        "sensitivity",
        str(models / "float"),
        *DIGITS,
        "--bits",
        "2",
        "--groups",
        "ffn",
        "mhsa",
        "block.*",
    ]
    words += ["--suggest-bits", "3", "--train-steps", "1", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "Top-1 is" in out and "module_overrides.yaml" in out
    results, figures = check_folder(tmp_path / "out", "sensitivity", shlex.join(["hf-vaq", *words]))
    assert figures == ["blocks", "heads", "kinds", "kinds_trained", "suggested_bits"]
    table = pandas.read_parquet(tmp_path / "out" / "tables" / "sensitivity.parquet")
    assert len(table) == len(results["rows"]) == (2 + 2 * 8) + (1 + 2 * 8)
    assert (results["images"], results["split"], results["suggestion"]["average_bits"] <= 3) == (24, "test[:24]", True)
    overrides = yaml.safe_load((tmp_path / "out" / "module_overrides.yaml").read_text())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump({"model": str(models / "float"), "dataset": "digits", "use_cpu": True})
        + (tmp_path / "out" / "module_overrides.yaml").read_text()
    )
    assert load_recipe(recipe).quantization.module_overrides == overrides["module_overrides"]
    assert main(words) == 0  # the folder of an earlier analysis is taken over, and its cache is used


def test_variation_compares_models_and_their_activations(models, tmp_path, capsys):
    build("deit").save_pretrained(tmp_path / "deit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "deit")
    words = ["analyze", "variation", str(models / "float"), str(tmp_path / "deit")]
    assert main([*words, "--output", str(tmp_path / "weights")]) == 0
    _, figures = check_folder(
        tmp_path / "weights", "variation", shlex.join(["hf-vaq", *words, "--output", str(tmp_path / "weights")])
    )
    assert figures == ["depth_weight", "heads_weight", "modules_weight"]
    words += ["--dataset", "digits", "--max_images", "3", "--device", "cpu", "--output", str(tmp_path / "all")]
    assert main(words) == 0
    results, figures = check_folder(tmp_path / "all", "variation", shlex.join(["hf-vaq", *words]))
    assert {"modules_input", "modules_output", "heads_output"} < set(figures)
    assert set(results["images"].values()) == {3}
    modules = pandas.read_parquet(tmp_path / "all" / "tables" / "modules.parquet")
    assert set(modules["tensor"]) == {"weight", "input", "output"}


def test_a_name_that_is_no_unicode_becomes_text():
    assert short_name("models/vit\udcff/packed") == "vit?/packed"


def test_oscillation_shows_two_runs_side_by_side(models, tmp_path, capsys):
    words = [
        "analyze",
        "oscillation",
        str(models / "with"),
        str(models / "without"),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(words) == 0
    assert "with (regularizer 0.01)" in capsys.readouterr().out
    results, figures = check_folder(tmp_path / "out", "oscillation", shlex.join(["hf-vaq", *words]))
    assert figures == ["distances", "scales", "shares", "trajectories"]
    assert set(results["runs"]) == {"with", "without"}
    shares = pandas.read_parquet(tmp_path / "out" / "tables" / "shares.parquet")
    assert set(shares["step"]) == set(range(7))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sensitivity", "{}/packed", *DIGITS], "is packed; accepted: the full-precision model"),
        (["sensitivity", "{}/float", *DIGITS, "--groups", "heads"], "groups has 'heads', which matches no group"),
        (["sensitivity", "{}/float", *DIGITS, "--split", "test[:0]"], "is empty"),
        (["sensitivity", "{}/float", *DIGITS, "--bits", "9"], "weight_bits=9 is not a bit-width"),
        (["sensitivity", "{}/float", *DIGITS, "--suggest-bits", "1.5"], "suggest_bits is '1.5'"),
        (["sensitivity", "{}/float", *DIGITS, "--suggest-bits", "1kB"], "accepted: at least"),
        (["sensitivity", "{}/float", *DIGITS, "--suggest-bits", "3", "--groups", "x"], "groups has 'x'"),
        (["sensitivity", "{}/float", *DIGITS, "--max_images", "0"], "a number of images is 0"),
        (["sensitivity", "{}/absent", *DIGITS], "cannot be loaded"),
        (["variation", "{}/packed"], "packed is packed: it has no latent weights"),
        (["variation", "{}/float", "{}/float"], "one is given twice"),
        (["variation", "{}/float", "--split", "test"], "there is no dataset"),
        (["oscillation", "{}/float"], "holds no oscillation record"),
        (["oscillation", "{}/absent"], "is no folder"),
        (["oscillation", "{}/with", "--output", "{}"], "which is not from an analysis"),
    ],
)
def test_bad_input_is_one_line(models, words, message, capsys, tmp_path):
    words = [word.replace("{}", str(models)) for word in words]
    if "--output" not in words:
        words += ["--output", str(tmp_path / "out")]
    assert main(["analyze", *words]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("hf-vaq analyze: error: ") and message in error
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_missing_library_is_named_with_its_extra(models, capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = ["analyze", "oscillation", str(models / "with"), "--output", str(tmp_path / "out")]
    assert main(words) == 1
    assert "pip install 'hf-vaq[analysis]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
