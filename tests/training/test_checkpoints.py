"""Checkpoints are complete as soon as they have their name, and one that is complete is always there."""

import json
import os
import shutil
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import Images, arguments, states_equal, tiny_quantized_vit

from hf_vaq.training import CheckpointError, VaqTrainer
from hf_vaq.training.checkpoints import last_complete_checkpoint, missing_part, remove_old_checkpoints
from hf_vaq.training.publishing import PublishesPackedModels


def trainer(folder, **fields):
    fields = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3} | fields
    return VaqTrainer(tiny_quantized_vit(), arguments(folder, **fields), train_dataset=Images())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three complete checkpoints; copied before they are damaged."""
    folder = tmp_path_factory.mktemp("run")
    trainer(folder).train()
    return folder


@pytest.fixture
def copy(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_a_checkpoint_gets_its_name_when_all_of_it_is_there(tmp_path, monkeypatch):
    seen = []
    save = VaqTrainer._save_rng_state

    def watch(self, output_dir):
        save(self, output_dir)
        seen.append((sorted(path.name for path in tmp_path.iterdir()), len(os.listdir(output_dir))))

    monkeypatch.setattr(VaqTrainer, "_save_rng_state", watch)
    trainer(tmp_path, max_steps=2).train()
    first, second = seen
    assert first[0] == [".checkpoint-1.partial-save"] and first[1] > 5
    assert second[0] == [".checkpoint-2.partial-save", "checkpoint-1"]
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-1", "checkpoint-2", "oscillation"]


def test_the_manifest_lists_every_file(run):
    folder = run / "checkpoint-3"
    manifest = json.loads((folder / "checkpoint.json").read_text())
    sizes = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "crc32": zlib.crc32(path.read_bytes())}
        for path in folder.rglob("*")
        if path.is_file()
    }
    del sizes["checkpoint.json"]
    assert manifest == {"format_version": 1, "step": 3, "processes": 1, "files": sizes}
    needed = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"}
    assert needed | {"oscillation.safetensors", "oscillation/trajectories.parquet"} <= sizes.keys()


def test_a_damaged_checkpoint_is_passed_over(copy):
    assert last_complete_checkpoint(copy) == str(copy / "checkpoint-3")
    optimizer = copy / "checkpoint-3" / "optimizer.pt"
    size = optimizer.stat().st_size
    optimizer.write_bytes(optimizer.read_bytes()[:-1])
    assert missing_part(copy / "checkpoint-3") == f"optimizer.pt has {size - 1} bytes, expected {size}"
    assert last_complete_checkpoint(copy) == str(copy / "checkpoint-2")
    (copy / "checkpoint-2" / "model.safetensors").unlink()
    assert missing_part(copy / "checkpoint-2") == "it lacks model.safetensors"
    (copy / "checkpoint-1" / "checkpoint.json").write_text("{")
    assert missing_part(copy / "checkpoint-1") == "its checkpoint.json cannot be read"
    assert last_complete_checkpoint(copy) is None
    assert last_complete_checkpoint(copy / "absent") is None
    assert missing_part(copy / "checkpoint-9") == "there is no such folder"


@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors", "trainer_state.json", "scheduler.pt"])
def test_one_flipped_bit_is_noticed_and_the_file_named(copy, name, caplog):
    path = copy / "checkpoint-3" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(content)
    assert missing_part(copy / "checkpoint-3") == f"{name} is damaged: its checksum is not the one in checkpoint.json"
    assert last_complete_checkpoint(copy) == str(copy / "checkpoint-2")


def test_weights_alone_are_not_resumed(tmp_path):
    trainer(tmp_path, save_only_model=True, max_steps=1).train()
    reason = r"it has no optimizer and no scheduler.pt: a run cannot go on from weights alone \(save_only_model\)"
    for given in (True, str(tmp_path / "checkpoint-1")):
        with pytest.raises(ValueError, match=reason):
            trainer(tmp_path).train(resume_from_checkpoint=given)


def test_a_checkpoint_of_another_trainer_counts_when_it_has_its_state(copy):
    (copy / "checkpoint-3" / "checkpoint.json").unlink()
    assert missing_part(copy / "checkpoint-3") is None
    (copy / "checkpoint-3" / "trainer_state.json").unlink()
    assert missing_part(copy / "checkpoint-3") == "it has no trainer_state.json"


def test_true_resumes_from_the_last_complete_one(copy):
    (copy / "checkpoint-3" / "scheduler.pt").unlink()
    (copy / ".checkpoint-3.partial-save").mkdir()
    resumed = trainer(copy, max_steps=4)
    steps = []
    resumed.tracker.on_optimizer_step = lambda *args, **kwargs: steps.append(resumed.state.global_step)
    resumed.train(resume_from_checkpoint=True)
    assert steps == [2, 3]
    assert not (copy / ".checkpoint-3.partial-save").exists()
    assert last_complete_checkpoint(copy) == str(copy / "checkpoint-4")


def test_a_checkpoint_that_is_named_has_to_be_complete(copy, tmp_path):
    (copy / "checkpoint-3" / "scheduler.pt").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-3', which is not complete \(it lacks scheduler\.pt\)"):
        trainer(copy).train(resume_from_checkpoint=str(copy / "checkpoint-3"))
    with pytest.raises(ValueError, match="no such folder"):
        trainer(copy).train(resume_from_checkpoint=str(copy / "checkpoint-8"))
    with pytest.raises(ValueError, match="holds no complete checkpoint"):
        trainer(tmp_path / "new").train(resume_from_checkpoint=True)


def test_old_checkpoints_go_after_the_new_one_is_complete(tmp_path, monkeypatch):
    before = []
    monkeypatch.setattr(
        "hf_vaq.training.checkpoints.remove_old_checkpoints",
        lambda newest, limit, best: (
            before.append(sorted(path.name for path in tmp_path.glob("checkpoint-*"))),
            remove_old_checkpoints(newest, limit, best),
        ),
    )
    trainer(tmp_path, save_total_limit=1).train()
    assert before == [["checkpoint-1"], ["checkpoint-1", "checkpoint-2"], ["checkpoint-2", "checkpoint-3"]]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]


@pytest.mark.parametrize(
    ("newest", "limit", "best", "left"),
    [
        (9, 2, None, [5, 9]),
        (9, None, None, [1, 3, 5, 9]),
        (9, 0, None, [1, 3, 5, 9]),
        (9, 1, 3, [3, 9]),
        (9, 3, 1, [1, 5, 9]),
        (3, 1, None, [3]),  # resumed from an early one: the new one stays, though others have more steps
        (9, 7, None, [1, 3, 5, 9]),
    ],
)
def test_the_newest_and_the_best_stay(tmp_path, newest, limit, best, left):
    for step in (1, 3, 5, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
    best = None if best is None else str(tmp_path / f"checkpoint-{best}")
    remove_old_checkpoints(tmp_path / f"checkpoint-{newest}", limit, best)
    assert sorted(int(path.name.split("-")[1]) for path in tmp_path.iterdir()) == left


def test_the_best_checkpoint_is_known_by_its_final_name(tmp_path):
    scores = iter([0.1, 0.9, 0.5])
    best = VaqTrainer(
        tiny_quantized_vit(),
        arguments(
            tmp_path,
            max_steps=3,
            save_strategy="steps",
            save_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            metric_for_best_model="score",
            greater_is_better=True,
            save_total_limit=1,
        ),
        train_dataset=Images(),
        eval_dataset=Images(8),
        compute_metrics=lambda prediction: {"score": next(scores)},
    )
    best.train()
    expected = str(tmp_path / "checkpoint-2")
    assert best.state.best_model_checkpoint == expected
    for step in (2, 3):
        state = tmp_path / f"checkpoint-{step}" / "trainer_state.json"
        if state.exists():
            assert json.loads(state.read_text())["best_model_checkpoint"] == expected
    # With a limit of one the Trainer removes all but the best one when training ends.
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_push_begins_when_the_checkpoint_has_its_name(tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(
        PublishesPackedModels,
        "_push_from_checkpoint",
        lambda self, folder: pushed.append((Path(folder).name, missing_part(folder))),
    )
    monkeypatch.setattr(PublishesPackedModels, "init_hf_repo", lambda self, **kwargs: None)
    trainer(tmp_path, max_steps=2, push_to_hub=True).train()
    assert pushed == [("checkpoint-1", None), ("checkpoint-2", None)]


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    save, limits = VaqTrainer._save_checkpoint, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(self, *args):
        # A limit of the kernel on the size of files, here 4 kB: writing fails in all libraries as on a full disk.
        if self.state.global_step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            save(self, *args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(VaqTrainer, "_save_checkpoint", limited)
    with pytest.raises(CheckpointError) as caught:
        trainer(tmp_path).train()
    monkeypatch.undo()
    message = str(caught.value)
    assert f"checkpoint-2 cannot be written to '{tmp_path}': File too large" in message
    assert message.endswith("checkpoint-1 is complete: make room and resume from it.")
    assert os.listdir(tmp_path) == ["checkpoint-1"] and missing_part(tmp_path / "checkpoint-1") is None
    whole = trainer(tmp_path / "whole")
    whole.train()
    trainer(tmp_path).train(resume_from_checkpoint=True)
    expected = load_file(tmp_path / "whole" / "checkpoint-3" / "model.safetensors")
    assert states_equal(load_file(tmp_path / "checkpoint-3" / "model.safetensors"), expected)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_the_reason_is_named_whatever_torch_says(tmp_path, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "save", fail)
    monkeypatch.setattr("hf_vaq.training.checkpoints.write_problem", lambda folder: "No space left on device")
    with pytest.raises(CheckpointError, match=r"checkpoint-1 cannot be .* No space left on device .* No checkpoint"):
        trainer(tmp_path).train()
    assert os.listdir(tmp_path) == []


def test_errors_that_have_nothing_to_do_with_the_disk_stay_as_they_are(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("another thing")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="another thing"):
        trainer(tmp_path).train()
