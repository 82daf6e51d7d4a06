import pytest
import torch
from helpers import FAMILIES, build, images
from torchvision.ops import StochasticDepth
from training_helpers import Images, arguments, tiny_vit
from transformers import ResNetConfig, ResNetForImageClassification

from hf_vaq import VaqTrainer
from hf_vaq.training.drop_path import set_drop_path


@pytest.mark.parametrize("family", FAMILIES)
def test_rates_rise_from_nothing_to_the_given_one_and_touch_neither_parameters_nor_evaluation(family):
    model = build(family, **({"depths": [2, 1]} if family == "swin" else {"num_hidden_layers": 3}))
    names = list(model.state_dict())
    with torch.no_grad():
        before = model(pixel_values=images()).logits
        set_drop_path(model, 0.2)
        assert torch.equal(model(pixel_values=images()).logits, before)
    assert list(model.state_dict()) == names
    rates = [module.p for module in model.modules() if isinstance(module, StochasticDepth)]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


@pytest.mark.parametrize("family", ["vit", "swin", "beit"])
def test_dropped_branches_leave_a_block_without_effect(family):
    model = build(family, **({"depths": [1, 1]} if family == "swin" else {"num_hidden_layers": 2})).train()
    set_drop_path(model, 1 - 1e-9)  # as good as always
    last = [m for m in model.modules() if hasattr(m, "mlp") and hasattr(m, "attention")][-1]
    seen = {}
    last.register_forward_hook(lambda module, args, output: seen.update(before=args[0], after=output))
    model(pixel_values=images())
    after = seen["after"][0] if isinstance(seen["after"], tuple) else seen["after"]
    assert torch.equal(after, seen["before"])


def test_setting_it_twice_replaces_the_rate():
    model = build("vit")
    set_drop_path(model, 0.4)
    set_drop_path(model, 0.1)
    assert [m.p for m in model.modules() if isinstance(m, StochasticDepth)] == [0.0, 0.1]


def test_the_trainer_sets_it_for_given_models_and_for_those_of_model_init(tmp_path):
    for given in ({"model": tiny_vit()}, {"model_init": lambda: tiny_vit()}):
        trainer = VaqTrainer(args=arguments(tmp_path, drop_path=0.3), train_dataset=Images(), **given)
        assert [m.p for m in trainer.model.modules() if isinstance(m, StochasticDepth)] == [0.0, 0.3]


def test_other_architectures_and_rates_are_refused(tmp_path):
    resnet = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=3))
    with pytest.raises(ValueError, match="ResNetForImageClassification has no transformer blocks"):
        set_drop_path(resnet, 0.1)
    with pytest.raises(ValueError, match=r"drop_path=1\.0: expected a number from 0 to below 1"):
        arguments(tmp_path, drop_path=1.0)
