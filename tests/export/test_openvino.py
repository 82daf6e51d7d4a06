"""Exports to OpenVINO: equal answers, integer products in the runtime's own execution graph, narrow weights."""

from collections import Counter

import numpy as np
import pytest
from export_helpers import packed_model, simulated_logits
from helpers import images

from hf_vaq.export import export_openvino

openvino = pytest.importorskip("openvino", reason="needs the extra 'openvino'")
pytest.importorskip("onnxscript", reason="needs the extra 'openvino'")

BY_HEAD = {"weight_granularity": "head", "activation_granularity": "head"}
W4A4 = {"weight_bits": 4, "activation_bits": 4}
W2A2_BY_HEAD = {"weight_bits": 2, "activation_bits": 2, **BY_HEAD}
MOVING = ("Gather", "Transpose", "Roll", "Split", "StridedSlice", "Concatenation")


def answers(folder, pixel_values):
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(pixel_values.numpy())[0]


def test_an_image_with_nan_has_nan_for_an_answer(exported):
    report = exported(export_openvino, "vit", **W4A4)
    pixel_values = images(3, seed=5)
    expected = answers(report.folder, pixel_values)
    pixel_values[1, 0, 7, 7] = np.nan
    found = answers(report.folder, pixel_values)
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("vit", W4A4),
        ("deit_two_heads", W2A2_BY_HEAD),
        ("dinov2_swiglu", {"weight_bits": 2, "activation_bits": 3, "weight_granularity": "channel"}),
        ("beit", W4A4),
        ("swin", W4A4),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_it_answers_as_the_packed_model_and_multiplies_integers(family, config, exported):
    model = packed_model(family, **config)
    report = exported(export_openvino, family, **config)
    pixel_values = images(3, seed=5)
    expected = simulated_logits(model, pixel_values).numpy()
    found = answers(report.folder, pixel_values)
    # A value that moves across a rounding threshold changes one image by more; a wrong graph changes all of them.
    assert np.median(np.abs(found - expected).max(1)) < 2e-6 * np.abs(expected).max()
    assert report.products.integer == report.products.total >= 9


@pytest.mark.parametrize(
    ("family", "config", "stored"), [("deit_two_heads", W2A2_BY_HEAD, "u2"), ("vit", W4A4, "i4")], ids=["2", "4"]
)
def test_weights_are_stored_in_the_narrowest_type(family, config, stored, exported):
    report = exported(export_openvino, family, **config)
    nodes = openvino.Core().read_model(report.folder / "model.xml").get_ordered_ops()
    types = [node.get_element_type().get_type_name() for node in nodes if node.get_type_name() == "Constant"]
    assert types.count(stored) == 6  # q, k, v, o, fc1, fc2


def test_swin_moves_its_windows_in_bytes(exported):
    model = openvino.Core().read_model(exported(export_openvino, "swin", **W4A4).folder / "model.xml")
    model.reshape([2, *list(model.input(0).partial_shape)[1:]])
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    moves = Counter(
        (fact["layerType"].astype(str), fact["runtimePrecision"].astype(str))
        for fact in facts
        if fact["layerType"].astype(str) in MOVING
    )
    # In both layers windows are gathered and put back, and keys are transposed.
    assert moves["Gather", "i8"] == 4
    assert moves["Transpose", "i8"] == 2
    # In floating point there are only the merging of neighbours, and two steps of the mean over the tokens.
    assert moves.total() == 9
