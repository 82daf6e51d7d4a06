"""Foreign load from the counters of the system, with counters that the test writes."""

import os

import pytest

from hf_vaq.speed import CpuUse, ForeignLoad, read_cpu_use


def watch(readings, **settings):
    readings = iter(readings)
    return ForeignLoad(read=lambda: next(readings), **settings)


def test_own_work_is_not_foreign():
    load = watch([CpuUse(10.0, 100.0, 5.0), CpuUse(12.0, 104.0, 8.5)], threads=2, cores=2)
    load.start()
    assert load.cores() == pytest.approx(0.25)  # in 2 s the machine worked 4 s, this process 3.5 s of them


def test_rounding_of_the_counters_gives_no_negative_load():
    load = watch([CpuUse(0.0, 0.0, 0.0), CpuUse(1.0, 0.99, 1.0)], threads=1, cores=2)
    load.start()
    assert load.cores() == 0.0


def test_without_counters_the_load_is_unknown_and_disturbs_nothing():
    load = watch([None, None], threads=2)
    load.start()
    assert load.cores() is None and not load.disturbs(None, 1.0)


def test_a_measurement_on_all_cores_bears_a_tenth_of_a_core():
    load = ForeignLoad(threads=2, cores=2)
    assert not load.disturbs(0.09, 10.0) and load.disturbs(0.2, 10.0)


def test_idle_cores_may_be_used_by_others_in_part():
    load = ForeignLoad(threads=2, cores=10)
    assert not load.disturbs(2.0, 10.0) and load.disturbs(2.2, 10.0)


def test_over_a_short_time_ticks_are_no_evidence():
    load = ForeignLoad(threads=2, cores=2)
    assert not load.disturbs(0.2, 0.1) and load.disturbs(0.2, 1.0)


def test_the_counters_are_read_as_the_system_writes_them(tmp_path):
    path = tmp_path / "stat"
    path.write_text("cpu  100 20 30 4000 500 6 7 8 90 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    # all but idle and waiting; guest time is within user time
    assert read_cpu_use(path).machine == pytest.approx((100 + 20 + 30 + 6 + 7 + 8) / os.sysconf("SC_CLK_TCK"))


def test_a_system_without_the_counters_is_no_error(tmp_path):
    assert read_cpu_use(tmp_path / "absent") is None
