"""Checks on data that the project does not ship, run by name: HF_VAQ_DATA=path/to/data pytest -m real_data."""

import os
from pathlib import Path

import pytest

from hf_vaq.job import run_recipe
from hf_vaq.recipe import load_recipe

pytestmark = pytest.mark.real_data


@pytest.fixture
def real_data():
    root = os.environ.get("HF_VAQ_DATA")
    if root is None:
        pytest.skip("HF_VAQ_DATA is not set (docs/benchmarks.md says what it names)")
    paths = [Path(root) / part for part in ("vit_tiny_patch16_224_in1k", "imagenette_small")]
    for path in paths:
        if not path.exists():
            pytest.skip(f"HF_VAQ_DATA has no {path.name}")
    return paths


def test_eight_bits_by_calibration_alone_cost_at_most_one_point_of_a_real_checkpoint(real_data, tmp_path):
    model, dataset = map(str, real_data)
    overrides = ["--model", model, "--dataset", dataset, "--output_dir", str(tmp_path / "run")]
    result = run_recipe(load_recipe("imagenette/vit_tiny_w8a8", overrides))
    assert result.quantized.num_images == 1000
    assert result.full_precision.top1 == pytest.approx(71.6, abs=0.3)
    assert abs(result.difference) <= 1.0
    assert result.quantized.size_bytes < result.full_precision.size_bytes / 3.7
