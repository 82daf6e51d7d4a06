"""VaqTrainingArguments: defaults, validation, command line."""

import dataclasses

import pytest
from training_helpers import arguments
from transformers import HfArgumentParser, TrainingArguments

from hf_vaq.training import SCALE_LEARNING_RATE_FACTOR, VaqTrainingArguments

OWN = {f.name for f in dataclasses.fields(VaqTrainingArguments)} - {
    f.name for f in dataclasses.fields(TrainingArguments)
}


def test_every_own_field_has_a_help_string():
    fields = {f.name: f for f in dataclasses.fields(VaqTrainingArguments)}
    assert {"distillation_temperature", "bin_regularization", "calibration_batches"} <= OWN
    assert all(fields[name].metadata["help"].endswith((".", "off.")) for name in OWN)


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("distillation_temperature", 0.0, "a positive number"),
        ("distillation_temperature", float("nan"), "a positive number"),
        ("distillation_temperature", "2", "a positive number"),
        ("hard_label_weight", 1.1, "from 0 to 1"),
        ("hard_label_weight", True, "from 0 to 1"),
        ("bin_regularization", -0.1, "0 or more"),
        ("bin_regularization", float("inf"), "0 or more"),
        ("bin_regularization_start", 1.0, "from 0 to below 1"),
        ("scale_learning_rate", -1e-3, "0 or more, or None"),
        ("calibration_batches", 0, "an integer, 1 or more"),
        ("calibration_batches", 2.5, "an integer, 1 or more"),
        ("oscillation_momentum", 0.0, "above 0, to 1"),
        ("oscillation_threshold", 1.0, "from 0 to below 1"),
        ("oscillation_tracking", "yes", "True or False"),
    ],
)
def test_bad_values_are_refused_by_name(tmp_path, field, value, accepted):
    with pytest.raises(ValueError, match=f"{field}={value!r}: expected .*{accepted}"):
        arguments(tmp_path, **{field: value})


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0])
@pytest.mark.parametrize(
    "field",
    [
        "learning_rate",
        "num_train_epochs",
        "warmup_steps",
        "weight_decay",
        "max_grad_norm",
        "adam_beta1",
        "adam_epsilon",
        "label_smoothing_factor",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "save_steps",
    ],
)
def test_inherited_numbers_that_are_infinite_nan_or_negative_are_refused_by_name(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"{field}={value!r}: expected a "):
        arguments(tmp_path, **{field: value})


def test_no_batch_of_zero(tmp_path):
    with pytest.raises(ValueError, match="per_device_train_batch_size=0: expected a whole number, 1 or more"):
        arguments(tmp_path, per_device_train_batch_size=0)
    arguments(tmp_path, max_steps=-1, num_train_epochs=0.5, learning_rate=0, adam_beta1=0, max_grad_norm=0)


def test_limits_that_are_allowed_are_accepted(tmp_path):
    arguments(tmp_path, hard_label_weight=1, bin_regularization=0, bin_regularization_start=0, oscillation_momentum=1)


def test_scale_learning_rate_follows_the_learning_rate_unless_given(tmp_path):
    derived = arguments(tmp_path, learning_rate=3e-4)
    assert derived.resolved_scale_learning_rate() == pytest.approx(SCALE_LEARNING_RATE_FACTOR * 3e-4)
    assert arguments(tmp_path, scale_learning_rate=0.0).resolved_scale_learning_rate() == 0


def test_image_order_has_a_seed_of_its_own(tmp_path):
    assert arguments(tmp_path, seed=7).data_seed == 7
    assert arguments(tmp_path, seed=7, data_seed=3).data_seed == 3


def test_the_command_line_reaches_every_kind_of_field(tmp_path):
    line = (
        "--distillation_temperature 2 --scale_learning_rate 1e-3 --oscillation_tracking false --calibration_batches 3"
    )
    (parsed,) = HfArgumentParser(VaqTrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--use_cpu", "true", *line.split()]
    )
    assert parsed.distillation_temperature == 2
    assert parsed.scale_learning_rate == 1e-3
    assert parsed.oscillation_tracking is False
    assert parsed.calibration_batches == 3
