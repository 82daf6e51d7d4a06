"""Settings that hold for every test."""

import os

# Before torch and huggingface_hub are imported: pytest-xdist runs a process a core, and nothing may go to the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import transformers


@pytest.fixture(autouse=True)
def _quiet_and_seeded():
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
