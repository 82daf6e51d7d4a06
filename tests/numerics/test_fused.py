"""Fused quantization: values against the reference, gradients against the published formula, written out."""

import math

import pytest
import torch

from hf_vaq.numerics import compiled
from hf_vaq.numerics.compiled import CompiledKernel, compilation_failure, uncompiled
from hf_vaq.numerics.fake_quantize import fake_quantize
from hf_vaq.numerics.fused import (
    fused_gradients,
    fused_head_gradients,
    fused_quantize,
    fused_quantize_heads,
    fused_softmax_gradients,
)
from hf_vaq.numerics.groups import ScaleGroups
from hf_vaq.numerics.levels import integer_range
from hf_vaq.numerics.native import loading
from hf_vaq.numerics.quantization import Quantization

TENSOR, LAST_HEADS, CHANNELS = ScaleGroups(), ScaleGroups(4, -1), ScaleGroups(6, 0)
CASES = {
    "one scale": ((6, 5, 8), TENSOR),
    "heads in the middle": ((3, 4, 5, 2), ScaleGroups(4, 1)),
    "heads at the end": ((6, 5, 8), LAST_HEADS),
    "channels": ((6, 20), CHANNELS),
}


def tensors(case, dtype=torch.float32, with_offset=False):
    """Values on a grid of half steps: many lie exactly at a limit or between two codes."""
    shape, groups = CASES[case]
    scale = 2.0 ** torch.arange(-2, groups.count - 2)  # powers of two, so that limits and ties are met exactly
    offset = torch.linspace(-0.5, 0.5, groups.count).mul(4).round().div(4) if with_offset else None
    steps = torch.randint(-24, 40, shape) / 2
    x = steps * groups.expand(scale, torch.Size(shape))
    if offset is not None:
        x = x + groups.expand(offset, torch.Size(shape))
    return x.to(dtype), scale, offset


def expanded(groups, values, x):
    return None if values is None else groups.expand(values, x.shape)


def by_formula(x, grad, scale, offset, quantization):
    """LSQ (Esser et al., eq. 3, 5) and LSQ+ (eq. 7) in float64; s = exp(16 tanh(l / 16))."""
    qn, qp = integer_range(quantization.bits, quantization.signed)
    groups, x, grad, scale = quantization.groups, x.double(), grad.double(), scale.double()
    shift = 0.0 if offset is None else groups.expand(offset.double(), x.shape)
    v = (x - shift) / groups.expand(scale, x.shape)
    below, above = v <= qn, v >= qp
    inside = ~below & ~above
    slope = torch.where(below, float(qn), torch.where(above, float(qp), v.round() - v))
    if quantization.factor == "numel":
        factor = torch.full_like(scale, 1 / math.sqrt(x.numel() / groups.count * qp))
    elif quantization.weight:
        factor = 1 / (groups.collect(x).abs().sum(1) * qp).sqrt()
    elif groups.count == 1:
        factor = torch.full_like(scale, 1 / (math.sqrt(x.numel()) * qp))
    else:
        factor = (1 / (x.abs().sum() / groups.count * qp).sqrt()).expand(groups.count)
    chain = scale * (1 - (scale.log() / 16) ** 2)
    grad_log_scale = groups.collect(slope * grad).sum(1) * factor * chain
    return grad * inside, grad_log_scale, groups.collect(grad * ~inside).sum(1) * factor


DTYPES_AND_KINDS = [
    (torch.float32, "plain"),
    (torch.float32, "native"),
    (torch.bfloat16, "plain"),
    (torch.float16, "plain"),
]


@pytest.fixture(params=["plain", "native"])
def kind(request):
    """Of kernels: plain functions, or native code, which float32 on a CPU gets where there is a C++ compiler."""
    if request.param == "plain":
        with uncompiled():
            yield request.param
    elif loading.kernels() is None:
        pytest.skip("needs a C++ compiler")
    else:
        yield request.param


@pytest.mark.parametrize("with_offset", [False, True])
@pytest.mark.parametrize(("dtype", "kind"), DTYPES_AND_KINDS, indirect=["kind"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("bits", "signed"), [(2, True), (4, True), (4, False), (8, True), (8, False)])
def test_values_equal_the_reference_and_gradients_the_formula(bits, signed, case, dtype, with_offset, kind):
    x, scale, offset = tensors(case, dtype, with_offset)
    groups = CASES[case][1]
    for factor, weight in (("numel", False), ("l1", False), ("l1", True)):
        quantization = Quantization(bits, groups, signed, factor, weight)
        values = fused_quantize(x, scale, offset, quantization)
        grad = torch.randn_like(x)
        found = fused_gradients(grad, x, scale, offset, quantization)
        reference = fake_quantize(
            x, expanded(groups, scale, x), bits, signed=signed, offset=expanded(groups, offset, x)
        )
        assert torch.equal(values, reference) and values.dtype is dtype
        wanted = by_formula(x, grad, scale, offset, quantization)
        assert torch.equal(found[0].double(), wanted[0]) and found[0].dtype is dtype
        torch.testing.assert_close(found[1].double(), wanted[1], rtol=1e-4, atol=1e-5)
        if with_offset:
            torch.testing.assert_close(found[2].double(), wanted[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["plain"], indirect=True)  # native code takes contiguous tensors only
@pytest.mark.parametrize(
    "x",
    [torch.randn(2, 7, 4, 6).transpose(1, 2), torch.randn(9, 8)[:, ::2], torch.randn(3, 5).t(), torch.randn(4, 6)],
    ids=["queries", "gaps", "transposed", "contiguous"],
)
def test_memory_order_is_kept_and_does_not_matter(x, kind):
    quantization = Quantization(4, ScaleGroups(), factor="numel")
    scale, grad = torch.tensor([0.3]), torch.randn(x.shape[::-1]).permute(*reversed(range(x.dim())))
    values = fused_quantize(x, scale, None, quantization)
    grad_x, grad_log_scale, _ = fused_gradients(grad, x, scale, None, quantization)
    assert torch.equal(values, fake_quantize(x, scale, 4))
    wanted = by_formula(x, grad, scale, None, quantization)
    assert torch.equal(grad_x.double(), wanted[0])
    torch.testing.assert_close(grad_log_scale.double(), wanted[1], rtol=1e-5, atol=1e-6)
    if x.is_contiguous() or not x[..., 0].is_contiguous():
        assert values.shape == x.shape


@pytest.mark.parametrize("sizes", [(2, 5, 4, 6), (1, 700, 4, 40)], ids=["small", "parts"])
@pytest.mark.parametrize("groups", [ScaleGroups(), ScaleGroups(4, 1)])
def test_heads_are_quantized_and_moved_at_once(groups, sizes, kind):
    physical = torch.randn(sizes)
    x, scale = physical.transpose(1, 2), torch.rand(groups.count) + 0.1
    quantization = Quantization(3, groups, factor="l1")
    grad = torch.randn(x.shape)
    values = fused_quantize_heads(x, scale, quantization)
    grad_x, grad_log_scale = fused_head_gradients(grad, x, scale, quantization)
    assert values.is_contiguous() and torch.equal(values, fake_quantize(x, expanded(groups, scale, x), 3))
    assert grad_x.transpose(1, 2).is_contiguous()
    wanted = by_formula(x, grad, scale, None, quantization)
    assert torch.equal(grad_x.double(), wanted[0])
    torch.testing.assert_close(grad_log_scale.double(), wanted[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tokens", [5, 150])
@pytest.mark.parametrize("groups", [ScaleGroups(), ScaleGroups(3, 1)])
def test_gradient_through_quantizer_and_softmax_equals_that_of_one_after_the_other(groups, tokens, kind):
    scores = torch.randn(2, 3, tokens, tokens, dtype=torch.float64, requires_grad=True)
    probabilities = scores.softmax(-1)
    scale = torch.linspace(0.02, 0.05, groups.count)
    quantization = Quantization(3, groups, signed=False, factor="numel")
    grad = torch.randn(scores.shape)
    p = probabilities.detach().float()
    found = fused_softmax_gradients(grad, p, scale, quantization, 0.25)
    through, grad_log_scale, _ = by_formula(p, grad, scale, None, quantization)
    (wanted,) = torch.autograd.grad(probabilities, scores, through)
    torch.testing.assert_close(found[0].double(), 0.25 * wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[1].double(), grad_log_scale, rtol=1e-4, atol=1e-5)


def check_compiled(case, dtype, with_offset, numels=(1, 3)):
    """The kernels of this machine (compiled, or native) against the plain ones, for tensors of several sizes."""
    groups = CASES[case][1]
    quantization = Quantization(4, groups, not with_offset, "l1")
    for times in numels:
        x, scale, offset = tensors(case, dtype, with_offset)
        x = torch.cat([x] * times, 0 if case != "channels" else 1)
        grad = torch.randn_like(x)
        with uncompiled():
            values = fused_quantize(x, scale, offset, quantization)
            wanted = fused_gradients(grad, x, scale, offset, quantization)
        assert torch.equal(fused_quantize(x, scale, offset, quantization), values)
        found = fused_gradients(grad, x, scale, offset, quantization)
        assert torch.equal(found[0], wanted[0])
        torch.testing.assert_close(found[1], wanted[1], rtol=1e-4, atol=1e-6)
    assert compilation_failure() is None


def test_compiled_kernels_equal_the_plain_ones():
    check_compiled("one scale", torch.bfloat16, with_offset=False)


@pytest.mark.slow
@pytest.mark.parametrize("with_offset", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_all_compiled_kernels_equal_the_plain_ones(case, dtype, with_offset):
    check_compiled(case, dtype, with_offset)


def test_other_sizes_limits_and_factors_are_not_compiled_again():
    def plus_one(x):
        return x + 1

    kernel = CompiledKernel(plus_one)
    for numel in (16, 17, 300, 64):
        assert torch.equal(kernel((torch.ones(numel),)), torch.full((numel,), 2.0))
    (variant,) = kernel._variants.values()
    code = variant._torchdynamo_orig_callable.__code__
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list

    assert len(_debug_get_cache_entry_list(code)) == 1


@pytest.fixture
def broken_compiler(monkeypatch):
    """What torch.compile meets where there is no C++ compiler."""
    from torch._inductor.exc import InvalidCxxCompiler

    def failing(function, **options):
        def call(*args):
            raise InvalidCxxCompiler

        return call

    monkeypatch.setattr(torch, "compile", failing)
    monkeypatch.setattr(compiled, "_failure", None)


def test_without_a_compiler_the_plain_function_runs_and_it_is_said_once(broken_compiler, monkeypatch):
    messages = []
    monkeypatch.setattr(compiled.logger, "warning", messages.append)

    def negative(x):
        return -x

    kernel = CompiledKernel(negative)
    for _ in range(3):
        assert torch.equal(kernel((torch.ones(3),)), -torch.ones(3))
    assert len(messages) == 1 and "C++ compiler" in messages[0] and "take longer" in messages[0]
    assert "InvalidCxxCompiler" in compilation_failure()


def test_an_error_of_the_function_itself_is_not_taken_for_the_compilers(broken_compiler):
    def refuses(x):
        raise ValueError("not this tensor")

    with pytest.raises(ValueError, match="not this tensor"):
        CompiledKernel(refuses)((torch.ones(3),))
    assert compilation_failure() is None
