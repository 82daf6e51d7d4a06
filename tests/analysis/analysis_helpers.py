"""What the tests of the analyses share."""

import torch
from helpers import build, images

import hf_vaq
from hf_vaq import QuantConfig
from hf_vaq.training import VaqTrainer, VaqTrainingArguments

TINY = {"hidden_size": 16, "intermediate_size": 32, "image_size": 8, "patch_size": 4}


class Labelled(torch.utils.data.Dataset):
    """Random images with the labels 0, 1, 2, 0, ..."""

    def __init__(self, count, seed=0, size=32):
        self.images = images(count, seed, size)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": index % 3}


def train(folder, steps, bin_regularization):
    """A run of a tiny 2-bit model, with its record."""
    model = hf_vaq.quantize(build("vit", **TINY), QuantConfig(weight_bits=2, activation_bits=4))
    arguments = VaqTrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        bin_regularization=bin_regularization,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    VaqTrainer(model, arguments, train_dataset=Labelled(8, size=8)).train()
