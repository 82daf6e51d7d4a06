"""Settings that hold for every test."""

import gc
import os

# Before torch and huggingface_hub are imported: pytest-xdist runs a process a core, and nothing may go to the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import transformers

# A million objects of libraries are made while tests are imported and collected, and none of them is garbage.
gc.disable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `-n`: a half each in order, so that modules stay whole, and whoever is done takes over from the other.

    xdist's own choice hands out pieces that nobody takes back; with the last one, one process was busy for half a
    minute and the other was not.
    """
    if config.getvalue("dist") == "load":
        from xdist.scheduler import WorkStealingScheduling

        return WorkStealingScheduling(config, log)


@pytest.fixture(autouse=True, scope="module")
def _libraries_are_no_garbage():
    """Keep what lives before a module's tests out of later collections: every run of a Trainer asks for two.

    They went through all objects of torch and transformers again, which took a third of the time of such a test.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _quiet_and_seeded():
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
