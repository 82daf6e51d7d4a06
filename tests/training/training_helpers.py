"""Tiny models, data and arguments for the tests of the trainer."""

import torch
from helpers import build

from hf_vaq import QuantConfig, quantize
from hf_vaq.training import VaqTrainingArguments


def tiny_vit(seed=0, dropout=0.0, **config):
    """Smaller than the shared one: the tests of the trainer build and train hundreds."""
    size = {"hidden_size": 16, "intermediate_size": 32, "image_size": 8, "patch_size": 4}
    return build("vit", seed, **size | {"hidden_dropout_prob": dropout} | config)


def tiny_quantized_vit(seed=0, dropout=0.0, weight_bits=2, activation_bits=4, **config):
    return quantize(
        tiny_vit(seed, dropout), QuantConfig(weight_bits=weight_bits, activation_bits=activation_bits, **config)
    )


class Images(torch.utils.data.Dataset):
    """Random images with labels that depend on them; `noise` adds a random transform."""

    def __init__(self, count=16, size=8, channels=3, labels=3, noise=0.0, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(count, channels, size, size, generator=generator)
        self.labels = self.images.mean((1, 2, 3)).argsort().argsort() * labels // max(count, 1)
        self.noise = noise

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        return {"pixel_values": image + self.noise * torch.randn(image.shape), "labels": int(self.labels[index])}


def arguments(folder, **fields):
    defaults = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    return VaqTrainingArguments(str(folder), **defaults | fields)


def states_equal(a, b):
    """Whether two state dictionaries hold the same tensors, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
