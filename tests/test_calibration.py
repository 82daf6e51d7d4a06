import pytest
import torch
from helpers import build, images

import hf_vaq
from hf_vaq import QuantConfig, calibrate, quantize
from hf_vaq.nn import ActivationQuantizer, activation_quantizers
from hf_vaq.nn.activation_statistics import ActivationStatistics
from hf_vaq.numerics.groups import ScaleGroups


def uncalibrated():
    return hf_vaq.quantize(build(), QuantConfig(weight_bits=3, activation_bits=3))


def scales(model):
    return torch.cat([quantizer.scale().detach() for _, quantizer in activation_quantizers(model)])


def test_mappings_and_tensors_give_the_same_scales_and_the_model_its_mode_back():
    first, second = uncalibrated().train(), uncalibrated().eval()
    hf_vaq.calibrate(first, [{"pixel_values": images(4), "labels": None}, {"pixel_values": images(4, seed=1)}])
    hf_vaq.calibrate(second, [images(4), images(4, seed=1)])
    assert torch.equal(scales(first), scales(second))
    assert first.training and not second.training


def test_max_batches_bounds_what_is_used():
    def endless():
        while True:
            yield images(2)

    first, second = uncalibrated(), uncalibrated()
    hf_vaq.calibrate(first, endless(), max_batches=2)
    hf_vaq.calibrate(second, [images(2), images(2)])
    assert torch.equal(scales(first), scales(second))


def test_calibration_beats_any_common_rescaling_of_its_scales():
    model = uncalibrated()
    hf_vaq.calibrate(model, [images(16)])
    errors = []
    handles = []
    for _, quantizer in activation_quantizers(model):

        def compare(module, args, output):
            errors.append(((output - args[0]).norm() / args[0].norm()).item())

        handles.append(quantizer.register_forward_hook(compare))
    with torch.no_grad():
        model.eval()(pixel_values=images(16))
        best = sum(errors)
        for shift in (-0.3, 0.3):
            errors.clear()
            for _, quantizer in activation_quantizers(model):
                quantizer.log_scale += shift
            model(pixel_values=images(16))
            assert best < sum(errors)
            for _, quantizer in activation_quantizers(model):
                quantizer.log_scale -= shift


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "yields no batch"),
        ([{"images": torch.zeros(1)}], r"a dict with keys \['images'\]: expected a tensor, or a mapping"),
        (
            [images(2) * float("nan")],
            r"vit\.embeddings\.patch_embeddings\.projection\.input_quantizer: .*NaN or infinite",
        ),
    ],
)
def test_unusable_batches_are_refused_and_leave_the_model_uncalibrated(batches, message):
    model = uncalibrated()
    with pytest.raises(ValueError, match=message):
        hf_vaq.calibrate(model, batches)
    assert not hf_vaq.is_calibrated(model)
    assert all(quantizer.statistics is None for _, quantizer in activation_quantizers(model))


def test_models_without_activation_quantizers_are_refused():
    with pytest.raises(ValueError, match="no activation quantizers"):
        hf_vaq.calibrate(build(), [images()])
    with pytest.raises(ValueError, match="max_batches=0"):
        hf_vaq.calibrate(uncalibrated(), [images()], max_batches=0)


@pytest.mark.parametrize("with_offset", [False, True])
@pytest.mark.parametrize("value", [0.0, 1e-42, 1e-38, 0.7, -0.7, 1e30, -3e38])
def test_constant_activations_give_positive_finite_scales(value, with_offset):
    groups = ScaleGroups(2, -1)
    for first in (value, 0.0):  # alone, and after a batch of zeros
        quantizer = ActivationQuantizer(4, groups, signed=not with_offset, with_offset=with_offset)
        statistics = ActivationStatistics(groups)
        statistics.update(torch.full((3, 4), first))
        statistics.update(torch.full((3, 4), value))
        quantizer.calibrate_from(statistics)
        assert (quantizer.scale() > 0).all() and quantizer.scale().isfinite().all()
        assert torch.isfinite(quantizer(torch.full((3, 4), value))).all()
        if abs(value) == 0.7 and (first or not with_offset) and (value > 0 or quantizer.signed or with_offset):
            torch.testing.assert_close(quantizer(torch.full((3, 4), value)), torch.full((3, 4), value))


@pytest.mark.parametrize("granularity", ["tensor", "head"])
def test_black_images_and_a_head_of_zeros_are_calibrated(granularity):
    model = build("vit")
    for layer in (model.vit.layers[0].attention.v_proj, model.vit.layers[0].attention.q_proj):
        half = len(layer.weight) // 2
        torch.nn.init.zeros_(layer.weight[:half]), torch.nn.init.zeros_(layer.bias[:half])
    quantize(model, QuantConfig(weight_bits=4, activation_bits=4, activation_granularity=granularity))
    calibrate(model, [torch.zeros_like(images())])
    assert all((q.scale() > 0).all() and q.scale().isfinite().all() for _, q in activation_quantizers(model))
    assert model.eval()(images()).logits.isfinite().all()
