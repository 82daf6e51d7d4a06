"""Training from stored labels: the loss, what is counted, resuming, several processes, what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from soft_label_helpers import files_of, photographs, processor, store_of, teacher

sys.path.append(str(Path(__file__).parents[1] / "training"))
import torchrun
from training_helpers import Images, arguments, states_equal, tiny_quantized_vit, tiny_vit

from hf_vaq.training import VaqTrainer


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return store_of(photographs(), tmp_path_factory.mktemp("labels") / "store")


def trainer_of(labels, folder, model=None, images=None, num_crops=2, own=None, **fields):
    return VaqTrainer(
        model or tiny_vit(),
        arguments(folder, **fields),
        train_dataset=images or photographs(),
        eval_dataset=Images(8),
        processing_class=own or processor(),
        soft_labels=labels,
        num_crops=num_crops,
    )


def watch(trainer):
    """Collect the pixel values that the model gets in training."""
    seen = []

    def hook(module, args, kwargs):
        if module.training:
            seen.append(kwargs["pixel_values"].clone())

    trainer.model.register_forward_pre_hook(hook, with_kwargs=True)
    return seen


@pytest.mark.parametrize("recovery", ["smoothing", "renormalization"])
def test_the_loss_is_the_soft_cross_entropy_with_the_stored_labels(labels, tmp_path, recovery):
    model = tiny_vit(initializer_range=0.5)
    trainer = trainer_of(labels, tmp_path, model, soft_label_recovery=recovery, max_steps=1)
    items = trainer.train_dataset.__getitems__(range(4))
    with torch.no_grad():
        logits = model(pixel_values=torch.stack([item["pixel_values"] for item in items])).logits.double()
    targets = torch.stack([item["soft_labels"] for item in items]).double()
    assert not ((targets == 0) | (targets == 1)).all()
    expected = -(targets * (logits - logits.exp().sum(-1, keepdim=True).log())).sum(-1).mean()
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert logged["distillation_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert "hard_label_loss" not in logged


def test_the_labels_of_the_images_play_no_part(labels, tmp_path):
    plain, unlabelled = (
        trainer_of(labels, tmp_path / name, images=images, max_steps=3)
        for name, images in (("a", photographs()), ("b", photographs().remove_columns("label")))
    )
    plain.train()
    unlabelled.train()
    assert states_equal(plain.model.state_dict(), unlabelled.model.state_dict())
    assert "eval_loss" in plain.evaluate(), "the evaluation has hard labels as ever"


def test_batches_epochs_and_schedule_are_counted_in_crops(labels, tmp_path):
    # 12 images: an epoch is 12 crops whatever M; three batches of four crops.
    for num_crops in (1, 2, 4):
        fields = {"max_steps": -1, "num_train_epochs": 4, "learning_rate": 1.0, "lr_scheduler_type": "linear"}
        trainer = trainer_of(labels, tmp_path, num_crops=num_crops, **fields, max_grad_norm=1e-9)
        seen = watch(trainer)
        trainer.train()
        assert trainer.state.global_step == 12
        assert [len(batch) for batch in seen] == [4] * 12
        rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
        assert rates == pytest.approx([1 - step / 12 for step in range(12)])
        assert trainer.state.log_history[2]["epoch"] == 1
        assert trainer.num_examples(trainer.get_train_dataloader()) == 12
        assert len(torch.unique(torch.cat(seen), dim=0)) == 48, "no crop twice in 48 of 72"


def test_the_last_batch_that_is_not_full_is_dropped(labels, tmp_path):
    trainer = trainer_of(labels, tmp_path, per_device_train_batch_size=8, max_steps=-1, num_train_epochs=2)
    seen = watch(trainer)
    trainer.train()
    assert [len(batch) for batch in seen] == [8, 8]


@pytest.mark.parametrize(("step", "workers"), [(3, 0), (5, 1)], ids=["between epochs", "within an epoch, workers"])
def test_resuming_continues_bit_for_bit(labels, tmp_path, step, workers):
    fields = {"max_steps": 8, "save_strategy": "steps", "save_steps": step, "learning_rate": 2e-2}
    fields |= {"dataloader_num_workers": workers, "dataloader_multiprocessing_context": "fork" if workers else None}
    whole = trainer_of(labels, tmp_path / "whole", tiny_quantized_vit(dropout=0.2), **fields)
    shown = watch(whole)
    whole.train()
    resumed = trainer_of(labels, tmp_path / "resumed", tiny_quantized_vit(seed=5, dropout=0.2), **fields)
    shown_again = watch(resumed)
    torch.rand(7)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert torch.equal(torch.stack(shown_again), torch.stack(shown[step:]))
    assert states_equal(resumed.model.state_dict(), whole.model.state_dict())
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (whole, resumed)]
    assert losses[0] == losses[1] and len(set(losses[0])) == 8


def test_a_quantized_student_is_calibrated_on_stored_crops(labels, tmp_path):
    from hf_vaq.calibration import is_calibrated

    trainer = trainer_of(labels, tmp_path, tiny_quantized_vit(), max_steps=1)
    trainer.train()
    assert is_calibrated(trainer.model)


def test_classes_in_another_order_are_matched_by_name(tmp_path):
    model = teacher()
    model.config.id2label = {0: "ant", 1: "bee", 2: "cat"}
    labels = store_of(photographs(), tmp_path / "store", model)
    student = tiny_vit()
    student.config.id2label = {0: "cat", 1: "ant", 2: "bee"}
    ordered = trainer_of(labels, tmp_path, student).train_dataset
    student.config.id2label = model.config.id2label
    plain = trainer_of(labels, tmp_path, student).train_dataset
    assert torch.equal(ordered[0]["soft_labels"], plain[0]["soft_labels"][[2, 0, 1]])
    student.config.id2label = {0: "cat", 1: "ant", 2: "dog"}
    with pytest.raises(ValueError, match=r"different labels.*'dog'.*'bee'"):
        trainer_of(labels, tmp_path, student)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": tiny_vit(num_labels=4)}, r"have 3 classes, the model 4 \(config.num_labels\)"),
        ({"hard_label_weight": 0.5}, "hard_label_weight=0.5: expected 0 with soft_labels"),
        ({"distillation_temperature": 2.0}, "distillation_temperature=2.0: expected 1 with soft_labels"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1: expected 0 with soft_labels"),
        ({"per_device_train_batch_size": 5}, "per_device_train_batch_size=5: expected a multiple of num_crops=2"),
        ({"per_device_train_batch_size": 14}, "the batch of all processes has 14 crops, an epoch only 12"),
        ({"num_crops": 8}, "num_crops is 8; accepted: 1 to 6"),
        ({"labels": "nowhere/at/all"}, "there is no such folder"),
    ],
)
def test_what_does_not_fit_is_refused(labels, tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(**{"labels": labels, "folder": tmp_path, **fields})


def test_what_is_missing_is_named(labels, tmp_path):
    args = arguments(tmp_path)
    with pytest.raises(ValueError, match="without a train_dataset"):
        VaqTrainer(tiny_vit(), args, soft_labels=labels, processing_class=processor())
    with pytest.raises(ValueError, match="without the student's image processor"):
        VaqTrainer(tiny_vit(), args, soft_labels=labels, train_dataset=photographs())
    with pytest.raises(ValueError, match="teacher and soft_labels exclude each other"):
        VaqTrainer(tiny_vit(), args, soft_labels=labels, train_dataset=photographs(), teacher=tiny_vit(1))


def test_other_images_and_damaged_shards_are_refused_before_training(labels, tmp_path):
    import shutil

    trainer = trainer_of(labels, tmp_path, images=photographs(seed=1))
    with pytest.raises(ValueError, match="do not belong to these images"):
        trainer.train()
    copy = Path(shutil.copytree(labels.folder, tmp_path / "copy"))
    path = copy / "data" / "labels-00001.arrow"
    content = bytearray(path.read_bytes())
    content[-300] ^= 255
    path.write_bytes(content)
    trainer = trainer_of(copy, tmp_path)
    with pytest.raises(ValueError, match=r"labels-00001.arrow is damaged"):
        trainer.train()
    assert trainer.state.global_step == 0


def two_processes(folder):
    """What each of two processes does: label together, then train together, keeping what the model sees."""
    labels = store_of(photographs(), folder / "store", images_per_shard=2)
    fields = {"max_steps": -1, "num_train_epochs": 4, "ddp_backend": "gloo", "optim": "sgd", "learning_rate": 0.1}
    trainer = trainer_of(labels, folder / "out", per_device_train_batch_size=2, **fields)
    seen = watch(trainer)
    trainer.train()
    rank = trainer.args.process_index
    save_file({"seen": torch.stack(seen), **trainer.model.state_dict()}, folder / f"rank{rank}.safetensors")


def test_two_processes_label_as_one_and_see_no_crop_twice(tmp_path):
    command = [*torchrun.COMMAND, "--nproc_per_node=2", "--standalone", __file__, str(tmp_path)]
    environment = torchrun.environment_of()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one = store_of(photographs(), tmp_path / "one", images_per_shard=2)
    assert files_of(tmp_path / "store") == files_of(one.folder)

    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1)]
    seen = torch.stack([rank.pop("seen") for rank in ranks], 1)
    assert seen.shape == (12, 2, 2, 3, 8, 8), "four epochs of three steps, with two crops on each process"
    for epoch in range(4):
        crops = seen[3 * epoch : 3 * epoch + 3].flatten(0, 2)
        assert len(torch.unique(crops, dim=0)) == 12
    assert states_equal(*ranks)

    alone = trainer_of(one, tmp_path / "out1", max_steps=-1, num_train_epochs=4, optim="sgd", learning_rate=0.1)
    shown = watch(alone)
    alone.train()
    assert torch.equal(torch.stack(shown).flatten(0, 1), seen.flatten(0, 2)), "the same crops in the same steps"


if __name__ == "__main__":
    two_processes(Path(sys.argv[1]))
