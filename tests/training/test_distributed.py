"""Several processes train as one does: on one machine, on two, and with a sharded model."""

import json
import os
import signal
import socket
import sys
import time

import pytest
import torch
from distributed_helpers import ADAM, LOGGED, WEIGHTS_ONLY, finish, launch, output, train
from safetensors.torch import load_file
from training_helpers import states_equal
from transformers import AutoModelForImageClassification

from hf_vaq.training import OSCILLATION_NAME
from hf_vaq.training.checkpoints import missing_part

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def two_machines(scenario, folder):
    """Two launchers that meet at an address, with one process each."""
    meeting = ["--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{free_port()}", "--rdzv_id=test"]
    return [
        launch(scenario, folder, "--nnodes=2", f"--node_rank={node}", "--nproc_per_node=1", *meeting)
        for node in range(2)
    ]


def ranks(folder):
    return [load_file(folder / f"rank{rank}.safetensors") for rank in (0, 1)]


def assert_close(found, expected, rtol=1e-4, atol=1e-6):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=rtol, atol=atol, msg=lambda text, name=name: name + text)


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp") / "run"
    processes = two_machines("ddp", folder)
    assert finish(processes) == [0, 0], "".join(output(process)[-3000:] for process in processes)
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp") / "run"
    process = launch("fsdp", folder, "--nproc_per_node=2", "--standalone")
    assert finish([process]) == [0], output(process)[-5000:]
    return folder


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    train(folder / "weights", quantization=WEIGHTS_ONLY)
    train(folder / "adam", **ADAM)
    train(folder / "all")
    return folder


@pytest.mark.parametrize("kind", ["all", "adam", "weights"])
def test_weights_scales_and_logs_are_equal_on_every_process(two_nodes, kind):
    assert states_equal(*ranks(two_nodes / kind))
    checkpoint = two_nodes / kind / "checkpoint-4"
    assert (checkpoint / OSCILLATION_NAME).exists() and missing_part(checkpoint) is None
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(os.listdir(checkpoint))
    manifest = json.loads((checkpoint / "checkpoint.json").read_text())
    assert manifest["processes"] == 2 and "rng_state_1.pth" in manifest["files"]
    assert not list((two_nodes / kind).glob(".*"))


def test_two_machines_start_from_the_scales_of_one_process(two_nodes, one_process):
    first, second = ranks(two_nodes / "all")
    alone = load_file(one_process / "all" / "rank0.safetensors")
    scales = [name for name in alone if name.startswith("start.")]
    assert len(scales) == 34
    for name in scales:
        assert torch.equal(first[name], second[name]) and torch.equal(first[name], alone[name]), name


def test_two_machines_end_as_one_process(two_nodes, one_process):
    # The same sums in another order; float32 leaves 1e-6 of it after four steps.
    assert_close(ranks(two_nodes / "weights")[0], load_file(one_process / "weights" / "rank0.safetensors"))


def test_quantized_activations_leave_a_difference_of_their_gradient_factor(two_nodes, one_process):
    # As published, the gradient of an activation scale is divided by a root of the number of activations in the batch
    # of a process, which is half as large: the scales move 1.4 times as far in a step, and all else follows.
    found, alone = ranks(two_nodes / "all")[0], load_file(one_process / "all" / "rank0.safetensors")
    torch.testing.assert_close(found.pop("logs"), alone.pop("logs"), rtol=2e-2, atol=1e-2)
    assert_close(found, alone, rtol=0, atol=1e-3)


def test_sharded_processes_agree_with_replicated_ones(sharded, two_nodes):
    # The same batches in the same processes: what is left is the order in which two gradients are added.
    found, other = ranks(sharded / "adam")
    assert states_equal(found, other)
    assert_close(found, ranks(two_nodes / "adam")[0], rtol=1e-5, atol=1e-6)


def test_sharded_processes_with_accumulation_agree_with_one_process(sharded, one_process):
    found = ranks(sharded / "weights")
    assert states_equal(*found)
    assert_close(found[0], load_file(one_process / "weights" / "rank0.safetensors"))
    # Values of the regularizer, its weight, the gradient norm before clipping and the oscillations among them.
    logged = found[0]["logs"][-1]
    assert logged[LOGGED.index("bin_regularizer")] > 1e-3 and logged[LOGGED.index("oscillation_percentage")] > 0


def test_checkpoints_of_sharded_models_are_ordinary_models(sharded):
    checkpoint = sharded / "adam" / "checkpoint-4"
    assert missing_part(checkpoint) is None
    model = AutoModelForImageClassification.from_pretrained(checkpoint).eval()
    assert type(model).__name__ == "ViTForImageClassification" and model.config.architectures == [type(model).__name__]
    found = ranks(sharded / "adam")[0]
    for name, value in model.state_dict().items():
        assert torch.equal(value, found[name]), name
    packed = AutoModelForImageClassification.from_pretrained(sharded / "packed").eval()
    assert packed.config.quantization_config.packed
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(packed(images).logits, model(images).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_deepspeed_zero_2_agrees_with_one_process(tmp_path, one_process):
    pytest.importorskip("deepspeed", reason='needs pip install "hf-vaq[deepspeed]"')
    folder = tmp_path / "run"
    process = launch("zero2", folder, "--nproc_per_node=2", "--standalone")
    assert finish([process], timeout=600) == [0], output(process)[-5000:]
    found = ranks(folder / "weights")
    assert states_equal(*found)
    assert_close(found[0], load_file(one_process / "weights" / "rank0.safetensors"))
    assert missing_part(folder / "weights" / "checkpoint-4") is None
    packed = AutoModelForImageClassification.from_pretrained(folder / "packed")
    assert packed.config.quantization_config.packed


@pytest.mark.parametrize("machines", [1, 2])
def test_a_process_that_dies_takes_the_others_with_it(tmp_path, machines):
    folder = tmp_path / "run"
    if machines == 1:
        # Of forks it would name one, which need not be the one that died first.
        processes = [launch("dying", folder, "--nproc_per_node=2", "--standalone", command=TORCHRUN)]
    else:
        processes = two_machines("dying", folder)
    begun = [folder / "rank0.json", folder / "rank1.json"]
    while not all(path.exists() and path.read_text() for path in begun):
        assert all(process.poll() is None for process in processes), "".join(output(p)[-3000:] for p in processes)
        time.sleep(0.1)
    os.kill(json.loads(begun[1].read_text()), signal.SIGKILL)
    # Within a minute: otherwise `finish` raises.
    codes = finish(processes, timeout=60)
    assert all(code != 0 for code in codes), codes
    messages = "".join(output(process) for process in processes)
    assert "rank      : 1" in messages and "Signal 9 (SIGKILL)" in messages, messages[-3000:]
