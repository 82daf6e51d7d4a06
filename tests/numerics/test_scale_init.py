import pytest
import torch

from hf_vaq.nn.activation_statistics import BINS, ActivationStatistics
from hf_vaq.numerics.groups import ScaleGroups
from hf_vaq.numerics.levels import integer_range
from hf_vaq.numerics.scale_init import (
    SCALE_OF_ZEROS,
    alternating_least_squares,
    least_squares_fit,
    least_squares_scale,
    magnitude_scale,
    statistics_scale,
)


def squared_error(x, scale, bits, signed=True, offset=0.0):
    qn, qp = integer_range(bits, signed)
    return ((torch.clamp((x - offset) / scale, qn, qp).round() * scale + offset - x) ** 2).sum().item()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_least_squares_scale_satisfies_the_normal_equation_and_beats_its_neighbours(bits):
    w = torch.randn(1, 2000, dtype=torch.float64)
    scale = least_squares_scale(w, bits)[0].double()
    qn, qp = integer_range(bits)
    codes = torch.clamp(w / scale, qn, qp).round()
    assert scale.item() == pytest.approx(((w * codes).sum() / (codes * codes).sum()).item(), rel=1e-4)
    best = squared_error(w, scale, bits)
    assert best < squared_error(w, w.abs().max() / qp, bits)
    assert all(best < squared_error(w, scale * factor, bits) for factor in (0.9, 1.1))


def test_two_bit_scale_of_normal_weights_is_near_the_best_of_a_fine_search():
    w = torch.randn(1, 50_000)
    scale = least_squares_scale(w, 2)[0]
    grid = torch.linspace(0.3, 3, 271)
    best = min(squared_error(w, s, 2) for s in grid)
    assert squared_error(w, scale, 2) < 1.01 * best


def test_every_group_is_fitted_as_if_alone_and_zeros_get_a_harmless_scale():
    w = torch.randn(3, 500) * torch.tensor([[0.01], [1.0], [30.0]])
    w = torch.cat([w, torch.zeros(1, 500)])
    scales = least_squares_scale(w, 3)
    alone = torch.cat([least_squares_scale(row[None], 3) for row in w])
    # Groups stop together, so that some go on for a few steps more than they would alone.
    torch.testing.assert_close(scales, alone, rtol=1e-3, atol=0)
    assert scales[3].item() == pytest.approx(SCALE_OF_ZEROS)


def test_affine_fit_recovers_the_levels_that_made_the_data():
    codes = torch.randint(0, 8, (1, 4000)).float()
    x = codes * 0.37 - 0.17
    fit = alternating_least_squares(x, 3, torch.tensor([0.38]), signed=False, start_offset=torch.tensor([-0.15]))
    assert fit.scale.item() == pytest.approx(0.37, rel=1e-3)
    assert fit.offset.item() == pytest.approx(-0.17, abs=1e-3)
    assert fit.error.item() < 1e-8


def test_weighted_fit_equals_the_fit_of_repeated_values():
    values = torch.randn(1, 60)
    counts = torch.randint(1, 5, (1, 60))
    repeated = values[0].repeat_interleave(counts[0])[None]
    weighted = least_squares_fit(values, 4, weights=counts.float())
    plain = least_squares_fit(repeated, 4)
    assert weighted.scale.item() == pytest.approx(plain.scale.item(), rel=1e-4)


def test_activation_fit_keeps_outliers_at_eight_bits_and_clips_them_at_two():
    x = torch.randn(1, 20_000)
    x[0, :40] *= 60  # as in a Vision Transformer's residual stream
    eight, two = least_squares_fit(x, 8).scale, least_squares_fit(x, 2).scale
    assert eight.item() * 127 > x.abs().max().item() / 2
    assert squared_error(x, eight, 8) <= squared_error(x, magnitude_scale(x.abs().mean(1), 127), 8)
    assert two.item() < x.abs().max().item()


def test_magnitude_and_statistics_scales_equal_their_formulas():
    x = torch.tensor([[1.0, -3.0]])
    assert magnitude_scale(x.abs().mean(1), 7).item() == pytest.approx(2 * 2 / 7**0.5)
    assert magnitude_scale(torch.zeros(1), 7).item() == pytest.approx(SCALE_OF_ZEROS)
    assert statistics_scale(x, 3).item() == pytest.approx(2 * 2 / 4)


@pytest.mark.parametrize("groups", [ScaleGroups(), ScaleGroups(2, 1)])
def test_histogram_gives_the_fit_of_all_values_though_its_range_grows(groups):
    batches = [torch.randn(8, 2, 500) * size for size in (0.1, 1.0, 9.0)]
    statistics = ActivationStatistics(groups)
    for batch in batches:
        statistics.update(batch)
    everything = groups.collect(torch.cat(batches))
    assert statistics.counts.shape == (groups.count, BINS)
    assert statistics.counts.sum().item() == everything.numel()
    torch.testing.assert_close(statistics.sums.sum(1), everything.double().sum(1), rtol=1e-4, atol=1e-3)
    for bits in (2, 4, 8):
        fit, exact = statistics.fit(bits, signed=True, with_offset=False), least_squares_fit(everything, bits)
        for group in range(groups.count):
            found = squared_error(everything[group], fit.scale[group], bits)
            assert found < 1.02 * squared_error(everything[group], exact.scale[group], bits)


def test_histogram_refuses_values_that_are_not_finite():
    with pytest.raises(ValueError, match="NaN or infinite"):
        ActivationStatistics(ScaleGroups()).update(torch.tensor([1.0, float("nan")]))
