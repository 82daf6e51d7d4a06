"""What stands beside an exported file: it runs without this package, and classifies as the packed model does."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from export_helpers import packed_model, processor
from PIL import Image

from hf_vaq.data import evaluation_transform, load_digits
from hf_vaq.export import export_onnx, export_openvino
from hf_vaq.export.bundled import run
from hf_vaq.export.narrow import runtime_has_int2
from hf_vaq.export.settings import image_settings

BLOCK = "import sys\nfor name in ('torch', 'transformers', 'hf_vaq', 'torchvision'):\n    sys.modules[name] = None\n"


@pytest.mark.parametrize(("export", "runtime"), [(export_onnx, "onnxruntime"), (export_openvino, "openvino")])
def test_run_py_classifies_a_digit_without_torch_transformers_and_this_package(export, runtime, exported, tmp_path):
    pytest.importorskip(runtime, reason="needs its extra")
    model = packed_model("vit", weight_bits=4, activation_bits=4)
    folder = exported(export, weight_bits=4, activation_bits=4).folder
    picture = load_digits()["test"][3]["image"]
    picture.save(tmp_path / "digit.png")
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(BLOCK)
    result = subprocess.run(
        [sys.executable, str(folder / "run.py"), str(tmp_path / "digit.png")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert result.returncode == 0, result.stderr
    with torch.no_grad():
        logits = model(pixel_values=evaluation_transform(processor())(picture)[None]).logits
    path, label, probability = result.stdout.strip().split("\t")
    assert path == str(tmp_path / "digit.png")
    assert label == model.config.id2label[int(logits.argmax())]
    assert float(probability) == pytest.approx(float(logits.softmax(-1).max()), abs=0.02)


def test_the_folder_states_labels_shapes_image_settings_and_agreement(exported):
    pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    model = packed_model("vit", weight_bits=2, activation_bits=3)
    report = exported(export_onnx, weight_bits=2, activation_bits=3)
    names = {path.name for path in report.folder.iterdir()}
    assert names == {"model.onnx", "export.json", "README.md", "preprocessor_config.json", "run.py"}
    settings = json.loads((report.folder / "export.json").read_text())
    assert settings["labels"] == list(model.config.id2label.values())
    assert settings["input"]["shape"] == ["batch", 3, 32, 32] and settings["opset"] == (
        25 if runtime_has_int2() else 21
    )
    assert settings["image"]["resize"] == {"height": 32, "width": 32}
    assert settings["agreement"]["images"] == report.agreement.images == report.agreement.same_top1 == 8
    assert settings["products"] == {"integer": report.products.total, "total": report.products.total}
    assert settings["size_bytes"] == (report.folder / "model.onnx").stat().st_size
    assert "run.py picture.png" in (report.folder / "README.md").read_text()


def test_pictures_are_prepared_as_the_image_processor_does(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    model = packed_model("vit", weight_bits=4, activation_bits=4)
    steps = image_settings(processor(), model.config)
    expected = processor()(picture, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(run.preprocess(picture, steps), expected, atol=1e-6)


@pytest.mark.parametrize(("size", "shape"), [((60, 40), (48, 32)), ((40, 60), (32, 48)), ((32, 32), (32, 32))])
def test_the_shorter_edge_gets_the_stated_length(size, shape):
    assert run.resized_shape(Image.new("RGB", size), {"shortest_edge": 32}) == shape
