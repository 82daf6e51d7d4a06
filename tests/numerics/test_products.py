"""The products behind the gradients of linear layers, against float64, whichever library computes them."""

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from hf_vaq.numerics import products
from hf_vaq.numerics.products import (
    LARGE,
    NARROW,
    gradient_of_linear_input,
    gradient_of_linear_weight,
    product_of_rows,
)

SIZES = {
    "small": ((3, 5), 20, 24),
    "large": ((2, LARGE // 32), 20, 24),
    "one dimension before the last": ((LARGE // 16,), 20, 24),
    "few features": ((LARGE // 8,), NARROW - 1, 24),
}


@pytest.fixture(params=[False, True], ids=["matrices", "convolutions"])
def by_convolution(request, monkeypatch):
    """As on a processor where matrix products are slow, and as on one where they are not."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(products, "_MKL_IS_SLOW", request.param)
    return request.param


def operands(size, dtype=torch.float32):
    rows, out_features, in_features = SIZES[size]
    shapes = (*rows, out_features), (*rows, in_features), (out_features, in_features)
    return [torch.randn(shape).to(dtype) for shape in shapes]


@pytest.mark.parametrize("size", SIZES)
def test_products_equal_those_in_float64(size, by_convolution):
    grad, x, weight = operands(size)
    by_input, by_weight = gradient_of_linear_input(grad, x, weight), gradient_of_linear_weight(grad, x, weight)
    wanted = torch.einsum("ro,ri->oi", grad.double().flatten(0, -2), x.double().flatten(0, -2))
    torch.testing.assert_close(by_input.double(), grad.double() @ weight.double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by_weight.double(), wanted, rtol=1e-4, atol=1e-3)
    assert by_input.is_contiguous() and by_weight.is_contiguous()


@pytest.mark.parametrize("transposed", ["grad", "x", "weight"])
def test_operands_may_lie_in_memory_in_any_order(transposed, by_convolution):
    tensors = dict(zip(("grad", "x", "weight"), operands("large"), strict=True))
    wanted = gradient_of_linear_input(**tensors)
    wanted_weight = gradient_of_linear_weight(**tensors)
    tensors[transposed] = tensors[transposed].transpose(-1, -2).contiguous().transpose(-1, -2)
    torch.testing.assert_close(gradient_of_linear_input(**tensors), wanted)
    torch.testing.assert_close(gradient_of_linear_weight(**tensors), wanted_weight, rtol=1e-4, atol=1e-3)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
def test_only_large_products_in_float32_are_convolutions(monkeypatch):
    calls = []
    monkeypatch.setattr(products, "_MKL_IS_SLOW", True)
    monkeypatch.setattr(products, "_convolution_backward", lambda *arguments: calls.append(arguments))
    for size, dtype in (("small", torch.float32), ("few features", torch.float32), ("large", torch.bfloat16)):
        grad, x, weight = operands(size, dtype)
        gradient_of_linear_input(grad, x, weight)
        gradient_of_linear_weight(grad, x, weight)
    assert not calls
    grad, x, weight = operands("large")
    with pytest.raises(TypeError):  # the stand-in returns nothing
        gradient_of_linear_weight(grad, x, weight)
    assert len(calls) == 1


def test_a_compiled_model_gets_the_same_and_copies_no_operand(by_convolution):
    grad, x, weight = operands("large")

    def gradients(grad, x, weight):
        grad = grad * 2  # made by the compiler, as in a model
        return gradient_of_linear_input(grad, x, weight), gradient_of_linear_weight(grad, x, weight)

    found, code = run_and_get_code(torch.compile(gradients, fullgraph=True), grad, x, weight)
    for result, wanted in zip(found, gradients(grad, x, weight), strict=True):
        torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-3)
        assert result.is_contiguous()
    assert "convolution_backward" not in "".join(code)
    assert ("by_linear_weight" in "".join(code)) == by_convolution


def test_rows_of_a_tensor_in_any_order_are_one_matrix_when_compiled_too():
    x, matrix = torch.randn(2, 20, 3, 4).permute(0, 2, 3, 1), torch.randn(20, 24)
    found, code = run_and_get_code(torch.compile(product_of_rows, fullgraph=True), x, matrix)
    torch.testing.assert_close(found, x @ matrix)
    assert found.is_contiguous() and "extern_kernels.mm" in "".join(code) and "bmm" not in "".join(code)
