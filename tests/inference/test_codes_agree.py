"""Integer execution computes the codes of the float simulation, layer by layer, for every family and scheme."""

import copy
import functools

import pytest
import torch
from helpers import FAMILIES, build, images
from inference_helpers import logits, packed
from torchvision.transforms.functional import pil_to_tensor

from hf_vaq.data import load_digits
from hf_vaq.inference import attention, code_agreement, codes, producers, set_execution, whole_layers
from hf_vaq.inference.backends import has_integer_instructions
from hf_vaq.inference.native import loading

pytestmark = pytest.mark.skipif(not has_integer_instructions(), reason="needs a CPU with VNNI or AMX")

LIMIT = 1e-4  # share of codes that may differ: real numbers on the border of two codes
SCHEMES = [
    {"weight_bits": 2, "activation_bits": 2},
    {"weight_bits": 3, "activation_bits": 5, "weight_granularity": "head", "activation_granularity": "head"},
    {"weight_bits": 8, "activation_bits": 8, "weight_granularity": "channel"},
]
MORE_SCHEMES = [
    {"weight_bits": 4, "activation_bits": 4, "quantize_attention": False},
    {"weight_bits": 4, "activation_bits": 4, "edge_bits": 2},
    {"weight_granularity": "head"},
    {"activation_granularity": "head"},
    {"module_overrides": {"*.fc1": {"weight_bits": 3, "activation_bits": 7}, "*.v_proj": {"weight_bits": 8}}},
    {
        "module_overrides": {
            "*.attention_quantizers.query": {"activation_bits": 8},
            "*.attention_quantizers.value": {"activation_bits": 3},
        }
    },
]


@pytest.fixture(params=["onednn", "int_mm", "without kernels"])
def engine(request, monkeypatch):
    if request.param == "without kernels":
        for module in (attention, codes, producers, whole_layers):
            monkeypatch.setattr(module, "kernels", lambda: None)
        return "onednn"
    return request.param


@functools.cache
def built(family, number):
    """One model for all engines, which get copies: building takes three times as long as comparing."""
    return packed(family, **(SCHEMES + MORE_SCHEMES)[number])


def executed(family, number, engine):
    return set_execution(copy.deepcopy(built(family, number)), "integer", backend=engine)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("number", range(len(SCHEMES)), ids=[str(fields["weight_bits"]) for fields in SCHEMES])
def test_every_family_computes_the_codes_of_the_simulation(family, number, engine):
    check(executed(family, number, engine), family)


@pytest.mark.parametrize("number", range(len(MORE_SCHEMES)))
def test_every_scheme_computes_the_codes_of_the_simulation(number, engine):
    check(executed("vit", len(SCHEMES) + number, engine), "vit")


def check(model, family):
    agreement = code_agreement(model, images(8, seed=3))
    attentions = {name for name, module in model.named_modules() if hasattr(module, "attention_engine")}
    inputs = {name for name in agreement.total if not name.endswith((".query", ".key", ".value"))}
    assert len(agreement.total) == len(inputs) + 3 * len(attentions)
    assert any(name.endswith("patch_embeddings.projection") for name in inputs) and len(inputs) >= 8
    assert sum(agreement.total.values()) > 10_000
    assert agreement.share <= LIMIT, {name: share for name, share in agreement.shares().items() if share}


def test_a_wrong_weight_code_is_seen():
    model = packed("vit")
    engine = model.classifier.engine
    logits(model)
    engine.gemm.scale_0.mul_(1.01)
    pixel_values = images(8, seed=3)
    simulated = set_execution(packed("vit"), "simulation")
    assert not torch.allclose(logits(model, pixel_values), logits(simulated, pixel_values), rtol=1e-4, atol=1e-6)


def test_with_propagation_differences_reach_the_logits_only_where_codes_differ():
    agreement = code_agreement(packed("vit"), images(8, seed=3), propagate=True)
    assert agreement.share <= LIMIT
    if agreement.share == 0:
        assert agreement.logits_difference < 1e-5


def test_agreement_is_measured_of_integer_execution_only():
    with pytest.raises(ValueError, match=r"'simulation \(float32\)': expected integer execution"):
        code_agreement(set_execution(packed("vit"), "simulation"), images())


def test_swin_pads_windows_and_merges_odd_grids_as_in_the_simulation():
    model = packed(model=build("swin", image_size=20, window_size=4), weight_bits=4, activation_bits=4)
    assert code_agreement(model, images(4, size=20)).share <= LIMIT


@pytest.mark.skipif(loading.kernels() is None, reason="needs AVX-512 VNNI and a C++ compiler")
def test_what_the_kernels_compute_is_what_is_computed_without_them(monkeypatch):
    model = packed("vit", activation_granularity="head")
    with_kernels = logits(model)
    for module in (attention, codes, producers, whole_layers):
        monkeypatch.setattr(module, "kernels", lambda: None)
    set_execution(model, "auto")
    torch.testing.assert_close(logits(model), with_kernels, rtol=1e-5, atol=1e-6)


def test_top1_of_the_digits_is_that_of_the_simulation():
    digits = load_digits()["test"].select(range(200))
    pixels = torch.stack([pil_to_tensor(row["image"].convert("RGB")) for row in digits]).float() / 127.5 - 1
    model = packed(model=build("deit", image_size=8, patch_size=2, num_labels=10), weight_bits=2, activation_bits=2)
    integer = logits(model, pixels).argmax(-1)
    assert torch.equal(integer, logits(set_execution(model, "simulation"), pixels).argmax(-1))
