"""The native kernels: layouts of weights, threads, kinds of processors, and doing without."""

import pytest
import torch

from hf_vaq import shared_libraries
from hf_vaq.numerics import compiled, native
from hf_vaq.numerics.bins import bin_regularizer
from hf_vaq.numerics.compiled import uncompiled
from hf_vaq.numerics.fake_quantize import quantize_to_codes
from hf_vaq.numerics.fused import fused_quantize, fused_weight_gradients
from hf_vaq.numerics.groups import ScaleGroups
from hf_vaq.numerics.native import LatentWeight, loading
from hf_vaq.numerics.oscillation import Oscillations
from hf_vaq.numerics.quantization import Quantization

needs_kernels = pytest.mark.skipif(loading.kernels() is None, reason="needs a C++ compiler")

CASES = [
    ((70, 33), ScaleGroups(), 4),
    ((24, 40), ScaleGroups(3, 0), 3),
    ((20, 36), ScaleGroups(4, 1), 2),
    ((6, 3, 4, 4), ScaleGroups(6, 0), 8),
    ((6, 8, 2, 2), ScaleGroups(4, 1), 4),
    ((1, 3000), ScaleGroups(), 2),
    ((300, 400), ScaleGroups(2, 0), 4),
]


def case(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        LatentWeight(
            torch.randn(shape, generator=generator),
            groups,
            torch.rand(groups.count, generator=generator) + 3 / 2**bits,
            bits,
        )
        for shape, groups, bits in CASES
    ]


def codes_of(weights):
    return torch.cat(
        [
            quantize_to_codes(w.values, w.groups.expand(w.scale, w.values.shape), w.bits).to(torch.int8).flatten()
            for w in weights
        ]
    )


def regularize(weights, factor=0.5):
    """Value, and what was added to gradients of one."""
    gradients = [torch.ones_like(weight.values) for weight in weights]
    gradients[1] = None
    value = native.bin_regularizer(weights, gradients, factor)
    return value, [None if gradient is None else gradient - 1 for gradient in gradients]


def check_regularizer(weights):
    value, gradients = regularize(weights)
    latent = [weight.values.clone().double().requires_grad_() for weight in weights]
    grouped = [weight.groups.collect(values) for weight, values in zip(weights, latent, strict=True)]
    expected = bin_regularizer(grouped, [w.scale.double() for w in weights], [w.bits for w in weights])
    (0.5 * expected).backward()
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    assert gradients[1] is None
    for gradient, values in zip(gradients, latent, strict=True):
        if gradient is not None:
            torch.testing.assert_close(gradient.double(), values.grad, rtol=1e-4, atol=1e-6)


def check_oscillations(weights, momentum=0.001):
    """Two hundred steps in which many codes change, against the same without kernels, to the last bit."""
    generator = torch.Generator().manual_seed(1)
    fast, plain = Oscillations(codes_of(weights), momentum), Oscillations(codes_of(weights), momentum)
    for _ in range(200):
        for weight in weights:
            weight.values.add_(0.3 * torch.randn(weight.values.shape, generator=generator)).clamp_(-3, 3)
        native.count_oscillations(weights, fast)
        plain.update(codes_of(weights))
    assert torch.equal(fast.codes, plain.codes)
    assert torch.equal(fast.history.isnan(), plain.history.isnan())
    assert torch.equal(fast.history.nan_to_num(), plain.history.nan_to_num())
    assert torch.equal(fast.direction, plain.direction) and plain.frequency.max() > min(50 * momentum, 0.5)


@needs_kernels
def test_the_regularizer_finds_the_groups_of_every_layout():
    check_regularizer(case())


@needs_kernels
def test_scales_that_are_no_numbers_show_in_the_regularizer():
    for bits in (2, 4, 8):
        weight = LatentWeight(torch.randn(20, 30), ScaleGroups(2, 0), torch.tensor([0.1, torch.nan]), bits)
        gradient = torch.zeros(20, 30)
        assert native.bin_regularizer([weight], [gradient]).isnan()
        assert gradient[:10].isfinite().all() and gradient[10:].isnan().all()


@needs_kernels
def test_weights_beyond_all_levels_have_the_codes_of_the_last_ones():
    values = torch.tensor([torch.inf, -torch.inf, 3e38, -3e38, 100.0, -100.0, 0.749, 0.751]).repeat(30)
    weights = [LatentWeight(values, ScaleGroups(), torch.tensor([0.1]), bits) for bits in (2, 4, 8)]
    oscillations = Oscillations(torch.zeros(3 * len(values), dtype=torch.int8))
    native.count_oscillations(weights, oscillations)
    assert torch.equal(oscillations.codes, codes_of(weights))


def quantized(weight, factor):
    """Values, gradients by the weight and by the scale parameter; and the gradient that was given."""
    quantization = Quantization(weight.bits, weight.groups, factor=factor, weight=True)
    values = fused_quantize(weight.values, weight.scale, None, quantization)
    grad = torch.randn(weight.values.shape, generator=torch.Generator().manual_seed(2))
    return values, *fused_weight_gradients(grad, weight.values, weight.scale, quantization), grad


def check_quantizers(weights):
    for weight in weights:
        for factor in ("numel", "l1"):
            values, by_weight, by_scale, given = quantized(weight, factor)
            assert by_weight is given  # nothing was allocated for it
            with uncompiled():
                wanted, wanted_by_weight, wanted_by_scale, _ = quantized(weight, factor)
            assert torch.equal(values, wanted)
            assert torch.equal(by_weight, wanted_by_weight)
            torch.testing.assert_close(by_scale, wanted_by_scale, rtol=1e-4, atol=1e-6)


def check_signs_and_numbers_that_are_none():
    x = torch.tensor([-0.01, 0.01, torch.nan, torch.inf, -torch.inf] * 9)
    quantization = Quantization(4, ScaleGroups())
    values = fused_quantize(x, torch.tensor([0.1]), torch.tensor([0.05]), quantization)
    with uncompiled():
        wanted = fused_quantize(x, torch.tensor([0.1]), torch.tensor([0.05]), quantization)
    assert torch.equal(values.view(torch.int32), wanted.view(torch.int32))


@needs_kernels
def test_quantizers_and_their_gradients_are_those_without_kernels():
    check_quantizers(case())
    check_signs_and_numbers_that_are_none()


@needs_kernels
def test_a_weight_that_is_no_number_shows_in_the_gradient_of_its_scale():
    weight = case()[1]
    weight.values[0, 0] = torch.nan
    values, by_weight, by_scale, _ = quantized(weight, "numel")
    assert values[0, 0].isnan() and by_weight[0, 0] == 0
    assert by_scale.isnan().tolist() == [True, False, False]


@needs_kernels
@pytest.mark.parametrize("momentum", [0.001, 0.0001, 0.9])
def test_oscillations_are_counted_to_the_last_bit(momentum):
    check_oscillations(case(), momentum)


@needs_kernels
def test_the_number_of_threads_changes_no_bit():
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            value, gradients = regularize(case())
            quantizers = [quantized(weight, "l1")[:3] for weight in case()]
            results.append([value, *gradients[:1], *gradients[2:], *(x for pair in quantizers for x in pair)])
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.fixture
def fresh_loading(monkeypatch, tmp_path):
    loading.kernels.cache_clear()
    monkeypatch.setattr(shared_libraries.constants, "HF_HOME", str(tmp_path))
    yield
    loading.kernels.cache_clear()


@needs_kernels
@pytest.mark.parametrize("capability", ["AVX2", "DEFAULT"])
def test_other_processors_compute_the_same(monkeypatch, fresh_loading, capability):
    if capability == "AVX2" and not torch.cpu._is_avx2_supported():
        pytest.skip("this CPU has no AVX2 instructions")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert loading.kernels() is not None
    check_regularizer(case())
    check_oscillations(case())
    check_quantizers(case())
    check_signs_and_numbers_that_are_none()


def test_without_a_compiler_nothing_is_tried(monkeypatch, fresh_loading):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not native.can_run([torch.ones(3)])


@needs_kernels
def test_only_plain_weights_on_the_cpu_are_taken():
    weight = torch.ones(4, 6)
    assert native.can_run([weight, torch.nn.Parameter(weight)])
    assert not native.can_run([weight, weight.t()])
    assert not native.can_run([weight.double()])
    assert not native.can_run([weight.bfloat16()])
    assert not native.can_run([weight.to("meta")])
    with uncompiled():
        assert not native.can_run([weight])


@needs_kernels
def test_a_failure_of_torch_compile_leaves_native_kernels_as_they_are(monkeypatch):
    monkeypatch.setattr(compiled, "_failure", "InvalidCxxCompiler")
    assert native.can_run([torch.ones(3)])


@needs_kernels
@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="needs a CPU that knows bfloat16")
def test_a_library_that_cannot_be_built_takes_no_other_with_it(monkeypatch):
    build = loading.load_library

    def build_all_but_gelu(source, *arguments):
        if source.name == "gelu.cpp":
            raise shared_libraries.BuildError("gelu.cpp: internal compiler error")
        return build(source, *arguments)

    whole = loading.kernels()
    monkeypatch.setattr(loading, "load_library", build_all_but_gelu)
    found = loading.kernels.__wrapped__()
    missing = {name for name in whole._fields if getattr(whole, name) is not None and getattr(found, name) is None}
    assert missing == {"gelu"}
