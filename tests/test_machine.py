"""What the machine says of its processor, on Linux and elsewhere."""

import platform

import pytest

from hf_vaq import machine


@pytest.fixture
def cpuinfo(monkeypatch, tmp_path):
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "CPUINFO", path)
    return path


def test_linux_names_vendor_and_processor(cpuinfo):
    cpuinfo.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n")
    assert machine.processor_vendor() == "AuthenticAMD"
    assert machine.machine()["processor"] == "AMD EPYC"


@pytest.mark.parametrize(
    ("processor", "vendor"),
    [("Intel64 Family 6 Model 165 Stepping 2, GenuineIntel", "GenuineIntel"), ("arm", ""), ("", "")],
)
def test_other_systems_describe_it_as_they_do(cpuinfo, monkeypatch, processor, vendor):
    monkeypatch.setattr(platform, "processor", lambda: processor)
    assert machine.processor_vendor() == vendor
    assert machine.machine()["processor"] == (processor or platform.machine())


def test_an_arm_processor_under_linux_has_no_vendor(cpuinfo, monkeypatch):
    monkeypatch.setattr(platform, "processor", lambda: "")
    cpuinfo.write_text("processor\t: 0\nBogoMIPS\t: 50.00\n")
    assert machine.processor_vendor() == "" and machine.machine()["processor"] == platform.machine()
