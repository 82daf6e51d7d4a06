"""Checkpoints: resuming continues bit for bit, and the best checkpoint comes back whole."""

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import Images, arguments, states_equal, tiny_quantized_vit, tiny_vit
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

from hf_vaq.training import OSCILLATION_NAME, VaqTrainer

BUILD = {"full precision": tiny_vit, "quantized": tiny_quantized_vit}
CLOCK = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos"}
CLOCK |= {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}


def build(folder, model, **fields):
    """Dropout, random transforms and a teacher; four steps make an epoch."""
    defaults = {
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "learning_rate": 2e-2,
        "oscillation_momentum": 0.5,
        "oscillation_threshold": 0.1,
    }
    return VaqTrainer(
        model,
        arguments(folder, **defaults | fields),
        train_dataset=Images(noise=0.5),
        eval_dataset=Images(8),
        teacher=tiny_vit(1, initializer_range=0.5),
    )


def history(trainer):
    """Everything logged but the times."""
    logs = [{key: value for key, value in entry.items() if key not in CLOCK} for entry in trainer.state.log_history]
    return [entry for entry in logs if entry.keys() - {"epoch", "step"}]


def optimizer_state(trainer):
    return {
        f"{index}.{key}": value
        for index, state in trainer.optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.parametrize("step", [4, 6], ids=["between epochs", "within the second epoch"])
@pytest.mark.parametrize("workers", [0, 1])
def test_resuming_continues_bit_for_bit(tmp_path, kind, step, workers):
    fields = {"dataloader_num_workers": workers, "dataloader_multiprocessing_context": "fork" if workers else None}
    whole = build(tmp_path / "whole", BUILD[kind](dropout=0.2), **fields)
    whole.train()
    # Another start, and other draws: everything has to come from the checkpoint.
    resumed = build(tmp_path / "resumed", BUILD[kind](seed=5, dropout=0.2), **fields)
    torch.rand(7)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert resumed.state.global_step == 8
    assert states_equal(resumed.model.state_dict(), whole.model.state_dict())
    assert states_equal(optimizer_state(resumed), optimizer_state(whole))
    assert resumed.lr_scheduler.state_dict() == whole.lr_scheduler.state_dict()
    assert history(resumed) == history(whole)
    assert len({entry["loss"] for entry in history(whole) if "loss" in entry}) == 8
    if kind == "quantized":
        last = [entry for entry in history(whole) if "loss" in entry][-1]
        assert last["oscillation_percentage"] > 0
        assert len(last["oscillation_by_module"]) == 14


def test_images_are_transformed_anew_in_every_epoch(tmp_path):
    trainer = build(tmp_path, tiny_vit(), eval_strategy="no", save_strategy="no")
    seen = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    trainer.train()
    images = torch.cat(seen)
    assert len(torch.unique(images, dim=0)) == len(images) == 32


@pytest.mark.parametrize("kind", BUILD)
def test_the_best_checkpoint_comes_back_whole(tmp_path, kind):
    model = BUILD[kind]()
    fields = {"load_best_model_at_end": True, "eval_steps": 2, "metric_for_best_model": "score"}
    trainer = build(tmp_path, model, max_steps=8, **fields)
    scores = iter([0.3, 0.9, 0.5, 0.1, 0.0])  # the second evaluation is the best
    trainer.compute_metrics = lambda prediction: {"score": next(scores)}
    trainer.train()
    best = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    last = load_file(tmp_path / "checkpoint-8" / "model.safetensors")
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    assert states_equal(model.state_dict(), best)
    assert not states_equal(best, last)
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("kind", BUILD)
def test_checkpoints_are_ordinary_models(tmp_path, kind):
    trainer = build(tmp_path, BUILD[kind](), max_steps=2)
    trainer.train()
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "checkpoint-2")
    assert states_equal(loaded.state_dict(), trainer.model.state_dict())
    assert (tmp_path / "checkpoint-2" / OSCILLATION_NAME).exists() == (kind == "quantized")


def test_a_model_loaded_from_an_older_key_layout_is_resumed_whole(tmp_path):
    tiny_vit().save_pretrained(tmp_path / "older")  # writes the names of older versions
    assert "vit.encoder.layer.0.attention.attention.query.weight" in load_file(
        tmp_path / "older" / "model.safetensors"
    )
    whole = build(tmp_path / "run", AutoModelForImageClassification.from_pretrained(tmp_path / "older"))
    whole.train()
    resumed = build(tmp_path / "run2", AutoModelForImageClassification.from_pretrained(tmp_path / "older"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))
    assert states_equal(resumed.model.state_dict(), whole.model.state_dict())


def test_a_checkpoint_that_lacks_tensors_is_refused(tmp_path):
    # The plain Trainer writes names that its own resume does not read back: here that is an error.
    args = TrainingArguments(str(tmp_path), max_steps=1, save_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    Trainer(tiny_vit(), args, train_dataset=Images()).train()
    trainer = build(tmp_path / "mine", tiny_vit())
    with pytest.raises(ValueError, match=r"the checkpoint lacks \d+ tensors of the model, first 'vit\."):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
