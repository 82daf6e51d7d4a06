"""A tiny recipe for the tests of the commands."""

from pathlib import Path

import yaml

TINY = {
    "model_config": {
        "model_type": "vit",
        "image_size": 8,
        "patch_size": 4,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
    "dataset": "digits",
    "train_split": "train[:64]",
    "eval_split": "test[:40]",
    "horizontal_flip": 0,
    "float_num_train_epochs": 1,
    "weight_bits": 2,
    "activation_bits": 2,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 20,
    "calibration_batches": 2,
    "learning_rate": "5e-4",
    "save_strategy": "epoch",
    "use_cpu": True,
    "disable_tqdm": True,
}


def write_recipe(folder: Path, **values) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **values}))
    return path
