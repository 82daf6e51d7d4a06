"""The oscillation tracker on a model: counting, saving, restoring."""

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import tiny_quantized_vit, tiny_vit

from hf_vaq.nn import weight_quantized_modules
from hf_vaq.nn.fusion import set_fusion
from hf_vaq.training import OSCILLATION_NAME, OscillationTracker

NAME = "vit.layers.1.mlp.fc1"


def flip(model, index=(0, 0)):
    """Move one weight of one layer from its code to one level below or back, and return how many weights there are."""
    module = model.get_submodule(NAME)
    with torch.no_grad():
        scale = module.weight_quantizer.scale(module.weight)[0]
        up = module.weight_quantizer.codes(module.weight)[index] < 0
        module.weight[index] = 0.0 if up else -scale
    return sum(m.weight.numel() for _, m in weight_quantized_modules(model))


def test_a_weight_that_flips_at_every_step_is_counted_in_its_module():
    model = tiny_quantized_vit()
    tracker = OscillationTracker(momentum=0.5, threshold=0.6)
    flip(model)
    tracker.start(model)
    percentages = []
    for _ in range(4):
        total = flip(model)
        tracker.update(model)
        percentages.append(tracker.percentage())
    # Oscillations from the second change on: frequencies 0, 0.5, 0.75, 0.875 against the threshold 0.6.
    one = pytest.approx(100 / total, rel=1e-5)
    assert percentages == [0, 0, one, one]
    by_module = tracker.percentage_by_module()
    assert by_module[NAME] == pytest.approx(100 / model.get_submodule(NAME).weight.numel(), rel=1e-5)
    assert [share for name, share in by_module.items() if name != NAME] == [0] * (len(by_module) - 1)


def test_a_fused_model_is_counted_alike():
    models = [tiny_quantized_vit(), tiny_quantized_vit()]
    trackers = [OscillationTracker(momentum=0.1, threshold=0.05) for _ in models]
    set_fusion(models[1], True)
    for step in range(8):
        for model, tracker in zip(models, trackers, strict=True):
            generator = torch.Generator().manual_seed(step)
            for _, module in weight_quantized_modules(model):
                module.weight.data.add_(0.02 * torch.randn(module.weight.shape, generator=generator))
            if step == 0:
                tracker.start(model)
            else:
                tracker.update(model)
    assert trackers[0].percentage() > 1
    assert trackers[0].percentage_by_module() == trackers[1].percentage_by_module()


def test_a_restored_tracker_continues_as_the_first_would(tmp_path):
    model = tiny_quantized_vit()
    first, second = OscillationTracker(0.5, 0.6), OscillationTracker(0.5, 0.6)
    first.start(model)
    for _ in range(3):
        flip(model)
        first.update(model)
    first.save(tmp_path)
    second.load(tmp_path, model)
    for _ in range(2):
        flip(model)
        flip(model, (3, 1))
        first.update(model)
        second.update(model)
        assert second.percentage_by_module() == first.percentage_by_module()
    assert first.percentage() > 0


def test_the_file_holds_two_tensors_per_module_in_the_shape_of_its_weight(tmp_path):
    model = tiny_quantized_vit()
    tracker = OscillationTracker()
    tracker.start(model)
    tracker.save(tmp_path)
    tensors = load_file(tmp_path / OSCILLATION_NAME)
    modules = dict(weight_quantized_modules(model))
    assert tensors.keys() == {f"{name}.{field}" for name in modules for field in ("codes", "history")}
    module = modules[NAME]
    assert torch.equal(tensors[f"{NAME}.codes"], module.weight_quantizer.codes(module.weight))
    assert [path.name for path in tmp_path.iterdir()] == [OSCILLATION_NAME]


def test_the_state_of_another_model_is_refused_by_the_name_of_a_tensor(tmp_path):
    tracker = OscillationTracker()
    tracker.start(tiny_quantized_vit())
    tracker.save(tmp_path)
    other = tiny_quantized_vit()
    other.get_submodule(NAME).weight = torch.nn.Parameter(torch.zeros(4, 4))
    with pytest.raises(ValueError, match=rf"'{NAME}.codes' has shape .*\[32, 16\]"):
        OscillationTracker().load(tmp_path, other)


def test_a_checkpoint_without_the_state_starts_anew(tmp_path):
    tracker = OscillationTracker()
    tracker.load(tmp_path, tiny_quantized_vit())
    assert tracker.percentage() == 0


def test_a_model_without_quantized_weights_has_nothing_to_track(tmp_path):
    tracker = OscillationTracker()
    tracker.start(tiny_vit())
    tracker.update(tiny_vit())
    tracker.save(tmp_path)
    assert tracker.percentage() is None
    assert tracker.percentage_by_module() == {}
    assert list(tmp_path.iterdir()) == []
