"""Operators of models that are compiled as a whole, in bfloat16, against the reference arithmetic in float32.

By the kernels where the processor has what they need, and without them everywhere.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from helpers import build, images
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from hf_vaq import QuantConfig, calibrate, quantize
from hf_vaq.nn import bfloat16
from hf_vaq.nn.fused_layers import Scaled
from hf_vaq.nn.fusion import set_fusion
from hf_vaq.numerics.fake_quantize import activation_gradient_factor, fake_quantize
from hf_vaq.numerics.groups import ScaleGroups
from hf_vaq.numerics.levels import integer_range
from hf_vaq.numerics.log_scale import log_from_scale, scale_from_log
from hf_vaq.numerics.native import bfloat16_attention, gelu, loading
from hf_vaq.numerics.quantization import Quantization

SCALING = 0.3


def need(name: str) -> None:
    """Skip where there is no kernel."""
    library = {"attention": "bfloat16_attention", "gelu": "gelu"}[name]
    if loading.kernels() is None or getattr(loading.kernels(), library) is None:
        pytest.skip(f"needs a CPU that knows {'AMX' if name == 'attention' else 'bfloat16'}, and a C++ compiler")


def quantizer(bits: int, groups: int, signed: bool, factor: str, low: float) -> tuple[Tensor, Quantization]:
    """The logarithmic scale parameter, and the rest."""
    scale = log_from_scale(torch.rand(groups) * low + low)
    return scale.requires_grad_(factor != "none"), Quantization(bits, ScaleGroups(groups, 1), signed, factor)


def of(log_scale: Tensor, quantization: Quantization, offset: Tensor | None = None) -> Scaled:
    return Scaled(log_scale, scale_from_log(log_scale.detach()), offset, quantization)


def reference(x: Tensor, log_scale: Tensor, quantization: Quantization, offset: Tensor | None = None) -> Tensor:
    groups, (_, highest) = quantization.groups, integer_range(quantization.bits, quantization.signed)
    rule = "numel" if quantization.factor == "none" else quantization.factor
    factor = activation_gradient_factor(x, groups.count, highest, rule)
    scale = groups.expand(scale_from_log(log_scale), x.shape)
    rest = {"signed": quantization.signed, "offset": offset, "gradient_factor": factor}
    return fake_quantize(x, scale, quantization.bits, **rest)


def assert_near(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert found.shape == wanted.shape and found.isfinite().all()
    assert (found.double() - wanted.double()).norm() <= tolerance * wanted.double().norm() + 1e-6


@pytest.mark.parametrize(
    ("tokens", "dim", "groups", "factor", "mask_shape"),
    [
        (5, 6, 1, "numel", None),
        (49, 32, 3, "l1", (2, 1, 49, 49)),
        (64, 40, 1, "none", (1, 3, 64, 64)),
        (70, 64, 1, "l1", (70,)),
    ],
)
def test_attention_and_its_gradients_are_those_of_the_reference(tokens, dim, groups, factor, mask_shape):
    need("attention")
    check_attention(tokens, dim, groups, factor, mask_shape, tolerance=0.01)


def check_attention(tokens, dim, groups, factor, mask_shape, tolerance):
    torch.manual_seed(tokens)
    heads = [torch.randn(2, tokens, 3, dim).bfloat16().requires_grad_() for _ in range(3)]
    mask = None if mask_shape is None else torch.randn(mask_shape, requires_grad=True)
    quantizers = [quantizer(4, groups, signed, factor, low) for signed, low in ((True, 0.15),) * 3 + ((False, 0.01),)]
    learned = [] if factor == "none" else [log for log, _ in quantizers]
    leaves = [*heads, *([] if mask is None else [mask]), *learned]

    operands = [x.transpose(1, 2) for x in heads]
    found = bfloat16.attention(*operands, mask, SCALING, [of(*each) for each in quantizers])
    q, k, v = (reference(x.float(), *each) for x, each in zip(operands, quantizers, strict=False))
    scores = q @ k.transpose(2, 3) * SCALING
    probabilities = torch.softmax(scores if mask is None else scores + mask, -1)
    wanted = (reference(probabilities, *quantizers[3]) @ v).transpose(1, 2)
    assert found.dtype == torch.bfloat16 and found.is_contiguous()
    assert_near(found, wanted, tolerance)

    grad = torch.randn(found.shape).bfloat16()
    by_ours, by_reference = (torch.autograd.grad(result, leaves, grad.to(result.dtype)) for result in (found, wanted))
    count = len(leaves) - len(learned)
    for ours, theirs in zip(by_ours[:count], by_reference[:count], strict=True):
        assert ours.dtype == theirs.dtype
        assert_near(ours, theirs, 2 * tolerance)
    if learned:
        assert_near(torch.cat(by_ours[count:]), torch.cat(by_reference[count:]), 2 * tolerance)


@pytest.mark.parametrize("shape", [(), (2, 1, 1, 33), (3, 33, 1), (2, 3, 33, 33)])
def test_masks_are_broadcast(shape):
    need("attention")
    heads = [torch.randn(2, 33, 3, 32).bfloat16().transpose(1, 2) for _ in range(3)]
    quantizers = [of(*quantizer(4, 1, signed, "none", 0.1)) for signed in (True, True, True, False)]
    mask = torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2] if shape else torch.tensor(0.5)
    whole = mask.expand(2, 3, 33, 33).contiguous()
    outputs = [bfloat16.attention(*heads, added, SCALING, quantizers) for added in (mask, whole)]
    assert torch.equal(*outputs)


def test_a_mask_that_keeps_windows_apart_costs_no_accuracy():
    need("attention")
    windows = torch.arange(49) // 20
    mask = torch.where(windows == windows[:, None], 0.0, -100.0)  # Swin's, whose probabilities are denormal numbers
    heads = [torch.randn(2, 49, 3, 32).bfloat16().transpose(1, 2) for _ in range(3)]
    quantizers = [quantizer(4, 1, signed, "none", low) for signed, low in ((True, 0.15),) * 3 + ((False, 0.01),)]
    quantized = [of(*each) for each in quantizers]
    found = bfloat16.attention(*heads, mask, SCALING, quantized)
    apart = [
        bfloat16.attention(*(x[:, :, windows == w] for x in heads), None, SCALING, quantized) for w in windows.unique()
    ]
    assert_near(found, torch.cat(apart, 1), 0.005)
    assert (torch.full((1000,), 1e-40) / 2 > 0).all()  # PyTorch's threads still know such numbers


@pytest.mark.parametrize(
    ("shape", "bias", "offset", "factor"),
    [((3, 7, 40), True, True, "l1"), ((50, 33), False, True, "numel"), ((2, 17, 48), True, False, "none")],
)
def test_gelu_and_its_gradients_are_those_of_the_reference(shape, bias, offset, factor):
    need("gelu")
    check_gelu(shape, bias, offset, factor)


def check_gelu(shape, bias, offset, factor):
    torch.manual_seed(len(shape))
    product = (2 * torch.randn(shape)).bfloat16().requires_grad_()
    term = torch.randn(shape[-1], requires_grad=True) if bias else None
    argument = product
    if term is not None:
        argument = (product + term).bfloat16()
        bfloat16.remember_terms(argument, product, term)
    log_scale, quantization = quantizer(4, 1, False, factor, 0.1)
    start = torch.tensor([-0.17], requires_grad=factor != "none") if offset else None
    learned = [] if factor == "none" else [leaf for leaf in (log_scale, start) if leaf is not None]

    found = bfloat16.quantize_gelu(argument, of(log_scale, quantization, start))
    exact = product.float() if term is None else product + term
    wanted = reference(F.gelu(exact), log_scale, quantization, start)
    assert found.dtype == torch.bfloat16
    assert_near(found, wanted, 0.01)

    grad, leaves = torch.randn(shape).bfloat16(), [product, *([] if term is None else [term]), *learned]
    by_ours, by_reference = (torch.autograd.grad(result, leaves, grad.to(result.dtype)) for result in (found, wanted))
    for ours, theirs in zip(by_ours, by_reference, strict=True):
        assert ours.dtype == theirs.dtype
        assert_near(ours, theirs, 0.01)


def test_operators_do_the_same_without_kernels(monkeypatch):
    monkeypatch.setattr(bfloat16_attention, "can_attend", lambda *_: False)
    monkeypatch.setattr(gelu, "can_quantize", lambda *_: False)
    # PyTorch's products round scores, and quantized values, to bfloat16; that changes the codes of some probabilities.
    check_attention(49, 32, 3, "l1", (2, 1, 49, 49), tolerance=0.05)
    check_gelu((3, 7, 40), True, True, "l1")


def gelu_codes(x: Tensor, bits: int, scale: float) -> Tensor:
    quantization = Quantization(bits, ScaleGroups(), True, "none")
    return gelu.quantize(x.bfloat16(), None, torch.tensor([scale]), None, quantization).double() / scale


def test_gelu_is_exact_to_seven_digits_from_end_to_end():
    need("gelu")
    x = torch.cat([torch.linspace(-9, 9, 20001), torch.tensor([0.0, -0.0, 30.0, -30.0])]).bfloat16()
    scale = 2**-10  # codes of 8 bits cover 0.125 at each side: the tail of GELU, and what is around zero
    exact = F.gelu(x.double()) / scale
    codes = gelu_codes(x, 8, scale)
    # Where a value is not within 10^-6 of the middle between two codes, there is no doubt about its code.
    sure = ((exact - exact.floor() - 0.5).abs() > 1e-6 / scale) | (exact.abs() > 130)
    assert sure.double().mean() > 0.95
    assert torch.equal(codes[sure], exact.clamp(-128, 127).round()[sure])
    assert gelu_codes(torch.full((64,), torch.nan), 8, scale).isnan().all()


def test_quotients_by_a_scale_are_rounded_as_divisions_are():
    need("attention")
    # One token: its probability is 1, so the output is the quantized value.
    torch.manual_seed(0)
    quantization = Quantization(8, ScaleGroups(1, 1), True, "none")
    of_probability = Quantization(8, ScaleGroups(1, 1), False, "none")
    for scale in (0.1, 0.037, 1e-4, 3.0):
        middles = torch.arange(-127, 127) + 0.5
        values = torch.cat([middles * scale, torch.randn(2000) * 60 * scale]).bfloat16()
        values = values[: len(values) // 64 * 64].view(-1, 1, 1, 64)
        scales = [torch.tensor([scale])] * 3 + [torch.tensor([1.0])]
        quantizers = bfloat16_attention.Quantizers(scales, [quantization] * 3 + [of_probability])
        output = bfloat16_attention.attend(values, values, values, None, quantizers, 1.0).output
        codes = (values.float() / scale).clamp(-128, 127).round()
        assert torch.equal(output.view(values.shape), (codes * torch.tensor(scale)).bfloat16())


def test_the_number_of_threads_changes_no_bit():
    need("attention")
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.manual_seed(0)
            torch.set_num_threads(count)
            heads = [torch.randn(2, 49, 3, 32).bfloat16().transpose(1, 2).requires_grad_() for _ in range(3)]
            quantizers = [quantizer(4, 3, signed, "l1", 0.1) for signed in (True, True, True, False)]
            argument = torch.randn(100, 48).bfloat16().requires_grad_()
            log_scale, quantization = quantizer(4, 1, False, "l1", 0.1)
            output = bfloat16.attention(*heads, None, SCALING, [of(*each) for each in quantizers])
            quantized = bfloat16.quantize_gelu(argument, of(log_scale, quantization))
            total = output.float().square().sum() + quantized.float().square().sum()
            leaves = [*heads, argument, log_scale, *(log for log, _ in quantizers)]
            results.append([output, quantized, *torch.autograd.grad(total, leaves)])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_what_is_no_number_shows():
    need("attention")
    heads = [torch.randn(2, 1, 40, 32) for _ in range(3)]
    heads[0][1, 0, 7, 3] = torch.nan
    quantizers = [of(*quantizer(4, 1, signed, "none", 0.1)) for signed in (True, True, True, False)]
    output = bfloat16.attention(*(x.bfloat16() for x in heads), None, SCALING, quantizers)
    assert output.isnan().any(-1).any(-1).nonzero().tolist() == [[1, 7]]


SIZES = {"vit": {"num_hidden_layers": 1}, "swin": {"drop_path_rate": 0.0, "depths": [1], "num_heads": [2]}}


def trained(model, forward):
    model.zero_grad()
    in_bfloat16 = model.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not in_bfloat16):
        logits = forward(pixel_values=images().to(model.dtype)).logits
    logits.float().square().sum().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("family", "dtype"), [("vit", "float32"), ("swin", "float32"), ("vit", "bfloat16")])
def test_a_compiled_model_calls_the_operators_and_trains_as_in_eager_mode(monkeypatch, family, dtype):
    monkeypatch.setattr(bfloat16, "HAS_TILES", True)
    monkeypatch.setattr(bfloat16, "CONVERTS", True)
    model = build(family, **SIZES[family])
    quantize(model, QuantConfig(weight_bits=4, activation_bits=4))
    calibrate(model, [images()])
    set_fusion(model, False)
    model.to(getattr(torch, dtype)).train()
    called = []

    def noted(graph, inputs):
        called.extend(str(node.target) for node in graph.graph.nodes)
        return make_boxed_func(graph)

    whole = torch.compile(model, backend=aot_autograd(fw_compiler=noted), fullgraph=True)
    found, wanted = trained(model, whole), trained(model, model)
    torch._dynamo.reset()
    for name in ("attention", "attention_gradients", "gelu", "gelu_gradients"):
        assert called.count(f"hf_vaq.bfloat16_{name}.default") == 1
    replaced = ("softmax", "bmm", "erf", "convolution")
    assert not [name for name in called if any(operation in name for operation in replaced)]
    assert_near(found[0], wanted[0], 0.02)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        if gradient.norm() > 1e-3 * model.get_parameter(name).numel() ** 0.5:  # those of keys' biases are zero
            assert_near(found[1][name], gradient, 0.15)


def _zero(module, inputs, output):
    output.zero_()


def test_a_hook_that_changes_the_argument_of_gelu_in_place_is_obeyed(monkeypatch):
    monkeypatch.setattr(bfloat16, "CONVERTS", True)
    model = build("vit", **SIZES["vit"])
    quantize(model, QuantConfig(weight_bits=4, activation_bits=4))
    calibrate(model, [images()])
    set_fusion(model, False)
    mlp = model.train().vit.layers[0].mlp
    x = torch.randn(2, 5, mlp.fc1.in_features)
    outputs = []
    for hook in (lambda *arguments: None, _zero):
        handle = mlp.fc1.register_forward_hook(hook)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs.append([forward(x).detach() for forward in (torch.compile(mlp, backend="aot_eager"), mlp)])
        handle.remove()
        torch._dynamo.reset()
    assert_near(*outputs[0], 0.2)  # eager mode rounds the argument to bfloat16, which changes codes
    assert_near(*outputs[1], 0.01)
