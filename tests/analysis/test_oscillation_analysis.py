"""Reading the records of runs, against numbers written by hand."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_vaq.analysis import analyze_oscillation
from hf_vaq.training.oscillation_record import DISTANCE_INTERVALS, TABLES


def write_record(folder, **changes):
    """Two modules, a of 2 bits and 300 weights, b of 8 bits and 100; steps 0 and 10."""
    folder = folder / "oscillation"
    folder.mkdir(parents=True)
    metadata = {
        "format_version": 1,
        "steps": 10,
        "momentum": 0.001,
        "threshold": 0.005,
        "bin_regularization": 0.5,
        "modules": {"a": {"bits": 2, "weights": 300}, "b": {"bits": 8, "weights": 100}},
    }
    (folder / "record.json").write_text(json.dumps(metadata | changes))
    steps, modules = [0, 0, 10, 10], ["a", "b", "a", "b"]
    scales = [1.0, 2.0, 1.5, 1.0]
    tables = {
        "shares": {"percentage": [0.0, 0.0, 4.0, 80.0]},
        "scales": {"minimum": scales, "mean": scales, "maximum": scales},
        "distances": {
            "code": [-2, 0, -2, 0],
            "interval": [0, 5, DISTANCE_INTERVALS, 1],
            "count": [300, 100, 300, 100],
        },
        "trajectories": {"weight": [3, 4, 3, 4], "position": [0.4, 1.0, 0.6, 2.0]},
    }
    for name, columns in tables.items():
        schema = pa.schema(list(TABLES[name].items()))
        pq.write_table(
            pa.table({"step": steps, "module": modules, **columns}, schema=schema), folder / f"{name}.parquet"
        )


def test_totals_weigh_modules_by_their_weights(tmp_path):
    write_record(tmp_path / "run")
    result = analyze_oscillation([tmp_path / "run"])
    assert result.totals()["percentage"].tolist() == pytest.approx([0, (4 * 300 + 80 * 100) / 400])
    assert result.totals(lowest_bits=True)["percentage"].tolist() == pytest.approx([0, 4])


def test_the_summary_compares_the_end_with_the_start(tmp_path):
    write_record(tmp_path / "run")
    summary = analyze_oscillation([tmp_path / "run"]).summary().set_index("module")
    a, b = summary.loc["a"], summary.loc["b"]
    assert (a["percentage"], a["scale_change"], a["bits"], a["weights"]) == (4.0, 1.5, 2, 300)
    # Intervals 0 and 1 end at 0.05 scales.
    assert (a["near_threshold_before"], a["near_threshold"]) == (100, 0)
    assert (b["near_threshold_before"], b["near_threshold"], b["scale_change"]) == (0, 100, 0.5)


def test_the_histogram_counts_modules_of_equal_bits_together(tmp_path):
    write_record(tmp_path / "run")
    histogram = analyze_oscillation([tmp_path / "run"]).histogram("run")
    assert histogram["percentage"].tolist() == [100, 100]
    assert histogram["distance"].tolist() == pytest.approx([0.5 + 0.0125, 0.0375])


def test_runs_stand_side_by_side_under_names_that_differ(tmp_path):
    for name in ("first/run", "second/run"):
        write_record(tmp_path / name)
    result = analyze_oscillation([tmp_path / "first" / "run", tmp_path / "second" / "run"])
    assert list(result.runs) == ["first/run", "second/run"]
    assert set(result.shares["run"]) == set(result.runs)
    with pytest.raises(ValueError, match="given twice"):
        analyze_oscillation([tmp_path / "first" / "run"] * 2)


def test_of_an_unfinished_run_the_newest_checkpoint_counts(tmp_path):
    write_record(tmp_path / "run" / "checkpoint-5", steps=5)
    write_record(tmp_path / "run" / "checkpoint-10", steps=10)
    assert analyze_oscillation([tmp_path / "run"]).runs["run"]["steps"] == 10


@pytest.mark.parametrize("exists", [True, False])
def test_a_run_without_a_record_is_refused(tmp_path, exists):
    run = tmp_path / "run"
    if exists:
        run.mkdir()
    with pytest.raises(ValueError, match="no oscillation record.*oscillation_tracking" if exists else "is no folder"):
        analyze_oscillation([run])


def test_a_damaged_or_newer_record_is_refused(tmp_path):
    write_record(tmp_path / "cut")
    (tmp_path / "cut" / "oscillation" / "shares.parquet").write_bytes(b"PAR1")
    write_record(tmp_path / "newer", format_version=2)
    with pytest.raises(ValueError, match="cut/oscillation' cannot be read"):
        analyze_oscillation([tmp_path / "cut"])
    with pytest.raises(ValueError, match="format_version is 2, expected 1"):
        analyze_oscillation([tmp_path / "newer"])


def test_no_run_at_all_is_refused():
    with pytest.raises(ValueError, match="no run to analyze"):
        analyze_oscillation([])
