"""The trainer with fused quantizers, and with the whole step compiled."""

import pytest
import torch
from training_helpers import Images, arguments, tiny_vit

from hf_vaq import QuantConfig, VaqTrainer, quantize
from hf_vaq.numerics.compiled import uncompiled


@pytest.fixture(autouse=True)
def _plain_kernels():
    with uncompiled():
        yield


def train(folder, **fields):
    model = quantize(tiny_vit(num_hidden_layers=1), QuantConfig(weight_bits=3, activation_bits=4))
    args = arguments(folder, bin_regularization=0.1, bin_regularization_start=0.0, **fields)
    trainer = VaqTrainer(model=model, args=args, train_dataset=Images())
    trainer.train()
    return trainer


def logged(trainer, key):
    return [entry[key] for entry in trainer.state.log_history if key in entry]


@pytest.mark.parametrize(
    "fields", [{"fuse_quantizers": True}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}]
)
def test_training_takes_the_same_course_as_without(tmp_path, fields):
    plain = train(tmp_path / "plain", fuse_quantizers=False)
    other = train(tmp_path / "other", **fields)
    assert not plain.model.vit.layers[0].mlp.fc1.fused
    assert other.model.vit.layers[0].mlp.fc1.fused is fields.get("fuse_quantizers", False)
    for key in ("loss", "bin_regularizer", "grad_norm"):
        assert logged(other, key) == pytest.approx(logged(plain, key), rel=2e-2), key
    assert logged(other, "oscillation_percentage") == logged(plain, "oscillation_percentage")
    torch._dynamo.reset()


def test_a_fused_run_repeats_to_the_last_bit(tmp_path):
    first = train(tmp_path / "first", fuse_quantizers=True).model.state_dict()
    second = train(tmp_path / "second", fuse_quantizers=True).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_wrong_choice_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"fuse_quantizers='yes': expected True, False or None"):
        arguments(tmp_path, fuse_quantizers="yes")
