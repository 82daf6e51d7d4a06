"""A run that diverges stops with a name, and leaves the last good checkpoint as the newest."""

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import Images, arguments, states_equal, tiny_quantized_vit, tiny_vit
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_vaq.training import NonFiniteError, VaqTrainer
from hf_vaq.training.non_finite import check_gradients, first_non_finite_module, first_non_finite_tensor


class Break(TrainerCallback):
    """Breaks the model when a step begins or ends."""

    def __init__(self, step, action, when="on_step_begin"):
        def act(args, state, control, model, **kwargs):
            if state.global_step == step:
                with torch.no_grad():
                    action(model)

        setattr(self, when, act)


class OverflowingSquareRoot(torch.nn.Module):
    """Finite output, infinite gradient at zero."""

    def forward(self, x):
        return x + (0 * x).abs().sqrt()


def run(tmp_path, model, callback=None, teacher=None, dataset=None, **fields):
    args = arguments(tmp_path, save_strategy="steps", save_steps=1, max_steps=4, **fields)
    callbacks = [callback] if callback else None
    trainer = VaqTrainer(model, args, train_dataset=dataset or Images(), teacher=teacher, callbacks=callbacks)
    return trainer, pytest.raises(NonFiniteError)


def check_checkpoint(tmp_path, step):
    newest = get_last_checkpoint(str(tmp_path))
    assert newest.endswith(f"checkpoint-{step}")
    weights = load_file(f"{newest}/model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values() if tensor.is_floating_point())


def test_a_loss_of_nan_names_the_module_and_the_step_and_changes_nothing(tmp_path):
    model = tiny_quantized_vit()
    # The weight itself stays finite: only a run of the module shows the fault.
    handle = model.vit.layers[1].mlp.fc1

    def poison(model):
        handle.register_forward_hook(lambda module, args, output: output * float("inf"))

    trainer, expected = run(tmp_path, model, Break(2, poison))
    with expected as error:
        trainer.train()
    assert "not finite at step 2 (hard_label_loss nan)" in str(error.value)
    assert "'vit.layers.1.mlp.fc1' (QuantLinear)" in str(error.value)
    check_checkpoint(tmp_path, 2)
    assert states_equal(model.state_dict(), load_file(f"{tmp_path}/checkpoint-2/model.safetensors"))


def test_a_weight_of_nan_is_named_with_its_number_of_values(tmp_path):
    model = tiny_quantized_vit()
    trainer, expected = run(
        tmp_path, model, Break(1, lambda model: model.vit.layers[0].attention.q_proj.bias[:3].fill_(float("nan")))
    )
    with expected as error:
        trainer.train()
    assert "'vit.layers.0.attention.q_proj' (QuantLinear)" in str(error.value)
    assert "'vit.layers.0.attention.q_proj.bias' (3 of 16 values)" in str(error.value)
    check_checkpoint(tmp_path, 1)


def test_infinite_gradients_stop_the_run_before_the_step(tmp_path):
    model = tiny_vit()
    state = None

    def poison(model):
        nonlocal state
        model.vit.layernorm.register_forward_hook(lambda module, args, output: OverflowingSquareRoot()(output))
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    trainer, expected = run(tmp_path, model, Break(1, poison))
    with expected as error:
        trainer.train()
    assert "gradients are not finite at step 1: first that of 'vit.embeddings.cls_token'" in str(error.value)
    assert states_equal(model.state_dict(), state)
    check_checkpoint(tmp_path, 1)


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_gradients_are_looked_at_with_and_without_clipping(tmp_path, max_grad_norm):
    model = tiny_vit()
    model.classifier.weight.register_hook(lambda gradient: gradient * float("nan"))
    trainer, expected = run(tmp_path, model, max_grad_norm=max_grad_norm)
    with expected as error:
        trainer.train()
    assert "first that of 'classifier.weight'" in str(error.value)


def test_a_model_that_the_optimizer_broke_is_not_saved(tmp_path):
    def poison(model):
        model.classifier.bias.fill_(float("inf"))

    trainer, expected = run(tmp_path, tiny_vit(), Break(3, poison, when="on_step_end"))
    with expected as error:
        trainer.train()
    assert "after step 3 the model is not finite, first: 'classifier.bias' (3 of 3 values)" in str(error.value)
    check_checkpoint(tmp_path, 2)


def test_images_of_nan_are_blamed_and_not_the_model(tmp_path):
    images = Images(4)
    images.images[2] = float("nan")
    trainer, expected = run(tmp_path, tiny_vit(), dataset=images)
    with expected as error:
        trainer.train()
    assert "the images of the batch (pixel_values) hold NaN" in str(error.value)


def test_a_teacher_of_nan_is_blamed_and_not_the_model(tmp_path):
    teacher = tiny_vit(1)
    trainer, expected = run(tmp_path, tiny_vit(), teacher=teacher)
    with torch.no_grad():
        teacher.classifier.weight.fill_(float("nan"))
    with expected as error:
        trainer.train()
    assert "the logits of the teacher are not finite" in str(error.value)


def test_finite_models_have_nothing_to_report():
    model = tiny_vit()
    assert first_non_finite_module(model, {"pixel_values": torch.randn(1, 3, 8, 8)}) is None
    assert first_non_finite_tensor(model) is None
    model(torch.randn(1, 3, 8, 8)).logits.sum().backward()
    check_gradients(model, 0)
    assert not any(module._forward_hooks for module in model.modules())
