"""The sensitivity analysis against direct forward passes of the model."""

import math

import pytest
import torch
from analysis_helpers import Labelled
from helpers import FAMILIES, build, images

import hf_vaq
from hf_vaq import QuantConfig
from hf_vaq.analysis import Switchboard, TrainingBudget, analyze_sensitivity
from hf_vaq.analysis.groups import KINDS, find_groups
from hf_vaq.analysis.measuring import SettingsMeasurement, measure_logits
from hf_vaq.analysis.sensitivity import ALL_BUT, EVERYTHING, FULL_PRECISION, ONLY

W3A3 = QuantConfig(weight_bits=3, activation_bits=3)


def quantized(family):
    model = hf_vaq.quantize(build(family), W3A3)
    hf_vaq.calibrate(model, [images()])
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_skipping_blocks_changes_no_measurement(family):
    model = quantized(family)
    board = Switchboard(model)
    groups = find_groups(model, board)
    settings = {"none": frozenset(), "all": board.parts}
    settings |= {f"only {group.name}": group.parts for group in groups}
    settings |= {f"but {group.name}": board.parts - group.parts for group in groups}
    x, labels = images(4, 1), torch.arange(4) % 3
    measured = SettingsMeasurement(model, board, settings).run([{"pixel_values": x, "labels": labels}])
    with torch.inference_mode():
        reference = build(family)(pixel_values=x).logits
        for name, parts in settings.items():
            with board.quantizing(parts):
                expected = measure_logits(model(pixel_values=x).logits, reference, labels)
            assert measured[name].noise == pytest.approx(expected.noise, rel=1e-4, abs=1e-9), name
            assert (measured[name].correct, measured[name].images) == (expected.correct, 4)


def test_a_batch_takes_one_forward_pass_a_setting_and_no_more():
    model = quantized("vit")
    board = Switchboard(model)
    groups = find_groups(model, board)
    # In the order of the analysis: both settings of a group one after the other.
    settings = {"none": frozenset(), "all": board.parts}
    for group in groups:
        settings |= {f"only {group.name}": group.parts, f"but {group.name}": board.parts - group.parts}
    passes = []
    handle = model.register_forward_hook(lambda module, args, output: passes.append(1))
    batch = {"pixel_values": images(4, 1), "labels": torch.arange(4) % 3}
    SettingsMeasurement(model, board, settings).run([batch, batch])
    handle.remove()
    assert len(passes) == 2 * len(settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_kinds_and_blocks_each_cover_the_blocks_once(family):
    model = quantized(family)
    board = Switchboard(model)
    groups = {group.name: group.parts for group in find_groups(model, board)}
    blocks = [parts for name, parts in groups.items() if name.startswith("block.") and "head" not in name]
    edges = groups["first_layer"] | groups["last_layer"] | groups.get("other", frozenset())
    assert groups["ffn"] | groups["mhsa"] | edges == board.parts
    assert frozenset.union(*blocks) == groups["ffn"] | groups["mhsa"]
    assert sum(map(len, blocks)) == len(groups["ffn"]) + len(groups["mhsa"])
    inside = ("query", "key", "value", "attention_probabilities", "attention_output")
    heads = frozenset.union(*(parts for name, parts in groups.items() if "head" in name))
    assert heads == frozenset.union(*(groups[name] for name in inside)) < groups["mhsa"]
    assert set(groups) & set(KINDS) >= {"ffn", "mhsa", *inside, "first_layer", "last_layer"}


def test_measures_of_a_batch_equal_their_formulas():
    reference = torch.tensor([[1.0, 3.0], [2.0, 0.0]])
    logits = torch.tensor([[2.0, 4.0], [1.0, 3.0]])  # the first differs by a constant only, which softmax ignores
    measured = measure_logits(logits, reference, torch.tensor([1, 0]))
    # Centred: reference (-1, 1), (1, -1); logits (-1, 1), (-1, 1).
    assert (measured.signal, measured.noise, measured.correct) == (4.0, 8.0, 1)
    assert measured.top1 == 50 and measured.snr_db == pytest.approx(10 * math.log10(0.5))
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))) / 2
    assert measured.mean_loss == pytest.approx(expected)
    same = measure_logits(reference, reference, torch.tensor([1, 0]))
    assert same.snr_db is None and same.noise_to_signal == 0


def test_logits_that_are_not_finite_are_an_error():
    with pytest.raises(ValueError, match="not finite"):
        measure_logits(torch.tensor([[math.nan, 1.0]]), torch.ones(1, 2), torch.tensor([0]))


def test_rows_and_table_say_how_much_top1_changes(tmp_path):
    model = build("vit")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = analyze_sensitivity(
        model, Labelled(12), Labelled(4, 1), W3A3, groups=["ffn", "block.0*"], batch_size=5, device="cpu"
    )
    groups = ["ffn", "block.0", "block.0.head.0", "block.0.head.1"]
    assert [(row.setting, row.group) for row in result.rows] == [
        (FULL_PRECISION, ""),
        (EVERYTHING, ""),
        *((setting, group) for group in groups for setting in (ONLY, ALL_BUT)),
    ]
    x = torch.stack([Labelled(12)[i]["pixel_values"] for i in range(12)])
    with torch.no_grad():
        top1 = 100 * (model(pixel_values=x).logits.argmax(1) == torch.arange(12) % 3).double().mean().item()
    assert result.row(FULL_PRECISION).top1 == pytest.approx(top1)
    table = result.table()
    assert table["top1_change"].tolist() == pytest.approx([row.top1 - top1 for row in result.rows])
    recovered = table.set_index(["setting", "group"])["top1_recovered"]
    everything = result.row(EVERYTHING).top1
    assert recovered[ALL_BUT, "ffn"] == pytest.approx(result.row(ALL_BUT, "ffn").top1 - everything)
    # Less quantization, less noise.
    assert result.row(ONLY, "block.0.head.0").snr_db > result.row(ONLY, "block.0").snr_db
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_stopped_analysis_goes_on_and_ends_with_the_same_numbers(tmp_path, monkeypatch):
    arguments = (build("vit"), Labelled(12), Labelled(4, 1), W3A3)
    options = {"groups": ["ffn", "mhsa"], "batch_size": 4, "device": "cpu"}
    whole = analyze_sensitivity(*arguments, **options)
    compute, batches = SettingsMeasurement._compute, []

    def stops(self, batch, missing, advance):
        batches.append(batch)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return compute(self, batch, missing, advance)

    monkeypatch.setattr(SettingsMeasurement, "_compute", stops)
    with pytest.raises(KeyboardInterrupt):
        analyze_sensitivity(*arguments, cache=tmp_path, **options)
    parts = analyze_sensitivity(*arguments, cache=tmp_path, **options)
    assert len(batches) == 4  # the third batch twice, the finished ones not again
    again = analyze_sensitivity(*arguments, cache=tmp_path, **options)
    assert len(batches) == 4 and again == parts
    columns = ["top1", "loss", "snr_db"]
    assert parts.table()[columns].equals(whole.table()[columns])
    # Other bits are other results.
    other = QuantConfig(weight_bits=2, activation_bits=2)
    analyze_sensitivity(*arguments[:3], other, cache=tmp_path, **options)
    assert len(batches) == 7


def test_every_setting_is_trained_from_the_same_start(tmp_path):
    arguments = (build("vit"), Labelled(8), Labelled(4, 1), W3A3)
    budget = TrainingBudget(steps=2, batch_size=4, learning_rate=1e-3)
    options = {"train_images": Labelled(8, 2), "budget": budget, "device": "cpu", "cache": tmp_path}
    result = analyze_sensitivity(*arguments, groups=["ffn", "mhsa"], **options)
    trained = [row for row in result.rows if row.train_steps]
    assert [(row.setting, row.group) for row in trained] == [
        (EVERYTHING, ""),
        *((setting, group) for group in ("ffn", "mhsa") for setting in (ONLY, ALL_BUT)),
    ]
    alone = analyze_sensitivity(*arguments, groups=["mhsa"], **{**options, "cache": None})
    for setting in (ONLY, ALL_BUT):
        row, other = result.row(setting, "mhsa", 2), alone.row(setting, "mhsa", 2)
        assert (row.loss, row.snr_db) == pytest.approx((other.loss, other.snr_db))
        assert row.loss != result.row(setting, "mhsa").loss


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": ["ffm"]}, "groups has 'ffm', which matches no group.*ffn.*block.0"),
        ({"images": Labelled(0)}, "dataset to analyze on is empty"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"budget": TrainingBudget(steps=1)}, "no train_images"),
    ],
)
def test_bad_input_is_an_error_that_names_it(change, message):
    call = {"model": build("vit"), "images": Labelled(4), "calibration": Labelled(4), "config": W3A3, "device": "cpu"}
    with pytest.raises(ValueError, match=message):
        analyze_sensitivity(**call | change)


def test_quantized_models_are_refused():
    model = quantized("vit")
    for form, words in ((model, "training form"), (hf_vaq.pack(model), "packed")):
        with pytest.raises(ValueError, match=f"{words}.*accepted: the full-precision model"):
            analyze_sensitivity(form, Labelled(4), Labelled(4), W3A3, device="cpu")


def test_a_model_that_cannot_be_quantized_is_refused():
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=3)
    with pytest.raises(ValueError, match=r"ResNetForImageClassification.*not supported"):
        analyze_sensitivity(ResNetForImageClassification(config), Labelled(4), Labelled(4), W3A3, device="cpu")


@pytest.mark.parametrize(
    ("field", "value", "message"), [("steps", -1, "train_steps is -1"), ("learning_rate", 0.0, "learning_rate is 0.0")]
)
def test_an_impossible_budget_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        TrainingBudget(**{field: value})
