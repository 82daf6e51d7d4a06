import pytest

from hf_vaq import QuantConfig


@pytest.mark.parametrize("field", ["weight_bits", "activation_bits", "edge_bits"])
@pytest.mark.parametrize("bits", [0, 1, 9, "4", True, 3.0])
def test_bits_that_are_no_bit_width_are_refused_by_name_and_value(field, bits):
    with pytest.raises(ValueError, match=rf"QuantConfig\.{field}={bits!r}.*an integer from 2 to 8, or None"):
        QuantConfig(**{field: bits})


@pytest.mark.parametrize("field", ["weight_granularity", "activation_granularity", "scale_gradient", "weight_scale"])
def test_unknown_choices_are_refused_with_the_known_ones(field):
    with pytest.raises(ValueError, match=rf"QuantConfig\.{field}='row': expected one of '"):
        QuantConfig(**{field: "row"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["*.fc1"], "expected a mapping from name pattern"),
        ({"*.fc1": {}}, "some of the fields"),
        ({"*.fc1": {"bits": 3}}, "some of the fields weight_bits"),
        ({"*.fc1": {"weight_bits": 1}}, r"\['\*\.fc1'\]\['weight_bits'\]=1"),
        ({"*.fc1": {"weight_granularity": "row"}}, "expected one of 'tensor', 'head', 'channel'"),
    ],
)
def test_malformed_overrides_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        QuantConfig(module_overrides=overrides)


def test_a_configuration_survives_json():
    config = QuantConfig(weight_bits=3, activation_bits=None, module_overrides={"*.fc1": {"weight_bits": 4}})
    assert QuantConfig.from_dict(config.to_dict()) == config


def test_a_configuration_of_a_newer_format_is_refused_with_both_versions():
    newer = QuantConfig().to_dict() | {"format_version": 99, "hf_vaq_version": "9.9.0", "rotation": "hadamard"}
    with pytest.raises(ValueError, match=r"written by hf_vaq 9\.9\.0 in checkpoint format 99.*pip install --upgrade"):
        QuantConfig.from_dict(newer)


def test_a_field_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"unknown fields \['weight_bit'\]"):
        QuantConfig.from_dict({"weight_bit": 4})


@pytest.mark.parametrize("pattern", ["*.fc2", "*", "(fc2", "fc[1", "fc2\\", "a{99999999999}", "(?P<x>a)(?P<x>b)"])
def test_a_pattern_that_is_no_regular_expression_is_refused_by_field_and_pattern(pattern):
    with pytest.raises(ValueError, match=r"QuantConfig\.modules_to_not_convert: .* is no regular expression") as error:
        QuantConfig(modules_to_not_convert=["classifier", pattern])
    assert repr(pattern) in str(error.value)


def test_a_pattern_nested_too_deeply_is_refused_in_one_short_line():
    with pytest.raises(ValueError, match="is no regular expression") as error:
        QuantConfig(modules_to_not_convert=["(" * 5000 + "a" + ")" * 5000])
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_a_pattern_of_an_override_is_a_string():
    with pytest.raises(ValueError, match=r"module_overrides\[3\]: expected a shell-style pattern"):
        QuantConfig(module_overrides={3: {"weight_bits": 4}})
