"""What the tests of several processes run in each of them, and how they start them.

A script: `python distributed_helpers.py SCENARIO FOLDER`, where SCENARIO is the name of a function below.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
import torchrun
from accelerate import PartialState
from accelerate.state import DistributedType
from safetensors.torch import save_file
from training_helpers import Images, arguments, states_equal, tiny_quantized_vit, tiny_vit
from transformers import TrainerCallback, ViTImageProcessor

from hf_vaq import calibrate, pack
from hf_vaq.nn import quantizer_parameter_names
from hf_vaq.training import VaqTrainer
from hf_vaq.training.sharding import is_sharded, unsharded

# Gradients of activation scales depend, as published, on the size of a process's batch: with plain gradient descent
# only these runs can be equal for every number of processes.
WEIGHTS_ONLY = {"activation_bits": None, "edge_bits": None}
LOGGED = ("loss", "grad_norm", "distillation_loss", "hard_label_loss", "bin_regularizer", "lambda")
LOGGED += ("oscillation_percentage",)
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-3, "max_grad_norm": 0.0, "calibrated": True}
FSDP = {"fsdp": True, "fsdp_config": {"version": 2}}
AUTOMATIC = ("train_micro_batch_size_per_gpu", "train_batch_size", "gradient_accumulation_steps", "gradient_clipping")
ZERO2 = {
    "deepspeed": {
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        **dict.fromkeys(AUTOMATIC, "auto"),
    }
}


class ScalesAtTheStart(TrainerCallback):
    """Keeps the scales and offsets with which training begins."""

    def on_train_begin(self, args, state, control, model, **kwargs):
        with unsharded(model):
            names = quantizer_parameter_names(model)
            self.scales = {name: p.detach().clone() for name, p in model.named_parameters() if name in names}


def build(folder, batch=8, quantization=None, seed=0, calibrated=False, processing_class=None, **fields):
    """A trainer whose processes and accumulated batches take 8 images a step together."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    accumulated = fields.get("gradient_accumulation_steps", 1)
    defaults = {
        "optim": "sgd",
        "learning_rate": 0.5,
        "hard_label_weight": 0.5,
        "bin_regularization": 1.0,
        "bin_regularization_start": 0.0,
        "oscillation_momentum": 0.5,
        "oscillation_threshold": 0.1,
        "save_strategy": "steps",
        "save_steps": 2,
        # The same images in every run, however they are cut into batches.
        "calibration_batches": processes * accumulated,
        "per_device_train_batch_size": batch // processes // accumulated,
        "ddp_backend": "gloo" if processes > 1 else None,
    }
    args = arguments(folder, **defaults | fields)
    model, teacher = tiny_quantized_vit(seed, **quantization or {}), tiny_vit(1, initializer_range=0.5)
    if calibrated:
        calibrate(model, [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))])
    data = {"train_dataset": Images(noise=0.5), "processing_class": processing_class}
    trainer = VaqTrainer(model, args, teacher=teacher, **data)
    trainer.scales_at_the_start = ScalesAtTheStart()
    trainer.add_callback(trainer.scales_at_the_start)
    return trainer


def logs(trainer):
    """(steps, quantities) of what was logged."""
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return torch.tensor([[float(entry[key]) for key in LOGGED] for entry in history], dtype=torch.float64)


def train(folder, **fields):
    """Train, and save for this process its weights, its first scales and what it logged."""
    trainer = build(folder, **fields)
    trainer.train()
    with unsharded(trainer.model):
        state = (
            {name: tensor.detach().clone() for name, tensor in trainer.model.state_dict().items()}
            if not (is_sharded(trainer.model))
            else {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        )
        state |= {name: b.clone() for name, b in trainer.model.named_buffers() if name.endswith("calibrated")}
    scales = {f"start.{name}": value for name, value in trainer.scales_at_the_start.scales.items()}
    content = state | scales | {"logs": logs(trainer)}
    save_file(
        {name: tensor.contiguous() for name, tensor in content.items()},
        Path(folder) / f"rank{trainer.args.process_index}.safetensors",
    )
    return trainer


# Scenarios


def ddp(folder):
    """Quantized as published, with Adam and with plain gradient descent; and with weights quantized only."""
    train(f"{folder}/all")
    train(f"{folder}/adam", **ADAM)
    train(f"{folder}/weights", quantization=WEIGHTS_ONLY)


def fsdp(folder):
    """Sharded: as published, with accumulation, resumed, packed, and in bfloat16."""
    offer_fsdp_on_the_cpu()
    whole = train(f"{folder}/adam", **ADAM, **FSDP)
    assert is_sharded(whole.model)
    full = whole.full_model()
    assert (full is None) == (whole.args.process_index == 1)
    # Packed and ready to be sent on one process, from the parts of all.
    assert (whole._publication({}, {}) is None) == (full is None)
    if full is not None:
        pack(full).save_pretrained(f"{folder}/packed")
    resumed = build(f"{folder}/resumed", seed=5, **ADAM, **FSDP)
    resumed.train(resume_from_checkpoint=f"{folder}/adam/checkpoint-2")
    with unsharded(whole.model), unsharded(resumed.model):
        assert states_equal(dict(whole.model.named_parameters()), dict(resumed.model.named_parameters()))
    assert torch.equal(logs(whole), logs(resumed))
    train(f"{folder}/weights", quantization=WEIGHTS_ONLY, gradient_accumulation_steps=2, **FSDP)
    lower = build(f"{folder}/bf16", bf16=True, **FSDP)
    kinds = set()
    layer = lower.model.vit.layers[0].mlp.fc1
    layer.register_forward_pre_hook(
        lambda module, args: kinds.add((module.weight.dtype, module.weight_quantizer.log_scale.dtype))
    )
    lower.train()
    assert kinds == {(torch.float32, torch.float32)}, kinds


def zero2(folder):
    """DeepSpeed's ZeRO-2: gradients and the state of the optimizer are sharded."""
    quantization = {"quantization": WEIGHTS_ONLY, **ZERO2}
    whole = train(f"{folder}/weights", **quantization)
    resumed = build(f"{folder}/resumed", seed=5, **quantization)
    resumed.train(resume_from_checkpoint=f"{folder}/weights/checkpoint-2")
    assert states_equal(whole.model.state_dict(), resumed.model.state_dict())
    if whole.args.process_index == 0:
        pack(whole.full_model()).save_pretrained(f"{folder}/packed")


def publish_fsdp(folder):
    """Sharded, and published with its checkpoint and at the end."""
    offer_fsdp_on_the_cpu()
    publish(folder, **FSDP)


def publish_zero2(folder):
    """The same with DeepSpeed's ZeRO-2."""
    publish(folder, **ZERO2)


def publish(folder, **fields):
    """Train with `push_to_hub`; the first process packs and keeps what it trained."""
    target = {"push_to_hub": True, "hub_model_id": f"tester/{Path(folder).name}", "hub_strategy": "checkpoint"}
    trainer = build(folder, max_steps=2, processing_class=ViTImageProcessor(), **target, **fields)
    trainer.train()
    published = trainer.push_to_hub(license="mit")
    full = trainer.full_model()
    assert (published is None) == (trainer.args.process_index == 1)
    if published is not None:
        pack(full).save_pretrained(f"{folder}/packed")


def dying(folder):
    """Train for longer than anyone waits; say which process this is, and when it has begun."""
    trainer = build(folder, max_steps=100_000, save_strategy="no", logging_steps=1000)

    class Begun(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                Path(folder, f"rank{args.process_index}.json").write_text(json.dumps(os.getpid()))

    trainer.add_callback(Begun())
    trainer.train()


def offer_fsdp_on_the_cpu():
    """accelerate offers FSDP to accelerators only, though torch's `fully_shard` works on a CPU with gloo as well."""
    initialise = PartialState.__init__

    def initialise_as_on_gpus(self, *args, **kwargs):
        initialise(self, *args, **kwargs)
        if self._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
            self._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = initialise_as_on_gpus


# Starting processes


def launch(scenario, folder, *options, environment=None, command=torchrun.COMMAND):
    """Start torchrun with this script in the background; its output goes to a file beside `folder`.

    `environment` takes the place of this process's own variables, `command` that of torchrun with forks.
    """
    log = open(f"{folder}.{len(options)}.{time.monotonic_ns()}.log", "w+")  # noqa: SIM115
    process = subprocess.Popen(
        [*command, *options, __file__, scenario, str(folder)],
        env=torchrun.environment_of(environment or os.environ),
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    process.log = log
    return process


def output(process):
    """What a launched process has written so far."""
    process.log.seek(0)
    return process.log.read()


def finish(processes, timeout=300):
    """Wait for launched processes; end all that belong to them when one takes too long."""
    try:
        return [process.wait(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])
