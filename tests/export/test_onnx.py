"""Exports to ONNX: equal answers, integer products, narrow weights."""

import collections

import numpy as np
import pytest
import torch
from export_helpers import packed_model, simulated_logits
from helpers import FAMILIES, images

from hf_vaq.export import export_onnx
from hf_vaq.export.narrow import code_bits, onnx_opset, pack_little_endian, runtime_has_int2

onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")

BY_HEAD = {"weight_granularity": "head", "activation_granularity": "head"}
W4A4 = {"weight_bits": 4, "activation_bits": 4}


def answers(folder, pixel_values):
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": pixel_values.numpy()})[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_the_packed_model_and_multiplies_integers(family, exported):
    model = packed_model(family, weight_bits=2, activation_bits=3)
    report = exported(export_onnx, family, weight_bits=2, activation_bits=3)
    pixel_values = images(3, seed=5)
    expected = simulated_logits(model, pixel_values).numpy()
    np.testing.assert_allclose(answers(report.folder, pixel_values), expected, atol=1e-6 * np.abs(expected).max())
    assert report.products.integer == report.products.total >= 9


def test_an_image_with_nan_has_nan_for_an_answer(exported):
    report = exported(export_onnx, "vit", weight_bits=2, activation_bits=3)
    pixel_values = images(3, seed=5)
    expected = answers(report.folder, pixel_values)
    pixel_values[1, 0, 7, 7] = np.nan
    found = answers(report.folder, pixel_values)
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize(
    "config",
    [
        {"weight_bits": 4, "activation_bits": 4, **BY_HEAD},
        {"weight_bits": 3, "activation_bits": 2, "weight_granularity": "channel"},
        {"weight_bits": 4, "activation_bits": 4, "weight_granularity": "head"},
        {"weight_bits": 8, "activation_bits": 8, "activation_granularity": "head"},
    ],
    ids=lambda config: "-".join(map(str, config.values())),
)
def test_every_granularity_and_width_is_an_integer_product(config, exported):
    model = packed_model("vit", **config)
    report = exported(export_onnx, **config)
    pixel_values = images(2, seed=5)
    expected = simulated_logits(model, pixel_values).numpy()
    np.testing.assert_allclose(answers(report.folder, pixel_values), expected, atol=1e-6 * np.abs(expected).max())
    assert report.products.integer == report.products.total


@pytest.mark.parametrize(
    "config",
    [
        {"weight_bits": 4, "activation_bits": None},
        {"weight_bits": None, "activation_bits": 4},
        {"weight_bits": 4, "activation_bits": 4, "quantize_attention": False},
        {"weight_bits": 4, "activation_bits": 4, "edge_bits": None},
    ],
    ids=["weights", "activations", "no_attention", "no_edges"],
)
def test_what_is_not_quantized_stays_in_floating_point(config, exported):
    model = packed_model("vit", **config)
    report = exported(export_onnx, **config)
    pixel_values = images(2, seed=5)
    expected = simulated_logits(model, pixel_values).numpy()
    np.testing.assert_allclose(answers(report.folder, pixel_values), expected, atol=1e-5 * np.abs(expected).max())
    assert report.products.integer < report.products.total


@pytest.mark.parametrize(
    ("config", "opset", "stored"),
    [
        ({"weight_bits": 2, "activation_bits": 3}, 25, "INT2"),
        ({"weight_bits": 3, "activation_bits": 2, "weight_granularity": "channel"}, 21, "INT4"),
        (W4A4, 21, "INT4"),
    ],
    ids=["2", "3", "4"],
)
def test_weights_are_stored_in_the_narrowest_type_of_the_stated_opset(config, opset, stored, exported):
    if stored == "INT2" and not runtime_has_int2():
        opset, stored = 21, "INT4"
    written = onnx.load(exported(export_onnx, **config).folder / "model.onnx")
    onnx.checker.check_model(written, full_check=True)
    assert onnx_opset(written) == opset
    tensors = [tensor for tensor in written.graph.initializer if tensor.dims]
    types = collections.Counter(onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in tensors)
    assert types[stored] == 6  # q, k, v, o, fc1, fc2
    codes = packed_model("vit", **config).vit.layers[0].mlp.fc1.codes().numpy()
    matches = [
        tensor for tensor in tensors if "layers.0.mlp.fc1" in tensor.name and tensor.name.endswith(stored.lower())
    ]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(matches[0]).astype(np.int8), codes.T)


def test_the_batch_is_free_and_the_image_size_fixed(exported):
    folder = exported(export_onnx, **W4A4).folder
    assert [answers(folder, images(count)).shape for count in (1, 5)] == [(1, 3), (5, 3)]
    with pytest.raises(Exception, match="invalid dimensions"):
        answers(folder, images(1, size=40))


def test_the_file_names_no_place_of_this_machine(exported):
    content = (exported(export_onnx, **W4A4).folder / "model.onnx").read_bytes()
    assert b"site-packages" not in content and b".py" not in content


@pytest.mark.parametrize("bits", [2, 4])
def test_packed_integers_are_read_back_by_onnx(bits):
    codes = np.random.default_rng(0).integers(-(1 << bits - 1), 1 << bits - 1, (3, 5), dtype=np.int8)
    data_type = {2: onnx.TensorProto.INT2, 4: onnx.TensorProto.INT4}[bits]
    tensor = onnx.TensorProto(dims=codes.shape, data_type=data_type, raw_data=pack_little_endian(codes, bits))
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), codes)


@pytest.mark.parametrize(("codes", "bits"), [([-2, 1], 2), ([-2, 2], 4), ([-3, 1], 4), ([-8, 7], 4), ([0, 8], 8)])
def test_the_narrowest_width_holds_every_code(codes, bits):
    assert code_bits(np.array(codes)) == bits


def test_the_packed_model_is_left_as_it_was(exported):
    exported(export_onnx, **W4A4)
    model, other = packed_model("vit", **W4A4), packed_model.__wrapped__("vit", **W4A4)  # that was never exported
    assert (model.config._attn_implementation, model.execution) == (other.config._attn_implementation, other.execution)
    assert other.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(other.state_dict()[name], value) for name, value in model.state_dict().items())
    assert torch.equal(simulated_logits(other, images()), simulated_logits(model, images()))
