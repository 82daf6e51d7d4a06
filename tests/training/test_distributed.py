"""Two processes train as one does."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from training_helpers import Images, arguments, states_equal, tiny_quantized_vit, tiny_vit

from hf_vaq.training import OSCILLATION_NAME, VaqTrainer

# Gradients of activation scales depend, as published, on the size of a process's batch: only these runs can be equal.
WEIGHTS_ONLY = {"activation_bits": None, "edge_bits": None}


def train(folder, processes, **quantization):
    """Eight images a step, however many processes; every process saves its weights and what it logged."""
    fields = {"optim": "sgd", "learning_rate": 0.5, "hard_label_weight": 0.5, "save_strategy": "steps"}
    args = arguments(
        folder,
        per_device_train_batch_size=8 // processes,
        bin_regularization=1.0,
        bin_regularization_start=0.0,
        ddp_backend="gloo" if processes > 1 else None,
        **fields,
    )
    model, teacher = tiny_quantized_vit(**quantization), tiny_vit(1, initializer_range=0.5)
    trainer = VaqTrainer(model, args, train_dataset=Images(noise=0.5), teacher=teacher)
    trainer.train()
    keys = ("loss", "distillation_loss", "hard_label_loss", "bin_regularizer", "lambda")
    logs = [[entry[key] for key in keys] for entry in trainer.state.log_history if "loss" in entry]
    save_file(
        model.state_dict() | {"logs": torch.tensor(logs)}, Path(folder) / f"rank{args.process_index}.safetensors"
    )


def test_two_processes_end_with_equal_weights_and_those_of_one_process(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", __file__]
    # The helpers lie where pytest put them on the path of this process.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [*command, str(tmp_path / "two")], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in ("all", "weights"):
        ranks = [load_file(tmp_path / "two" / kind / f"rank{rank}.safetensors") for rank in (0, 1)]
        assert states_equal(*ranks), "weights, scales and logs must be equal on every process"
        assert (tmp_path / "two" / kind / "checkpoint-4" / OSCILLATION_NAME).exists()

    train(tmp_path / "one", processes=1, **WEIGHTS_ONLY)
    for name, value in load_file(tmp_path / "one" / "rank0.safetensors").items():
        # The same sums in another order; float32 leaves 1e-6 of it after four steps.
        torch.testing.assert_close(ranks[0][name], value, rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    processes = int(os.environ["WORLD_SIZE"])
    train(f"{sys.argv[1]}/all", processes)
    train(f"{sys.argv[1]}/weights", processes, **WEIGHTS_ONLY)
