"""Products of float32 gradients with codes by AMX, and the backward pass of attention made of them."""

import pytest
import torch

from hf_vaq.nn.fused_attention import gradients_by_products
from hf_vaq.numerics.fused import fused_gradients, fused_quantize, fused_quantize_heads
from hf_vaq.numerics.groups import ScaleGroups
from hf_vaq.numerics.native import attention, loading, products
from hf_vaq.numerics.native.attention import QuantizedHeads
from hf_vaq.numerics.native.products import QuantizedMatrix
from hf_vaq.numerics.quantization import Quantization

needs_tiles = pytest.mark.skipif(
    loading.kernels() is None or loading.kernels().products is None,
    reason="needs a CPU with AMX and a C++ compiler that knows it",
)

SIZES = {
    "less than a tile": (5, 3, 7),
    "no multiples": (70, 33, 100),
    "multiples": (96, 64, 128),
    "many rows": (1000, 48, 40),
    "many outputs": (40, 36, 1000),
    "many inputs": (40, 1000, 36),
}
"""Rows, inputs, outputs."""
OF_WEIGHT = {
    "tensor": (ScaleGroups(), 4),
    "rows": (ScaleGroups(2, 0), 2),
    "columns": (ScaleGroups(3, 1), 3),
    "bytes": (ScaleGroups(), 8),
}


def positive(count):
    return torch.rand(count) * 0.1 + 0.05


def inputs(rows, columns, signed=True, bits=4, groups=1, offset=True, factor="numel"):
    values = torch.randn(2, rows // 2 + rows % 2, columns) * 0.3
    quantization = Quantization(bits, ScaleGroups(groups, -1), signed, factor)
    return QuantizedMatrix(values, positive(groups), torch.randn(groups) * 0.1 if offset else None, quantization)


def quantized(matrix):
    return fused_quantize(*matrix).double().flatten(0, -2)


def assert_rounded_as_a_sum(found, first, second):
    """That each number is the product of two matrices to what rounding its terms' sum explains."""
    assert found.dtype == torch.float32 and found.is_contiguous()
    error = (found.double().flatten(0, -2) - first @ second).abs()
    assert (error <= 1e-6 * (first.abs() @ second.abs())).all()


@needs_tiles
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["signed", "unsigned", "bytes", "groups", "no offset"])
def test_the_gradient_by_a_weight_is_that_of_exact_products(size, kind):
    rows, columns, outputs = SIZES[size]
    groups = 3 if kind == "groups" and columns % 3 == 0 else 1
    bits = 8 if kind == "bytes" else 4
    x = inputs(rows, columns, kind != "unsigned", bits, groups, kind != "no offset")
    grad = torch.randn(*x.values.shape[:-1], outputs) * torch.randn(outputs).exp()
    found, sums = products.gradient_of_weight(grad, products.transposed_codes(x))
    rows = grad.double().flatten(0, -2)
    assert_rounded_as_a_sum(found, rows.t(), quantized(x))
    torch.testing.assert_close(sums.double(), rows.sum(0), rtol=1e-5, atol=1e-5 * rows.abs().sum(0).max().item())


@needs_tiles
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", OF_WEIGHT)
def test_the_gradient_by_an_input_is_that_of_exact_products(size, kind):
    rows, columns, outputs = SIZES[size]
    groups, bits = OF_WEIGHT[kind]
    if groups.count > 1 and (outputs, columns)[groups.dim] % groups.count:
        groups = ScaleGroups((outputs, columns)[groups.dim], groups.dim)
    weight = QuantizedMatrix(
        torch.randn(outputs, columns) * 0.2, positive(groups.count), None, Quantization(bits, groups)
    )
    grad = torch.randn(rows, outputs) * torch.randn(rows, 1).exp()
    assert_rounded_as_a_sum(products.gradient_of_input(grad, weight), grad.double(), quantized(weight))


@needs_tiles
@pytest.mark.parametrize(("groups", "offset", "factor"), [(1, True, "l1"), (3, False, "numel"), (3, True, "l1")])
def test_gradients_go_through_the_quantizer_of_the_input(groups, offset, factor):
    x = inputs(70, 48, groups=groups, offset=offset, factor=factor)
    weight = QuantizedMatrix(torch.randn(40, 48), positive(1), None, Quantization(4, ScaleGroups()))
    grad = torch.randn(*x.values.shape[:-1], 40)
    wanted = fused_gradients(products.gradient_of_input(grad, weight), *x)
    found = products.gradients_through_input(grad, x, weight)
    assert torch.equal(found[0], wanted[0])
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-4, atol=1e-5)
    assert (found[2] is None) == (not offset)
    if offset:
        torch.testing.assert_close(found[2], wanted[2], rtol=1e-4, atol=1e-5)


@needs_tiles
def test_a_scale_that_is_not_learned_gets_no_gradient():
    x, weight = (
        inputs(70, 48, factor="none"),
        QuantizedMatrix(torch.randn(40, 48), positive(1), None, Quantization(4, ScaleGroups())),
    )
    assert products.gradients_through_input(torch.randn(2, 35, 40), x, weight)[1:] == (None, None)


@needs_tiles
def test_what_is_no_number_shows():
    x, grad = inputs(64, 40), torch.randn(2, 32, 50)
    grad[0, 3, 7] = torch.nan
    by_weight, sums = products.gradient_of_weight(grad, products.transposed_codes(x))
    assert by_weight.isnan().any(1).nonzero().tolist() == [[7]] and sums.isnan().nonzero().tolist() == [[7]]
    weight = QuantizedMatrix(torch.randn(50, 40), positive(1), None, Quantization(4, ScaleGroups()))
    assert products.gradient_of_input(grad, weight)[0].isnan().any(1).nonzero().tolist() == [[3]]


def heads(tokens, dim, scales, factor, batch=2, count=3):
    """Queries, keys, values and probabilities."""
    for signed in (True, True, True, False):
        quantization = Quantization(4, ScaleGroups(scales, 1), signed, factor)
        if signed:
            values = torch.randn(batch, tokens, count, dim).transpose(1, 2)
            yield QuantizedHeads(values, positive(scales), quantization)
        else:
            values = torch.softmax(2 * torch.randn(batch, count, tokens, tokens), -1)
            yield QuantizedHeads(values, 0.1 * positive(scales), quantization)


def attention_gradients(tokens, dim, scales, factor, wants_scores):
    operands = tuple(heads(tokens, dim, scales, factor))
    grad = torch.randn(2, tokens, 3, dim)
    assert attention.can_differentiate(grad, *operands)
    found = attention.differentiate(grad, *operands, 0.3, wants_scores)
    q, k = (fused_quantize_heads(*operand) for operand in operands[:2])
    return found, gradients_by_products(grad, None, *operands, (q, k), 0.3, wants_scores)


@needs_tiles
@pytest.mark.parametrize("scales", [1, 3])
@pytest.mark.parametrize(
    ("tokens", "dim", "factor", "wants_scores"),
    [
        (5, 6, "numel", False),
        (49, 32, "l1", True),
        (70, 64, "l1", False),
        (64, 40, "none", True),
    ],
)
def test_the_backward_pass_of_attention_is_that_of_its_products(tokens, dim, factor, wants_scores, scales):
    found, wanted = attention_gradients(tokens, dim, scales, factor, wants_scores)
    for result, expected in zip(found[:4], wanted[:4], strict=True):
        if expected is None:
            assert result is None
            continue
        assert result.stride() == expected.stride()
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())
    for result, expected in zip(found.log_scales, wanted.log_scales, strict=True):
        assert (result is None) == (expected is None) == (factor == "none")
        if expected is not None:
            torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-5)


@needs_tiles
def test_the_number_of_threads_changes_no_bit():
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.manual_seed(0)
            torch.set_num_threads(count)
            x = inputs(200, 48, groups=3)
            grad = torch.randn(2, 100, 130)
            weight = QuantizedMatrix(torch.randn(130, 48), positive(1), None, Quantization(4, ScaleGroups()))
            of_attention = attention_gradients(49, 32, 3, "l1", True)[0]
            results.append(
                [
                    *products.gradient_of_weight(grad, products.transposed_codes(x)),
                    *products.gradients_through_input(grad, x, weight),
                    *of_attention[:4],
                    *of_attention.log_scales,
                ]
            )
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@needs_tiles
def test_small_products_and_other_types_are_left_to_pytorch():
    weight = QuantizedMatrix(torch.randn(256, 64), positive(1), None, Quantization(4, ScaleGroups()))
    grad = torch.randn(300, 256)
    assert products.are_faster(grad, weight)
    assert not products.are_faster(grad[:40], weight)
    assert not products.are_faster(grad.bfloat16(), weight)
    assert not products.are_faster(grad, weight._replace(values=weight.values.bfloat16()))
    assert not products.are_faster(grad.t().contiguous().t(), weight)


@pytest.mark.parametrize("missing", ["instructions", "permission"])
def test_without_amx_there_are_no_such_kernels(monkeypatch, missing):
    if loading.kernels() is None:
        pytest.skip("needs a C++ compiler")
    if missing == "instructions":
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    elif loading.kernels().products is None:
        pytest.skip("needs a CPU with AMX")
    else:
        load = loading.load_library

        def refused(source, *arguments):
            library = load(source, *arguments)
            if source.name == "products.cpp":
                library.vaq_request_tiles = lambda: 0
            return library

        monkeypatch.setattr(loading, "load_library", refused)
    loading.kernels.cache_clear()
    try:
        found = loading.kernels()
        assert found.quantizers is not None and found.products is None and found.attention is None
        weight = QuantizedMatrix(torch.randn(256, 64), positive(1), None, Quantization(4, ScaleGroups()))
        assert not products.are_faster(torch.randn(300, 256), weight)
        assert not attention.can_differentiate(torch.randn(2, 49, 3, 32), *heads(49, 32, 1, "l1"))
    finally:
        loading.kernels.cache_clear()
