"""What exporting refuses, and that it leaves nothing behind."""

import copy
import os
import sys

import numpy as np
import pytest
import torch
from export_helpers import packed_model, processor, training_form
from helpers import build, images
from transformers import ViTImageProcessor

from hf_vaq.cli import main
from hf_vaq.export import ExportDisagreementError, export_onnx, export_openvino
from hf_vaq.export.agreement import Agreement, compare, sample_images
from hf_vaq.export.bundle import foreign_to_export
from hf_vaq.export.exporting import check_folder

pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")

W4A4 = {"weight_bits": 4, "activation_bits": 4}


def saved(folder, model, with_processor=True):
    model.save_pretrained(folder)
    if with_processor:
        processor().save_pretrained(folder)
    return str(folder)


def test_a_float_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not quantized by hf_vaq"):
        export_onnx(build("vit"), tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_model_in_training_form_is_packed_first_and_takes_the_place_of_an_earlier_export(tmp_path, capsys):
    folder, out = saved(tmp_path / "trained", training_form("vit", **W4A4)), tmp_path / "out"
    out.mkdir()
    (out / "export.json").write_text('{"files": ["export.json", "old"]}')
    (out / "old").write_text("")
    assert main(["export", folder, str(out), "--format", "onnx", "--overwrite"]) == 0
    captured = capsys.readouterr()
    assert "in training form" in captured.err
    assert "8 of 8" in captured.out and "10 of 10" in captured.out
    assert sorted(os.listdir(tmp_path)) == ["out", "trained"]
    assert "old" not in os.listdir(out) and (out / "export.json").read_text() != "{}"
    assert foreign_to_export(out) == []
    (out / "notes.txt").write_text("mine")
    assert main(["export", folder, str(out), "--format", "onnx", "--overwrite"]) == 1
    assert "holds 'notes.txt', which no export wrote" in capsys.readouterr().err
    assert (out / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(("export", "package"), [(export_onnx, "onnxruntime"), (export_openvino, "openvino")])
def test_a_missing_package_names_the_extra(export, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    extra = export.__name__.removeprefix("export_")
    with pytest.raises(ValueError, match=rf"hf-vaq\[{extra}\]"):
        export(packed_model("vit", **W4A4), tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_folder_in_use_is_refused_and_kept(tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(ValueError, match="is not empty"):
        export_onnx(packed_model("vit", **W4A4), tmp_path)
    with pytest.raises(ValueError, match="holds 'mine', which no export wrote"):
        export_onnx(packed_model("vit", **W4A4), tmp_path, overwrite=True)
    assert os.listdir(tmp_path) == ["mine"]
    for content in ("{}", "{", "[]", '{"files": "mine"}'):
        (tmp_path / "export.json").write_text(content)
        with pytest.raises(ValueError, match="which no export wrote"):
            check_folder(tmp_path, overwrite=True)


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file"):
        export_onnx(packed_model("vit", **W4A4), tmp_path / "file" / "out")
    assert os.listdir(tmp_path) == ["file"]


def test_an_unknown_format_is_refused_by_the_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["export", "model", str(tmp_path / "out"), "--format", "tflite"])
    assert exit_info.value.code == 2
    assert "openvino" in capsys.readouterr().err


@pytest.mark.parametrize("batch", [images(1, size=16), images(1)[0], images(1).double()], ids=["size", "rank", "type"])
def test_a_batch_of_another_shape_or_type_is_refused_and_nothing_is_left(batch, tmp_path):
    with pytest.raises(ValueError, match="a batch has shape"):
        export_onnx(packed_model("vit", **W4A4), tmp_path / "out", batches=[batch])
    assert os.listdir(tmp_path) == []


def test_an_image_processor_of_another_size_is_refused(tmp_path):
    wrong = ViTImageProcessor(size={"height": 16, "width": 16})
    with pytest.raises(ValueError, match="16 x 16"):
        export_onnx(packed_model("vit", **W4A4), tmp_path / "out", image_processor=wrong)
    assert os.listdir(tmp_path) == []


def test_another_type_than_float32_is_refused(tmp_path):
    with pytest.raises(ValueError, match="float32"):
        export_onnx(copy.deepcopy(packed_model("vit", **W4A4)).to(torch.bfloat16), tmp_path / "out")


def test_a_runtime_that_computes_something_else_is_refused():
    model = packed_model("vit", **W4A4)
    other = packed_model("vit", weight_bits=2, activation_bits=2)

    def runtime(pixel_values: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return other(pixel_values=torch.from_numpy(pixel_values)).logits.numpy()

    agreement = compare(model, runtime, sample_images((3, 32, 32)))
    with pytest.raises(ExportDisagreementError, match="something else than the packed model"):
        agreement.check("the export")


def test_what_rounding_makes_is_accepted_and_nan_is_not():
    values = {"images": 4, "same_top1": 4, "max_logit_difference": 0.5, "logit_deviation": 1.0}
    Agreement(**values, median_logit_difference=0.2, own_median_logit_difference=0.1).check("the export")
    for median, own in ((0.2, 0.01), (float("nan"), 0.1)):
        with pytest.raises(ExportDisagreementError):
            Agreement(**values, median_logit_difference=median, own_median_logit_difference=own).check("the export")
