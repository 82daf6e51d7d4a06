"""What is known of a run's models before anything is trained."""

import pytest
import torch
from helpers import FAMILIES

from hf_vaq import QuantConfig
from hf_vaq.job.checks import check_apart, check_quantization, new_model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_of_every_family_makes_a_model_that_can_be_quantized(family):
    _, config_class, values = FAMILIES[family]
    check_quantization(config_class(**values), QuantConfig())


def test_a_new_model_has_weights_and_leaves_its_configuration_alone():
    config = FAMILIES["deit"][1](**FAMILIES["deit"][2])
    assert next(new_model(config).parameters()).device == torch.device("cpu") and config.architectures is None


def test_a_run_that_the_new_one_reads_from_is_not_removed(tmp_path):
    (tmp_path / "out" / "float").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for given in (tmp_path / "out" / "float", tmp_path / "link" / "float", tmp_path / "out"):
        with pytest.raises(ValueError, match=r"teacher is '.*', which lies in output_dir"):
            check_apart(tmp_path / "out", {"model": None, "teacher": str(given)})
    check_apart(tmp_path / "out", {"model": "facebook/deit-tiny-patch16-224", "teacher": str(tmp_path)})
