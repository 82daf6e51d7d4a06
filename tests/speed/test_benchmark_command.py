"""`hf-vaq benchmark`: every form of a model, what is printed and written, and what is refused."""

import json
import math

import pytest
import torch
from helpers import build, images

import hf_vaq
from hf_vaq.cli import main
from hf_vaq.speed import BenchmarkSettings, benchmark, benchmark_model, runtimes


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    build("deit").save_pretrained(root / "float")
    build("deit", image_size=16).save_pretrained(root / "smaller")
    model = hf_vaq.quantize(build("deit"), hf_vaq.QuantConfig(weight_bits=4, activation_bits=4))
    hf_vaq.calibrate(model, [images()])
    model.save_pretrained(root / "trained")
    hf_vaq.pack(model).save_pretrained(root / "packed")
    return root


FAST = ["--runs", "2", "--threads", "1", "--no_memory", "--device", "cpu"]
KEYS = {"model", "form", "execution", "float_model", "device", "threads", "runs", "speeds", "costs", "notes"}
KEYS |= {"rejected_rounds", "foreign_cores", "quiet", "command", "machine"}


@pytest.mark.parametrize("form", ["float", "trained", "packed"])
def test_every_form_is_measured_beside_float32(folders, form, tmp_path, capsys):
    output = tmp_path / "deep" / "result.json"
    command = ["benchmark", str(folders / form), *FAST, "--backends", "eager", "--output", str(output)]
    assert main([*command, "--batch-sizes", "1", "3"]) == 0
    result = json.loads(output.read_text())
    assert set(result) == KEYS and list(result["speeds"]) == ["1", "3"]
    names = ["float32"] if form == "float" else ["float32", "eager"]
    for batch_size, speeds in result["speeds"].items():
        assert list(speeds) == names
        for speed in speeds.values():
            latency, ratio = speed["latency"], speed["speed_up"]
            assert 0 < latency["low"] <= latency["median"] <= latency["high"]
            assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"] and math.isfinite(ratio["high"])
            assert speed["images_per_second"] == pytest.approx(int(batch_size) / latency["median"])
        assert speeds["float32"]["speed_up"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    sizes = {name: cost["size_bytes"] for name, cost in result["costs"].items()}
    assert sizes["float32"] == (folders / "float" / "model.safetensors").stat().st_size
    if form != "float":
        assert sizes["model"] == (folders / form / "model.safetensors").stat().st_size
    captured = capsys.readouterr()
    assert result["execution"] in captured.out and "batch size 3" in captured.out and "1 / 1.0" in captured.out
    assert "timing" in captured.err


def test_the_execution_of_a_packed_model_is_its_own_word(folders):
    result = benchmark_model(folders / "packed", settings=settings())
    packed = hf_vaq.pack(hf_vaq_trained(folders))
    assert result.execution == packed.execution and result.form == "packed"


def test_a_named_float_model_is_the_one_compared_with(folders):
    result = benchmark_model(folders / "packed", folders / "float", settings())
    assert result.float_model == str(folders / "float")


def test_compiled_models_are_compiled_as_their_form_wants_it(folders, monkeypatch):
    compiled = []
    monkeypatch.setattr(runtimes, "compile_model", lambda model: compiled.append("integer") or model)
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append("stock") or model)
    result = benchmark_model(folders / "packed", settings=settings(backends=["eager", "compiled"]))
    assert list(result.speeds[1]) == ["float32", "eager", "float32, compiled", "compiled"]
    assert compiled == ["stock", "integer"]


def test_memory_is_measured_of_both_models(folders, monkeypatch):
    seen = []
    use = hf_vaq.speed.MemoryUse(runtime=9, loading=2_000_000, loaded=3, running={1: 4_000_000})

    def measured(folder, batch_sizes, **arguments):
        seen.append((folder.name, (folder / "model.safetensors").stat().st_size, list(batch_sizes), arguments))
        return use

    monkeypatch.setattr(benchmark, "measure_memory", measured)
    result = benchmark_model(folders / "packed", settings=settings(memory=True))
    assert [name for name, *_ in seen] == ["float32", "model"]
    assert seen[1][1:] == (result.costs["model"].size_bytes, [1], {"threads": 1, "device": "cpu"})
    assert result.costs["model"].memory == use and "2.00 MB" in result.tables() and "running 1" in result.tables()


def test_a_busy_machine_is_named_in_the_output(folders):
    class Busy:
        def start(self):
            pass

        def cores(self):
            return 1.0

        def disturbs(self, cores, seconds):
            return True

    result = benchmark_model(folders / "packed", settings=settings(), load=Busy())
    assert not result.quiet and "these times say little" in result.tables()


def test_missing_extras_are_left_out_with_the_command_that_installs_them(monkeypatch):
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None if name == "openvino" else object())
    chosen, left_out = runtimes.choose_backends(None, torch.device("cpu"))
    assert chosen == ["eager", "compiled", "onnx"]
    assert left_out == {"openvino": "openvino is not installed: pip install 'hf-vaq[openvino]'"}


def test_a_named_backend_whose_extra_is_missing_is_refused(folders, monkeypatch, capsys):
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)
    assert main(["benchmark", str(folders / "packed"), *FAST, "--backends", "openvino"]) == 1
    assert "pip install 'hf-vaq[openvino]'" in capsys.readouterr().err


def test_exports_are_measured_on_the_cpu_only():
    chosen, left_out = runtimes.choose_backends(None, torch.device("cuda"))
    assert chosen == ["eager", "compiled"] and "measured on the CPU, not on 'cuda'" in left_out["onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "The model 'absent' cannot be loaded"),
        (["packed", "--batch_sizes", "1", "0"], "batch_sizes holds 0; accepted: 1 and above"),
        (["packed", "--runs", "0"], "runs holds 0"),
        (["packed", "--threads", "-1"], "threads holds -1"),
        (["packed", "--backends", "tensorrt"], "backends holds 'tensorrt'; accepted: 'eager', 'compiled'"),
        (["packed", "--float", "trained"], "is quantized (training form)"),
        (["packed", "--float", "smaller"], "has image_size 16, the model itself has 32"),
        (["packed", "--output", "."], "which is a folder"),
    ],
)
def test_bad_input_is_refused_with_one_line(folders, arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(folders)
    assert main(["benchmark", arguments[0], *FAST, "--backends", "eager", *arguments[1:]]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and message in captured.err and "Traceback" not in captured.err


def test_the_number_of_threads_is_put_back(folders):
    before = torch.get_num_threads()
    benchmark_model(folders / "float", settings=settings(threads=before + 1))
    assert torch.get_num_threads() == before


def settings(**values):
    return BenchmarkSettings(
        **{"batch_sizes": [1], "runs": 1, "threads": 1, "device": "cpu", "backends": ["eager"], "memory": False}
        | values
    )


def hf_vaq_trained(folders):
    from transformers import AutoModelForImageClassification

    return AutoModelForImageClassification.from_pretrained(folders / "trained").eval()
