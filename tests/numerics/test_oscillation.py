"""Oscillation tracking against code sequences worked out by hand."""

import pytest
import torch

from hf_vaq.numerics.oscillation import oscillation_percentage, start_oscillation, update_oscillation


def run(sequence, momentum):
    """Feed one code per step (each entry: the codes of all weights) and return the states."""
    states = [start_oscillation(torch.tensor(sequence[0], dtype=torch.int8))]
    for codes in sequence[1:]:
        states.append(update_oscillation(states[-1], torch.tensor(codes, dtype=torch.int8), momentum))
    return states


def test_only_a_change_against_the_last_change_is_an_oscillation():
    # up, stay, down (against up: 1), down, up (against down: 1), stay, down (1)
    states = run([[0], [1], [1], [0], [-1], [0], [0], [-1]], momentum=0.5)
    expected = 0.0
    for oscillated, state in zip([0, 0, 1, 0, 1, 0, 1], states[1:], strict=True):
        expected = 0.5 * oscillated + 0.5 * expected
        assert state.frequency.item() == expected
    assert [state.direction.item() for state in states] == [0, 1, 1, -1, -1, 1, 1, -1]


def test_first_change_and_steady_climb_do_not_count():
    states = run([[-2], [-1], [0], [1], [1]], momentum=0.1)
    assert states[-1].frequency.item() == 0
    assert states[-1].direction.item() == 1


def test_jumps_over_the_whole_int8_range_keep_their_direction():
    states = run([[-128], [127], [-128]], momentum=0.5)
    assert [state.direction.item() for state in states] == [0, 1, -1]
    assert states[-1].frequency.item() == 0.5


def test_weights_do_not_disturb_each_other_and_the_old_state_stays():
    states = run([[0, 0, 3], [1, 0, 3], [0, 0, 3]], momentum=0.25)
    assert states[-1].frequency.tolist() == [0.25, 0, 0]
    assert states[-1].direction.tolist() == [-1, 0, 0]
    assert states[0].codes.tolist() == [0, 0, 3]
    assert states[0].frequency.tolist() == [0, 0, 0]


def test_six_flips_pass_the_published_threshold_and_five_do_not():
    # With m = 0.001 in every step an oscillation: f = 1 - 0.999^n, above 0.005 from n = 6 on.
    flips = [[i % 2] for i in range(8)]
    states = run(flips, momentum=0.001)
    after = {n: states[n + 1].frequency for n in (5, 6)}  # the first change is no oscillation
    assert after[6].item() == pytest.approx(1 - 0.999**6, rel=1e-5)
    assert oscillation_percentage(after[5]).item() == 0
    assert oscillation_percentage(after[6]).item() == 100


def test_percentage_counts_strictly_above_the_threshold():
    frequency = torch.tensor([[0.0, 0.5], [0.5001, 0.9]])
    assert oscillation_percentage(frequency, threshold=0.5).item() == 50


@pytest.mark.slow
def test_the_fused_update_equals_the_plain_one():
    generator = torch.Generator().manual_seed(0)
    plain = fused = start_oscillation(torch.randint(-8, 8, (200,), generator=generator).to(torch.int8))
    for _ in range(5):
        codes = torch.randint(-8, 8, (200,), generator=generator).to(torch.int8)
        plain = update_oscillation(plain, codes, 0.1)
        fused = update_oscillation(fused, codes, 0.1, fused=True)
        assert torch.equal(plain.codes, fused.codes) and torch.equal(plain.direction, fused.direction)
        torch.testing.assert_close(plain.frequency, fused.frequency, rtol=1e-6, atol=1e-7)
    assert plain.frequency.max() > 0
