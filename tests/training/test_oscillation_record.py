"""The record of oscillations that training leaves for the analysis."""

import json

import pyarrow.parquet as pq
import pytest
import torch
from training_helpers import Images, arguments, tiny_quantized_vit, tiny_vit

from hf_vaq.nn import weight_quantized_modules
from hf_vaq.training import RECORD_FOLDER, VaqTrainer
from hf_vaq.training.oscillation_record import DISTANCE_INTERVALS, TABLES, _is_due, distance_histogram

NAME = "vit.layers.1.mlp.fc1"


def train(folder, model=None, resume=None, **fields):
    model = model or tiny_quantized_vit()
    trainer = VaqTrainer(model, arguments(folder, **fields), train_dataset=Images())
    trainer.train(resume)
    return trainer


def read(folder):
    folder = folder / RECORD_FOLDER
    return {name: pq.read_table(folder / f"{name}.parquet").to_pydict() for name in TABLES}


def test_a_run_leaves_shares_scales_distances_and_trajectories_of_every_module(tmp_path):
    trainer = train(tmp_path)
    tables = read(tmp_path)
    modules = dict(weight_quantized_modules(trainer.model))
    for table in tables.values():
        assert sorted(set(table["step"])) == [0, 1, 2, 3, 4]
        assert set(table["module"]) == set(modules)
    final = {
        m: p
        for s, m, p in zip(*(tables["shares"][c] for c in ("step", "module", "percentage")), strict=True)
        if s == 4
    }
    assert final == pytest.approx(trainer.tracker.percentage_by_module())
    scale = [
        m for s, n, m in zip(*(tables["scales"][c] for c in ("step", "module", "mean")), strict=True)
        if (s, n) == (4, NAME)
    ]  # fmt: skip
    assert scale == pytest.approx(modules[NAME].weight_quantizer.scale(modules[NAME].weight).tolist())
    counted = sum(
        c for s, n, c in zip(*(tables["distances"][c] for c in ("step", "module", "count")), strict=True)
        if (s, n) == (4, NAME)
    )  # fmt: skip
    assert counted == modules[NAME].weight.numel()
    metadata = json.loads((tmp_path / RECORD_FOLDER / "record.json").read_text())
    assert metadata["modules"][NAME] == {"bits": 2, "weights": modules[NAME].weight.numel()}
    assert (metadata["steps"], metadata["bin_regularization"]) == (4, 0.01)


def test_the_last_positions_are_those_of_the_trained_weights(tmp_path):
    module = train(tmp_path).model.get_submodule(NAME)
    table = read(tmp_path)["trajectories"]
    rows = zip(*(table[c] for c in ("step", "module", "weight", "position")), strict=True)
    last = {weight: position for step, name, weight, position in rows if (step, name) == (4, NAME)}
    expected = (module.weight / module.weight_quantizer.scale(module.weight)).flatten()
    assert len(last) == 8
    assert last == pytest.approx({weight: expected[weight].item() for weight in last}, rel=1e-5)


def test_a_resumed_run_leaves_the_same_record_as_one_that_was_never_stopped(tmp_path):
    train(tmp_path / "whole", save_strategy="steps", save_steps=2)
    train(tmp_path / "parts", resume=str(tmp_path / "whole" / "checkpoint-2"))
    assert read(tmp_path / "parts") == read(tmp_path / "whole")


def test_distances_are_counted_by_code_and_by_interval():
    module = tiny_quantized_vit().get_submodule(NAME)
    scale = 0.5
    with torch.no_grad():
        module.weight_quantizer.log_scale.copy_(16 * torch.atanh(torch.tensor(scale).log() / 16))
        # In units of the scale, at 2 bits (codes -2..1, thresholds -1.5, -0.5, 0.5).
        module.weight.fill_(0.0)  # code 0, 0.5 from a threshold: the interval beyond, for it is 0.5 exactly
        for index, v in enumerate([-2.6, -1.51, -0.74, 0.26, 0.51, 1.7]):
            module.weight[0, index] = v * scale
    counts = distance_histogram(module)
    found = {(i - 2, j): counts[i, j].item() for i, j in counts.nonzero().tolist()}
    far = DISTANCE_INTERVALS
    assert found.pop((0, far)) == module.weight.numel() - 6
    # -2.6 is 1.1 away, -1.51 0.01, -0.74 0.24, 0.26 0.24, 0.51 0.01, 1.7 1.2
    width = 0.5 / DISTANCE_INTERVALS
    near, middle = int(0.01 / width), int(0.24 / width)
    assert found == {(-2, far): 1, (-2, near): 1, (-1, middle): 1, (0, middle): 1, (1, near): 1, (1, far): 1}


@pytest.mark.parametrize(("last", "points"), [(1, 5), (4, 5), (7, 3), (1000, 200), (1001, 200)])
def test_due_steps_are_as_few_as_asked_and_end_with_the_last(last, points):
    due = [step for step in range(1, last + 1) if _is_due(step, last, points)]
    assert due[-1] == last and len(due) <= points + 1


def test_no_record_without_tracking_or_without_quantized_weights(tmp_path):
    train(tmp_path / "untracked", oscillation_tracking=False)
    train(tmp_path / "float", model=tiny_vit())
    assert not (tmp_path / "untracked" / RECORD_FOLDER).exists()
    assert not (tmp_path / "float" / RECORD_FOLDER).exists()
