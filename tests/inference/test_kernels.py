"""The compiled kernels against plain formulas, and what happens where they cannot be built."""

import math
import subprocess

import pytest
import torch
from torch import nn

from hf_vaq import shared_libraries
from hf_vaq.inference.codes import CENTER, byte_codes
from hf_vaq.inference.native import loading, ops
from hf_vaq.inference.staircase import SIZE, Staircase
from hf_vaq.nn import PackedActivationQuantizer
from hf_vaq.numerics.fake_quantize import quantize_to_codes
from hf_vaq.numerics.groups import ScaleGroups

needs_kernels = pytest.mark.skipif(loading.kernels() is None, reason="needs AVX-512 VNNI and a C++ compiler")


def quantizer(bits=4, scale=0.1, signed=True, offset=None):
    made = PackedActivationQuantizer(bits, ScaleGroups(), signed, offset is not None)
    made.scale.fill_(scale)
    if offset is not None:
        made.offset.fill_(offset)
    return made


def reference_attention(codes, mask, scales, levels, scaling):
    """In float64, from bytes; probabilities are coded, the output is not."""
    q, k, v = (
        (x.double() - CENTER).clamp(*levels[i]) * scales[i].double()[:, None, None] for i, x in enumerate(codes)
    )
    scores = q @ k.transpose(2, 3) * scaling + (0 if mask is None else mask.double())
    step = scales[3].double()[:, None, None]
    return ((scores.softmax(-1) / step).clamp(*levels[3]).round() * step) @ v


@needs_kernels
@pytest.mark.parametrize("tokens, dim, heads", [(198, 64, 3), (49, 32, 2), (5, 8, 2), (17, 20, 1), (66, 80, 2)])
@pytest.mark.parametrize("with_mask", [False, True])
def test_attention_is_the_formula(tokens, dim, heads, with_mask):
    torch.manual_seed(0)
    batch = 2
    levels = [(-8, 7), (-2, 1), (-128, 127), (0, 15)]
    # Side by side, as they come out of one product; some bytes lie outside the levels.
    side_by_side = torch.randint(100, 156, (batch, tokens, 3 * heads * dim), dtype=torch.uint8)
    codes = [x.view(batch, tokens, heads, dim).transpose(1, 2) for x in side_by_side.chunk(3, -1)]
    mask = torch.randn(1, heads, tokens, tokens) if with_mask else None
    scales = torch.rand(5, heads) * 0.1 + 0.05
    scales[3] = 0.02
    flat = [float(level) for pair in (*levels, (-8, 7)) for level in pair]
    found = ops.attention(*codes, mask, scales, flat, dim**-0.5, False)
    wanted = reference_attention(codes, mask, scales, levels, dim**-0.5).transpose(1, 2)
    # A probability on the border of two codes may fall to either side: one step of it, times a value.
    difference = (found - wanted).abs()
    assert (difference > 1e-4).double().mean() < 2e-3 and difference.max() < 0.02 * 0.15 * 130
    coded = ops.attention(*codes, mask, scales, flat, dim**-0.5, True)
    expected = (found / scales[4][:, None]).clamp(-8, 7).round() + 8
    assert coded.shape == (batch, tokens, heads, dim)
    assert (coded != expected).double().mean() < 1e-4


@needs_kernels
@pytest.mark.parametrize("count", [1, 15, 16, 1000, 40_000])
@pytest.mark.parametrize("offset", [None, -0.17])
def test_quantization_gives_the_codes_of_the_simulation_to_the_last_one(count, offset):
    x = torch.randn(count)
    wanted = quantize_to_codes(x, torch.tensor(0.1), 4, offset=None if offset is None else torch.tensor(offset)) + 8
    assert torch.equal(ops.quantize(x, 0.1, offset, -8, 7), wanted.to(torch.uint8))


@needs_kernels
def test_layer_norm_codes_are_those_of_the_quantized_layer_norm():
    torch.manual_seed(0)
    norm = nn.LayerNorm(50)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(7, 300, 50) * 3 + 1
    with torch.no_grad():
        found = ops.layer_norm_codes(x, norm.weight, norm.bias, norm.eps, 0.1, -128, 127)
        wanted = byte_codes(quantizer(8), norm(x))
    assert (found != wanted).double().mean() < 1e-4


@pytest.mark.parametrize("function", [nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.ReLU()], ids=str)
@pytest.mark.parametrize("bits, scale, offset", [(2, 0.4, -0.1), (4, 0.07, -0.16), (5, 0.2, 0.3)])
def test_a_staircase_says_all_about_a_quantized_activation_function(function, bits, scale, offset):
    reader = quantizer(bits, scale, signed=False, offset=offset)
    staircase = Staircase.of(function, reader)
    x = torch.cat([torch.randn(20_000) * 3, torch.tensor([-1e30, -100.0, 0.0, 100.0, 1e30])])
    found = staircase.codes[(x[:, None] >= staircase.breakpoints).sum(1)]
    wanted = byte_codes(reader, function(x)).int()
    assert torch.equal(found[-5:].int(), wanted[-5:])
    assert (found != wanted).double().mean() <= 1e-4
    assert staircase.fits() and wanted.unique().numel() > 2


@needs_kernels
@pytest.mark.parametrize("count", [0, 3, 15, 16, 31, 32, SIZE - 1])
def test_step_codes_are_those_of_the_breakpoints_that_are_reached(count):
    torch.manual_seed(0)
    breakpoints = torch.randn(count).sort().values
    staircase = Staircase(breakpoints, torch.randint(0, 256, (count + 1,), dtype=torch.int32))
    x = torch.cat([torch.randn(50_000), breakpoints, torch.tensor([-math.inf, math.inf])])
    found = ops.step_codes(x, *staircase.padded())
    wanted = staircase.codes[(x[:, None] >= breakpoints).sum(1)]
    assert torch.equal(found, wanted.to(torch.uint8))


@needs_kernels
@pytest.mark.parametrize("place", [0, 17, 29_999])
def test_what_makes_codes_says_whether_it_met_nan(place):
    x = torch.randn(300, 100)
    x.view(-1)[place] = math.nan
    staircase = Staircase(torch.zeros(1), torch.tensor([0, 1], dtype=torch.int32))
    assert ops.quantize(x, 0.1, None, -8, 7) is None
    assert ops.step_codes(x, *staircase.padded()) is None
    assert ops.layer_norm_codes(x, torch.ones(100), torch.zeros(100), 1e-6, 0.1, -8, 7) is None


@pytest.fixture
def fresh_loading(monkeypatch, tmp_path):
    loading.kernels.cache_clear()
    monkeypatch.setattr(shared_libraries.constants, "HF_HOME", str(tmp_path))
    yield tmp_path / "hf_vaq"
    loading.kernels.cache_clear()


def test_without_a_compiler_there_are_no_kernels(monkeypatch, fresh_loading):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert loading.kernels() is None


@needs_kernels
def test_a_compiler_that_fails_leaves_nothing_behind(monkeypatch, fresh_loading):
    monkeypatch.setattr(loading, "FLAGS", (*loading.FLAGS, "-no-such-flag"))
    assert loading.kernels() is None
    assert list(fresh_loading.iterdir()) == []


@needs_kernels
def test_kernels_are_built_once(monkeypatch, fresh_loading):
    assert loading.kernels() is not None
    files = sorted(fresh_loading.iterdir())
    assert len(files) == 2
    loading.kernels.cache_clear()
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **options: pytest.fail(str(command)) if "-o" in command else real(command, **options),
    )
    assert loading.kernels() is not None and sorted(fresh_loading.iterdir()) == files


real = subprocess.run
