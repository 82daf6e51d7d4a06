"""Peak memory: of a known allocation, and of a model in a process of its own."""

import sys

import pytest
import torch
from helpers import build

from hf_vaq.speed import measure_memory
from hf_vaq.speed.memory import PeakMemory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="peaks of the resident set are read from Linux")
MEGABYTE = 1 << 20


def test_the_peak_holds_a_tensor_that_is_gone():
    memory = PeakMemory()
    before = memory.reset()
    tensor = torch.ones(64 * MEGABYTE, dtype=torch.uint8)
    del tensor
    assert 60 * MEGABYTE < memory.peak() - before < 80 * MEGABYTE
    assert memory.now() - before < 16 * MEGABYTE


def test_a_new_peak_does_not_hold_the_old_one():
    memory = PeakMemory()
    memory.reset()
    tensor = torch.ones(64 * MEGABYTE, dtype=torch.uint8)
    del tensor
    before = memory.reset()
    assert memory.peak() - before < 16 * MEGABYTE


def test_a_model_is_measured_in_a_process_of_its_own(tmp_path):
    # Two wide layers of 26 MB in a model that is tiny otherwise; running it touches all of them.
    build("vit", intermediate_size=50_000).save_pretrained(tmp_path)
    use = measure_memory(tmp_path, [1, 2], threads=1)
    weights = 4 * 2 * 2 * 32 * 50_000
    assert list(use.running) == [1, 2]
    assert use.runtime > 50 * MEGABYTE
    assert 0 <= use.loaded <= use.loading < 2.5 * weights
    assert weights < use.running[1] < 3 * weights


def test_a_model_that_does_not_exist_is_refused_before_a_process_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/not/started")
    with pytest.raises(ValueError, match=r"The model .*absent.* cannot be loaded"):
        measure_memory(tmp_path / "absent")


def test_a_process_that_fails_is_an_error_with_its_last_line(tmp_path, monkeypatch):
    build("vit").save_pretrained(tmp_path)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback >&2\necho 'MemoryError: full' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(ValueError, match=r"The memory of .* could not be measured: MemoryError: full"):
        measure_memory(tmp_path)
