"""Random transforms depend on seed, epoch and index only."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hf_vaq.training.seeding import SeededDataset, seeded


class Noise:
    """Items drawn from all three generators."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor([index, torch.rand(()).item(), np.random.rand(), random.random()], dtype=torch.float64)


def test_items_do_not_depend_on_what_was_drawn_before():
    first = SeededDataset(Noise(), seed=0)
    alone = first[2].clone()
    torch.rand(5), np.random.rand(5), random.random()
    in_order = [first[i] for i in range(4)]
    assert torch.equal(in_order[2], alone)
    assert len({tuple(item[1:].tolist()) for item in in_order}) == 4


def test_epoch_and_seed_change_the_items():
    dataset = SeededDataset(Noise(), seed=0)
    first = dataset[1]
    dataset.set_epoch(1)
    assert not torch.equal(dataset[1], first)
    dataset.set_epoch(0)
    assert torch.equal(dataset[1], first)
    assert not torch.equal(SeededDataset(Noise(), seed=1)[1], first)


def test_the_generators_continue_as_if_nothing_had_been_read():
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = torch.rand(()).item(), np.random.rand(), random.random()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    SeededDataset(Noise(), seed=3)[0]
    assert (torch.rand(()).item(), np.random.rand(), random.random()) == expected


def test_the_generators_are_put_back_after_an_error():
    state = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(1):
        torch.rand(1)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_that_outlive_an_epoch_see_the_next_one():
    dataset = SeededDataset(Noise(), seed=0)
    loader = DataLoader(dataset, batch_size=2, num_workers=1, persistent_workers=True, multiprocessing_context="fork")
    for epoch in range(2):
        dataset.set_epoch(epoch)
        assert torch.equal(torch.cat(list(loader)), torch.stack([dataset[i] for i in range(4)]))
