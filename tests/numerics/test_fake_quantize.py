"""Fake quantization against formulas written out case by case, in float64, for single numbers."""

import math

import pytest
import torch

from hf_vaq.numerics.fake_quantize import (
    CPU_BLOCK,
    activation_gradient_factor,
    fake_quantize,
    quantize_to_codes,
    weight_gradient_factor,
)

# In steps: inside (also ties and zero), exactly at and beyond both limits of every range tested.
STEPS = [-130.0, -128.0, -9.3, -8.0, -4.0, -3.4, -2.0, -1.7, -0.5, 0.0, 0.49, 0.5, 1.0, 1.5, 2.6, 3.0, 7.0, 7.2, 15.0]
STEPS += [127.0, 200.0, 255.0, 300.0]


def limits(bits, signed):
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def lsq_by_hand(x, s, o, qn, qp):
    """Value and derivatives (by x, s, o) of one number: Esser et al. 2020, eq. 1-3 and 5; LSQ+ 2020, eq. 7."""
    v = (x - o) / s
    if v <= qn:
        return qn * s + o, 0.0, qn, 1.0
    if v >= qp:
        return qp * s + o, 0.0, qp, 1.0
    code = round(v)  # Python rounds halves to even, as torch does
    return code * s + o, 1.0, code - v, 0.0


@pytest.mark.parametrize("offset", [None, 0.3125, -2.0])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_value_and_gradients_equal_the_published_formula(bits, signed, offset):
    qn, qp = limits(bits, signed)
    s, o = 0.25, offset or 0.0  # powers of two: limits are met exactly
    x = torch.tensor(STEPS, dtype=torch.float64) * s + o
    x.requires_grad_()
    scale = torch.tensor(s, dtype=torch.float64, requires_grad=True)
    shift = None if offset is None else torch.tensor(o, dtype=torch.float64, requires_grad=True)
    dy = torch.linspace(-1, 2, len(STEPS), dtype=torch.float64)

    y = fake_quantize(x, scale, bits, signed=signed, offset=shift, gradient_factor=0.5)
    y.backward(dy)

    expected = [lsq_by_hand(value, s, o, qn, qp) for value in x.tolist()]
    assert y.tolist() == [e[0] for e in expected]
    assert x.grad.tolist() == [e[1] * g for e, g in zip(expected, dy.tolist(), strict=True)]
    assert scale.grad.item() == pytest.approx(0.5 * sum(e[2] * g for e, g in zip(expected, dy.tolist(), strict=True)))
    if shift is not None:
        wanted = 0.5 * sum(e[3] * g for e, g in zip(expected, dy.tolist(), strict=True))
        assert shift.grad.item() == pytest.approx(wanted)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_scale_gradient_is_the_slope_of_the_value_where_no_code_changes(bits):
    # Inside the range x_q = code * s, so a finite difference in s with fixed codes is code; LSQ's straight-through
    # estimate adds -v. Outside nothing is estimated and the finite difference is the gradient itself.
    qn, qp = limits(bits, True)
    x = torch.tensor([qn - 3.0, qp + 2.0], dtype=torch.float64)
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    fake_quantize(x, scale, bits).sum().backward()
    eps = 1e-6
    difference = (fake_quantize(x, scale + eps, bits) - fake_quantize(x, scale - eps, bits)).sum() / (2 * eps)
    assert scale.grad.item() == pytest.approx(difference.item(), rel=1e-6)


def test_gradients_of_several_scales_are_those_of_each_part_alone():
    x = torch.randn(6, 5, dtype=torch.float64)
    scales = torch.rand(6, 1, dtype=torch.float64) + 0.1
    scales.requires_grad_()
    factors = torch.rand(6, 1, dtype=torch.float64)
    fake_quantize(x, scales, 3, gradient_factor=factors).pow(2).sum().backward()
    for row in range(6):
        scale = scales.detach()[row, 0].clone().requires_grad_()
        fake_quantize(x[row], scale, 3).pow(2).sum().backward()
        assert scales.grad[row].item() == pytest.approx((scale.grad * factors[row]).item())


@pytest.mark.parametrize("offset", [None, torch.tensor(0.1)])
@pytest.mark.parametrize(
    "x",
    [
        torch.randn(CPU_BLOCK + 1),
        torch.randn(2, 300, 4, 64).transpose(1, 2),
        torch.randn(3, 1, 300, 300),
        torch.randn(2 * CPU_BLOCK)[::2],
    ],
    ids=["two blocks", "queries", "three blocks", "gaps"],
)
def test_blocks_change_nothing(x, offset, monkeypatch):
    blocks = fake_quantize(x, torch.full((1,), 0.37), 3, offset=offset)
    monkeypatch.setattr("hf_vaq.numerics.fake_quantize.CPU_BLOCK", x.numel())
    whole = fake_quantize(x, torch.full((1,), 0.37), 3, offset=offset)
    assert torch.equal(blocks, whole) and blocks.stride() == whole.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_values_get_the_codes_of_float32(dtype):
    x = (torch.randn(4096) * 30).to(dtype)
    scale = torch.tensor(0.3)
    y = fake_quantize(x, scale, 8)
    assert y.dtype is dtype
    assert torch.equal(y, (quantize_to_codes(x.float(), scale, 8) * scale).to(dtype))


def test_a_constant_scale_gets_no_gradient_and_does_not_stop_that_of_the_values():
    x = torch.randn(10, requires_grad=True)
    fake_quantize(x, torch.tensor(100.0), 4).sum().backward()
    assert torch.equal(x.grad, torch.ones(10))


def test_gradient_factors_equal_their_formulas():
    weight = torch.tensor([[1.0, -2.0], [0.5, 0.25]])
    l1 = weight.abs().sum(1)
    assert weight_gradient_factor(l1, 2, 7, "l1").tolist() == pytest.approx([1 / math.sqrt(21), 1 / math.sqrt(5.25)])
    assert weight_gradient_factor(l1, 2, 7, "numel") == pytest.approx(1 / math.sqrt(14))
    assert torch.isfinite(weight_gradient_factor(torch.zeros(1), 2, 7, "l1")).all()
    assert activation_gradient_factor(weight, 1, 3, "l1") == pytest.approx(1 / (math.sqrt(4) * 3))
    assert activation_gradient_factor(weight, 2, 3, "l1").item() == pytest.approx(1 / math.sqrt(3.75 / 2 * 3))
    assert activation_gradient_factor(weight, 2, 3, "numel") == pytest.approx(1 / math.sqrt(4 / 2 * 3))
