"""The bin regularizer against a plain loop over tensors, groups and bins."""

import pytest
import torch

from hf_vaq.numerics.bins import bin_regularizer
from hf_vaq.numerics.native.loading import kernels

needs_kernels = pytest.mark.skipif(kernels() is None, reason="needs a C++ compiler")


def plain_loop(weights, scales, bits):
    """The definition, one bin at a time; autograd differentiates it."""
    total = torch.zeros((), dtype=torch.float64)
    for weight, scale, b in zip(weights, scales, bits, strict=True):
        low, high = -(2 ** (b - 1)), 2 ** (b - 1) - 1
        variances = torch.zeros((), dtype=torch.float64)
        distances = []
        for row, s in zip(weight, scale, strict=True):
            clipped = torch.clamp(row, low * s, high * s)
            codes = torch.clamp(torch.round(row.detach() / s), low, high)
            distances.append((clipped - codes * s) ** 2)
            for code in range(low, high + 1):
                members = row[codes == code]
                if len(members) >= 2:
                    variances = variances + members.var(unbiased=True)
        total = total + torch.cat(distances).mean() + variances / len(weight)
    return total


def random_case(seed=0):
    """Per tensor, per head, per channel, and 8 bits, where most bins hold no weight or one."""
    generator = torch.Generator().manual_seed(seed)
    shapes, bits = [(1, 60), (3, 40), (16, 9), (2, 50)], [2, 3, 4, 8]
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    scales = [
        torch.rand(shape[0], generator=generator, dtype=torch.float64) * 0.5 + 2.5 / 2**b
        for shape, b in zip(shapes, bits, strict=True)
    ]
    return weights, scales, bits


def members_per_bin(weights, scales, bits):
    counts = set()
    for weight, scale, b in zip(weights, scales, bits, strict=True):
        codes = torch.clamp(torch.round(weight / scale[:, None]), -(2 ** (b - 1)), 2 ** (b - 1) - 1).long()
        for row in codes:
            counts |= set(torch.bincount(row + 2 ** (b - 1), minlength=2**b).tolist())
    return counts


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_value_and_gradient_equal_those_of_a_plain_loop(seed):
    weights, scales, bits = random_case(seed)
    assert {0, 1, 2} <= members_per_bin(weights, scales, bits), "the case must hold empty, single and double bins"
    expected_weights = [weight.clone().requires_grad_() for weight in weights]
    expected = plain_loop(expected_weights, scales, bits)
    expected.backward()
    weights = [weight.requires_grad_() for weight in weights]
    value = bin_regularizer(weights, scales, bits)
    (3 * value).backward()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    for weight, reference in zip(weights, expected_weights, strict=True):
        torch.testing.assert_close(weight.grad, 3 * reference.grad, rtol=1e-11, atol=1e-14)


def test_value_worked_out_by_hand():
    # 2 bits, scale 1: codes -2..1. Bins: -2 {-3, -2.2}, 0 {0.1, 0.3}, 1 {0.8} alone.
    weight = torch.tensor([[-3.0, -2.2, 0.1, 0.3, 0.8]], requires_grad=True)
    value = bin_regularizer([weight], [torch.ones(1)], [2])
    distance = (0 + 0 + 0.1**2 + 0.3**2 + 0.2**2) / 5
    variance = 0.8**2 / 2 + 0.2**2 / 2
    assert value.item() == pytest.approx(distance + variance, rel=1e-6)
    value.backward()
    # The clipped pair feels its bin only; the single weight feels its level only.
    expected = [-0.8, 0.8, 2 * 0.1 / 5 - 0.2, 2 * 0.3 / 5 + 0.2, 2 * -0.2 / 5]
    assert weight.grad[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_repeating_a_group_leaves_the_value():
    weight, scale = torch.randn(1, 64, generator=torch.Generator().manual_seed(0)), torch.tensor([0.4])
    one = bin_regularizer([weight], [scale], [3])
    four = bin_regularizer([weight.expand(4, 64)], [scale.expand(4)], [3])
    torch.testing.assert_close(four, one)


def test_scale_gets_no_gradient():
    weight, scale = torch.randn(2, 8), torch.tensor([0.3, 0.4], requires_grad=True)
    assert not bin_regularizer([weight], [scale], [2]).requires_grad


def test_two_million_shifted_weights_keep_their_digits_in_float32():
    # In one pass, E[w^2] - E[w]^2 in float32 would have no correct digit: the mean is 10^4 deviations from zero.
    generator = torch.Generator().manual_seed(0)
    weight = (1 + 1e-4 * torch.randn(1, 2_000_000, generator=generator)).float()
    value = bin_regularizer([weight], [torch.ones(1)], [4])
    expected = weight.double().var() + (weight.double() - 1).square().mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_bfloat16_weights_are_reduced_in_float32_and_get_bfloat16_gradients():
    weight = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    scale = torch.tensor([0.5, 0.25])
    value = bin_regularizer([weight], [scale], [3])
    value.backward()
    assert (value.dtype, weight.grad.dtype) == (torch.float32, torch.bfloat16)
    expected = plain_loop([weight.detach().double()], [scale.double()], [3])
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_runs_repeat_to_the_last_bit():
    weights, scales, bits = random_case()
    weights = [weight.float().requires_grad_() for weight in weights]
    scales = [scale.float() for scale in scales]
    results = []
    for _ in range(2):
        value = bin_regularizer(weights, scales, bits)
        results.append((value, torch.autograd.grad(value, weights)))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_weights_give_a_non_finite_value(bad):
    weight = torch.tensor([[0.1, bad, 0.3, 0.2, 0.2]])
    assert not torch.isfinite(bin_regularizer([weight], [torch.tensor([0.2])], [2]))


def test_no_tensors_give_zero():
    assert bin_regularizer([], [], []).item() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([torch.ones(1, 2)], [torch.ones(1)], []), "differ in length: 1, 1 and 0"),
        (([torch.ones(2, 2)], [torch.ones(1)], [2]), r"weights\[0\] of shape \(2, 2\)"),
        (([torch.ones(4)], [torch.ones(4)], [2]), r"expected \(groups, weights per group\)"),
        (([torch.ones(1, 2)], [torch.ones(1)], [9]), "bits=9"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        bin_regularizer(*arguments)


@needs_kernels
def test_the_compiled_kernel_equals_a_plain_loop():
    weights, scales, bits = random_case()
    expected_weights = [weight.float().double().requires_grad_() for weight in weights]
    scales = [scale.float() for scale in scales]
    expected = plain_loop(expected_weights, [scale.double() for scale in scales], bits)
    expected.backward()
    weights = [weight.float().requires_grad_() for weight in weights]
    value = bin_regularizer(weights, scales, bits, fused=True)
    assert "Native" in value.grad_fn.name()
    (3 * value).backward()
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    for weight, reference in zip(weights, expected_weights, strict=True):
        torch.testing.assert_close(weight.grad.double(), 3 * reference.grad, rtol=1e-4, atol=1e-6)


@needs_kernels
@pytest.mark.parametrize("bits", [4, 8])
def test_the_compiled_kernel_keeps_the_digits_of_shifted_weights(bits):
    generator = torch.Generator().manual_seed(0)
    weight = (1 + 1e-4 * torch.randn(1, 2_000_000, generator=generator)).float()
    value = bin_regularizer([weight], [torch.ones(1)], [bits], fused=True)
    expected = weight.double().var() + (weight.double() - 1).square().mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


@needs_kernels
@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_compiled_kernel_notices_weights_that_are_not_finite(bits, bad):
    weight = torch.tensor([[0.1, bad, 0.3, 0.2, 0.2]], requires_grad=True)
    value = bin_regularizer([weight], [torch.tensor([0.2])], [bits], fused=True)
    value.backward()
    assert not torch.isfinite(value) and not torch.isfinite(weight.grad).all()
