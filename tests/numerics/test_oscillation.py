"""Oscillation tracking against code sequences worked out by hand."""

import pytest
import torch

from hf_vaq.numerics.oscillation import Oscillations, oscillation_percentage


def run(sequence, momentum):
    """Feed one code per step (each entry: the codes of all weights) and return frequencies and directions."""
    oscillations = Oscillations(torch.tensor(sequence[0], dtype=torch.int8), momentum)
    states = [(oscillations.frequency, oscillations.direction)]
    for codes in sequence[1:]:
        oscillations.update(torch.tensor(codes, dtype=torch.int8))
        states.append((oscillations.frequency, oscillations.direction))
    assert oscillations.codes.tolist() == sequence[-1]
    return states


def definition(sequence, momentum):
    """The frequencies after every step, from the definition, in float64."""
    frequency, direction = torch.zeros(sequence.shape[1], dtype=torch.float64), torch.zeros(sequence.shape[1])
    for before, codes in zip(sequence[:-1].double(), sequence[1:].double(), strict=True):
        change = torch.sign(codes - before)
        frequency = (1 - momentum) * frequency + momentum * (change * direction < 0).double()
        direction = torch.where(change != 0, change, direction)
    return frequency


def test_only_a_change_against_the_last_change_is_an_oscillation():
    # up, stay, down (against up: 1), down, up (against down: 1), stay, down (1)
    states = run([[0], [1], [1], [0], [-1], [0], [0], [-1]], momentum=0.5)
    expected = 0.0
    for oscillated, (frequency, _) in zip([0, 0, 1, 0, 1, 0, 1], states[1:], strict=True):
        expected = 0.5 * oscillated + 0.5 * expected
        assert frequency.item() == expected
    assert [direction.item() for _, direction in states] == [0, 1, 1, -1, -1, 1, 1, -1]


def test_first_change_and_steady_climb_do_not_count():
    states = run([[-2], [-1], [0], [1], [1]], momentum=0.1)
    frequency, direction = states[-1]
    assert (frequency.item(), direction.item()) == (0, 1)


def test_jumps_over_the_whole_int8_range_keep_their_direction():
    states = run([[-128], [127], [-128]], momentum=0.5)
    assert [direction.item() for _, direction in states] == [0, 1, -1]
    assert states[-1][0].item() == 0.5


def test_weights_do_not_disturb_each_other():
    frequency, direction = run([[0, 0, 3], [1, 0, 3], [0, 0, 3]], momentum=0.25)[-1]
    assert frequency.tolist() == pytest.approx([0.25, 0, 0], rel=1e-3)
    assert direction.tolist() == [-1, 0, 0]


def test_with_momentum_one_only_the_last_step_counts():
    frequencies = [frequency.item() for frequency, _ in run([[0], [1], [0], [0], [1]], momentum=1)]
    assert frequencies == [0, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("momentum", "dtype", "tolerance"),
    [(0.3, torch.float16, 2e-3), (0.001, torch.float16, 1e-2), (0.0009, torch.float32, 1e-5)],
)
def test_thousands_of_steps_stay_near_the_definition(momentum, dtype, tolerance):
    generator = torch.Generator().manual_seed(0)
    moves = torch.linspace(0.01, 1, 50)  # probability of a change in a step
    changes = (torch.rand(4000, 50, generator=generator) < moves).int()
    sequence = (changes.cumsum(0) % 2).to(torch.int8)
    oscillations = Oscillations(sequence[0].clone(), momentum)
    for codes in sequence[1:]:
        oscillations.update(codes)
    assert oscillations.history.dtype == dtype
    expected = definition(sequence, momentum)
    assert expected.max() > 0.9
    torch.testing.assert_close(oscillations.frequency.double(), expected, rtol=tolerance, atol=1e-6)


def test_six_flips_pass_the_published_threshold_and_five_do_not():
    # With m = 0.001 in every step an oscillation: f = 1 - 0.999^n, above 0.005 from n = 6 on.
    flips = [[i % 2] for i in range(8)]
    states = run(flips, momentum=0.001)
    after = {n: states[n + 1][0] for n in (5, 6)}  # the first change is no oscillation
    assert after[6].item() == pytest.approx(1 - 0.999**6, rel=1e-3)
    assert oscillation_percentage(after[5]).item() == 0
    assert oscillation_percentage(after[6]).item() == 100


def test_percentage_counts_strictly_above_the_threshold():
    frequency = torch.tensor([[0.0, 0.5], [0.5001, 0.9]])
    assert oscillation_percentage(frequency, threshold=0.5).item() == 50
