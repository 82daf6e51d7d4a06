import pytest
import torch
from helpers import build, images

import hf_vaq
from hf_vaq import QuantConfig
from hf_vaq.nn import activation_quantizers


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
