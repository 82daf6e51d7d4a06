"""set_execution and model.execution: what is chosen where, and what is said of it."""

import copy
import io
import logging

import pytest
import torch
from helpers import build, images
from inference_helpers import logits, packed, trained
from transformers import AutoModelForImageClassification

import hf_vaq
from hf_vaq.inference import IntegerUnsupportedError, backends, set_execution, simulated_modules

INTEGER = "integer (oneDNN, uint8 x int8)"
needs_integers = pytest.mark.skipif(not backends.has_integer_instructions(), reason="needs a CPU with VNNI or AMX")


@pytest.fixture
def cpu_without_vnni(monkeypatch):
    monkeypatch.setattr(backends, "has_integer_instructions", lambda: False)


@needs_integers
def test_packing_and_loading_choose_integers_and_the_model_says_so(tmp_path):
    model = packed()
    assert model.execution == INTEGER and simulated_modules(model) == []
    model.save_pretrained(tmp_path)
    assert AutoModelForImageClassification.from_pretrained(tmp_path).execution == INTEGER


@needs_integers
def test_each_execution_can_be_chosen_and_left_again():
    form = trained()
    model = hf_vaq.pack(form)
    integer = logits(model)
    assert set_execution(model, "simulation").execution == "simulation (float32)"
    assert torch.equal(logits(model), logits(form))
    assert len(simulated_modules(model)) == 2 * 7 + 2
    assert set_execution(model, "integer", backend="int_mm").execution == "integer (torch._int_mm, int8 x int8)"
    torch.testing.assert_close(logits(model), integer)
    assert set_execution(model, "auto").execution == INTEGER
    assert torch.equal(logits(model), integer)


def test_a_cpu_without_vnni_simulates_and_says_why(cpu_without_vnni):
    form = trained()
    model = hf_vaq.pack(form)
    assert model.execution == "simulation (float32): this CPU has neither VNNI nor AMX instructions"
    assert torch.equal(logits(model), logits(form))


def test_integers_asked_for_where_there_are_none_are_an_error_with_the_reason(cpu_without_vnni):
    model = packed()
    with pytest.raises(IntegerUnsupportedError, match="neither VNNI nor AMX"):
        set_execution(model, "integer")
    assert model.execution.startswith("simulation")


@needs_integers
def test_a_model_that_must_compute_in_integers_refuses_a_device_without_them(monkeypatch):
    model = set_execution(packed(), "integer")
    monkeypatch.setattr(backends, "has_integer_instructions", lambda: False)
    with pytest.raises(IntegerUnsupportedError, match="neither VNNI nor AMX"):
        logits(model)


def test_the_choice_is_logged(caplog, monkeypatch, cpu_without_vnni):
    logger = logging.getLogger("hf_vaq.inference.execution")
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.INFO, logger=logger.name):
        model = packed()
    assert f"computes: {model.execution}" in caplog.text


def test_other_devices_are_named_in_the_reason():
    assert backends.integer_backend("meta") == (None, "no integer matrix multiplication is known for 'meta' devices")


@pytest.mark.parametrize(
    "capability, expected",
    [((7, 0), (None, "this GPU (compute capability 7.0) has no int8 tensor cores")), ((9, 0), ("int_mm", ""))],
)
def test_cuda_uses_int8_tensor_cores_where_there_are_any(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    assert backends.integer_backend("cuda") == expected
    assert backends.integer_backend("cuda", "onednn")[1] == "the backend 'onednn' runs on CPUs only"


def test_unknown_names_and_models_that_are_not_packed_are_refused():
    model = packed()
    with pytest.raises(ValueError, match="execution='int8': expected one of 'auto', 'integer', 'simulation'"):
        set_execution(model, "int8")
    with pytest.raises(ValueError, match="backend='mkl': expected one of 'onednn', 'int_mm'"):
        set_execution(model, "auto", backend="mkl")
    for other in (build(), trained(calibrated=False)):
        with pytest.raises(ValueError, match="is not packed"):
            set_execution(other, "auto")
        assert not hasattr(other, "execution")


@needs_integers
def test_weight_only_and_activation_only_models_are_simulated_and_say_so():
    for fields in ({"activation_bits": None, "calibrated": False}, {"weight_bits": None}):
        form = trained(**fields)
        model = hf_vaq.pack(form)
        assert model.execution == "simulation (float32)"
        assert torch.equal(logits(model), logits(form))
        with pytest.raises(IntegerUnsupportedError, match="both a quantized weight and a quantized input"):
            set_execution(model, "integer")


@needs_integers
def test_layers_without_an_integer_form_are_simulated_by_name():
    override = {"*.0.attention.q_proj": {"weight_bits": None}, "*.1.mlp.fc2": {"activation_bits": None}}
    form = trained(module_overrides=override)
    model = hf_vaq.pack(form)
    names = ["deit.layers.0.attention.k_proj", "deit.layers.0.attention.v_proj", "deit.layers.1.mlp.fc2"]
    assert simulated_modules(model) == names
    assert model.execution == "integer (oneDNN, uint8 x int8; 3 modules in simulation)"
    torch.testing.assert_close(logits(model), logits(form))


@needs_integers
def test_prepared_weights_are_neither_saved_nor_copied_nor_pickled(tmp_path):
    model = packed()
    before = set(model.state_dict())
    expected = logits(model)
    assert model.classifier.engine.gemm is not None
    assert set(model.state_dict()) == before
    copied = copy.deepcopy(model)
    assert copied.classifier.engine.gemm is None and torch.equal(logits(copied), expected)
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    pickled = torch.load(stream, weights_only=False)
    assert pickled.classifier.engine.gemm is None and torch.equal(logits(pickled), expected)
    model.save_pretrained(tmp_path / "prepared")
    packed().save_pretrained(tmp_path / "fresh")
    files = [tmp_path / name / "model.safetensors" for name in ("prepared", "fresh")]
    assert files[0].read_bytes() == files[1].read_bytes()


@needs_integers
def test_moving_a_model_forgets_what_was_prepared_for_the_old_device():
    model = packed()
    expected = logits(model)
    model.to("cpu")
    assert model.classifier.engine.gemm is None
    assert torch.equal(logits(model), expected)


@needs_integers
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_half_precision_compute_in_integers_as_exactly_as_their_type_allows(dtype, tmp_path):
    model = packed("vit", weight_bits=8, activation_bits=8)
    model.save_pretrained(tmp_path)
    half = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=dtype)
    assert half.execution == INTEGER
    answer = logits(half)
    assert answer.dtype is dtype
    torch.testing.assert_close(answer.float(), logits(model), rtol=0, atol=0.03)


@needs_integers
def test_device_map_loads_a_packed_model_that_computes_in_integers(tmp_path):
    model = packed("vit")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, device_map={"": "cpu"})
    assert loaded.execution == INTEGER
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize("execution", ["auto", "simulation"])
@pytest.mark.parametrize("family", ["deit", "swin"])
def test_pixels_of_a_wrong_type_or_shape_are_refused_by_name(family, execution):
    model = set_execution(packed(family), execution)
    with pytest.raises(ValueError, match=r"pixel_values has type torch\.uint8: expected floating-point"):
        logits(model, images().to(torch.uint8))
    for shape in ((3, 32, 32), (2, 1, 32, 32), (0, 3, 32, 32)):
        with pytest.raises(ValueError, match=r"pixel_values has shape .*expected \(batch, 3, height, width\)"):
            logits(model, torch.zeros(shape))


@needs_integers
def test_probabilities_are_returned_where_they_are_asked_for():
    model = packed("vit")
    simulated = set_execution(copy.deepcopy(model), "simulation")
    with torch.inference_mode():
        wanted = simulated(pixel_values=images(), output_attentions=True).attentions
        found = model(pixel_values=images(), output_attentions=True).attentions
    assert len(found) == 2
    for probabilities, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(probabilities, expected)


@needs_integers
def test_dropout_of_a_model_in_training_mode_is_still_applied():
    model = packed(model=build("deit", attention_probs_dropout_prob=0.9))
    still = logits(model)
    assert not torch.allclose(logits(model.train()), still)
    assert torch.equal(logits(model.eval()), still)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("has_run", [False, True])
@pytest.mark.parametrize("execution", ["auto", "simulation"])
def test_a_model_that_is_moved_to_a_type_is_that_which_is_loaded_in_it(dtype, has_run, execution, tmp_path):
    model = packed("deit")
    model.save_pretrained(tmp_path)
    if has_run:
        logits(model)
    moved = set_execution(model.to(dtype), execution)
    loaded = set_execution(AutoModelForImageClassification.from_pretrained(tmp_path, dtype=dtype), execution)
    assert {name: x.dtype for name, x in moved.state_dict().items()} == {
        name: x.dtype for name, x in loaded.state_dict().items()
    }
    x = images().to(dtype)
    assert torch.equal(logits(moved, x), logits(loaded, x)) and logits(moved, x).dtype == dtype
    assert moved.execution == loaded.execution


def test_scales_keep_their_precision_on_the_way_to_a_type_and_back():
    model = packed("swin")
    before = {name: x.clone() for name, x in model.state_dict().items() if name.endswith(("scale", "offset"))}
    after = model.to(torch.float16).to(torch.float32).state_dict()
    assert len(before) > 20 and all(torch.equal(after[name], x) for name, x in before.items())


def test_a_model_in_half_precision_is_saved_and_loaded_again(tmp_path):
    model = packed("deit").to(torch.float16)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=torch.float16)
    x = images().half()
    assert torch.equal(logits(loaded, x), logits(model, x))


@pytest.mark.parametrize("chosen", ["eager", "sdpa"])
@pytest.mark.parametrize("form", ["training", "auto", "simulation"])
@pytest.mark.parametrize("family", ["deit", "swin"])
def test_an_attention_that_asks_no_quantizers_is_refused(family, form, chosen):
    model = trained(family) if form == "training" else set_execution(packed(family), form)
    expected = logits(model)
    if family == "swin" and chosen == "sdpa":
        model.config._attn_implementation = chosen  # as transformers refuses to
    else:
        model.set_attn_implementation(chosen)
    with pytest.raises(ValueError, match=f"attn_implementation='{chosen}'.*expected 'vaq'.*output_attentions"):
        logits(model)
    model.set_attn_implementation("vaq")
    assert torch.equal(logits(model), expected)


def test_attention_without_quantizers_may_be_any():
    model = packed("deit", quantize_attention=False)
    expected = logits(model)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-3)
