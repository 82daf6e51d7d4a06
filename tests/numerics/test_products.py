"""The products behind the gradients of linear layers, against float64, whichever library computes them."""

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from hf_vaq.numerics import products
from hf_vaq.numerics.native import loading, weight_gradient
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


@pytest.fixture
def by_tiles(monkeypatch):
    """The kernel, which processors with AMX have."""
    if loading.kernels() is None or loading.kernels().weight_gradient is None:
        pytest.skip("needs a CPU with AMX, and a C++ compiler")
    calls, original = [], weight_gradient.gradient_of_weight
    monkeypatch.setattr(weight_gradient, "gradient_of_weight", lambda *given: calls.append(given) or original(*given))
    return calls


@pytest.mark.parametrize(
    "shape", [(2, 1000, 96, 40), (1, 33, 2000, 7), (1, 200, 400, 900), (5, 300, 64, 96), (1, 3000, 31, 33)]
)
def test_gradients_of_weights_in_bfloat16_are_rounded_once(by_tiles, shape):
    *rows, outputs, inputs = shape
    grad, x = torch.randn(*rows, outputs).bfloat16(), torch.randn(*rows, inputs).bfloat16()
    wanted = torch.einsum("...ro,...ri->oi", grad.double(), x.double())
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(gradient_of_linear_weight(grad, x, torch.empty(outputs, inputs)))
    finally:
        torch.set_num_threads(threads)
    assert len(by_tiles) == 3 and results[0].dtype == torch.bfloat16
    torch.testing.assert_close(results[0].double(), wanted, rtol=2**-8, atol=1e-3)
    assert all(torch.equal(result, results[0]) for result in results[1:])
    assert gradient_of_linear_weight(grad * torch.nan, x, torch.empty(outputs, inputs)).isnan().all()


def test_gradients_of_weights_in_bfloat16_without_kernels(monkeypatch):
    monkeypatch.setattr(products, "_HAS_TILES", True)
    monkeypatch.setattr(weight_gradient, "can_multiply", lambda *_: False)
    grad, x, weight = operands("large", torch.bfloat16)
    found, code = run_and_get_code(torch.compile(gradient_of_linear_weight, fullgraph=True), grad, x, weight)
    wanted = torch.einsum("...o,...i->oi", grad.double(), x.double())
    torch.testing.assert_close(found.double(), wanted, rtol=2**-7, atol=0.5)
    assert "by_bfloat16_weight" in "".join(code)


def test_rows_of_a_tensor_in_any_order_are_one_matrix_when_compiled_too():
    x, matrix = torch.randn(2, 20, 3, 4).permute(0, 2, 3, 1), torch.randn(20, 24)
    found, code = run_and_get_code(torch.compile(product_of_rows, fullgraph=True), x, matrix)
    torch.testing.assert_close(found, x @ matrix)
    assert found.is_contiguous() and "extern_kernels.mm" in "".join(code) and "bmm" not in "".join(code)
