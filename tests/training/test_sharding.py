"""Ways of distributing a model that are refused; the others are tested with real processes in test_distributed.py."""

from types import SimpleNamespace

import pytest
import torch
from training_helpers import tiny_quantized_vit

from hf_vaq.training.sharding import check_parallelism, is_sharded, local_part, prepare_sharding, unsharded


def accelerator(**plugins):
    return SimpleNamespace(state=SimpleNamespace(**plugins))


@pytest.mark.parametrize(
    ("plugins", "message"),
    [
        ({"fsdp_plugin": SimpleNamespace(fsdp_version=1, cpu_ram_efficient_loading=False)}, "fsdp_version is 1"),
        (
            {"fsdp_plugin": SimpleNamespace(fsdp_version=2, cpu_ram_efficient_loading=True)},
            "loading is true",
        ),
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=3)}, "zero_stage is 3; accepted: 0, 1 and 2"),
    ],
)
def test_what_hides_whole_weights_is_refused(plugins, message):
    with pytest.raises(ValueError, match=message):
        check_parallelism(accelerator(**plugins))


def test_fsdp2_and_zero_2_are_accepted():
    check_parallelism(accelerator())
    check_parallelism(accelerator(fsdp_plugin=SimpleNamespace(fsdp_version=2, cpu_ram_efficient_loading=False)))
    check_parallelism(accelerator(deepspeed_plugin=SimpleNamespace(zero_stage=2)))


def test_blocks_are_the_units_and_weights_are_gathered_in_float32():
    plugin = SimpleNamespace(mixed_precision_policy="bf16", transformer_cls_names_to_wrap=None)
    prepare_sharding(accelerator(fsdp_plugin=plugin), tiny_quantized_vit())
    assert plugin.mixed_precision_policy is None and plugin.transformer_cls_names_to_wrap == ["ViTLayer"]
    plugin.transformer_cls_names_to_wrap = ["Mine"]
    prepare_sharding(accelerator(fsdp_plugin=plugin), tiny_quantized_vit())
    assert plugin.transformer_cls_names_to_wrap == ["Mine"]


def test_a_model_that_is_not_sharded_is_left_alone():
    model = tiny_quantized_vit()
    weight = model.classifier.weight
    assert not is_sharded(model)
    with unsharded(model):
        assert model.classifier.weight is weight
    assert local_part(weight) is weight and isinstance(weight, torch.nn.Parameter)
