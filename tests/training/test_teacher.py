"""Any image classifier as teacher: loading, images, labels."""

import pytest
import torch
import torch.nn.functional as F
from training_helpers import tiny_vit
from transformers import (
    AutoModelForImageClassification,
    ConvNextConfig,
    EfficientNetConfig,
    ResNetConfig,
    SwinConfig,
    ViTImageProcessor,
)

from hf_vaq.training import build_teacher, match_labels

NAMES = ["ant", "bee", "cow"]
PROCESSOR = ViTImageProcessor(size={"height": 8, "width": 8})


def named(model, names):
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    return model


def vit(names=NAMES, **config):
    return named(tiny_vit(num_labels=len(names), **config), names)


SIZE = {"num_labels": 3, "image_size": 32}
FAMILIES = {
    "resnet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3),
    "convnext": ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, **SIZE),
    "efficientnet": EfficientNetConfig(width_coefficient=0.1, depth_coefficient=0.1, hidden_dim=128, **SIZE),
    "swin": SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2, patch_size=4, **SIZE),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_answer_on_images_of_their_size_and_normalisation(family):
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(FAMILIES[family]).eval()
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.4] * 3, image_std=[0.2] * 3)
    teacher = build_teacher(model, tiny_vit(), PROCESSOR, processor)
    raw = torch.rand(2, 3, 8, 8)
    logits = teacher((raw - 0.5) / 0.5)
    large = F.interpolate(raw, (32, 32), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = model((large - 0.4) / 0.2).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert not logits.requires_grad


def test_a_teacher_stays_frozen_and_in_evaluation_mode():
    model = tiny_vit(1, dropout=0.5)
    teacher = build_teacher(model, tiny_vit())
    teacher.train()
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    pixel_values = torch.randn(2, 3, 8, 8)
    assert torch.equal(teacher(pixel_values), teacher(pixel_values))


def test_labels_in_another_order_are_put_in_the_students():
    student, model = vit(), vit(["cow", "ant", "bee"], seed=1)
    assert match_labels(student.config, model.config) == [1, 2, 0]
    pixel_values = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        own = model.eval()(pixel_values).logits
    cow, ant, bee = own.unbind(1)
    assert torch.equal(build_teacher(model, student)(pixel_values), torch.stack([ant, bee, cow], 1))


def test_equal_labels_need_no_order():
    assert match_labels(vit().config, vit().config) is None
    repeated = ["crane", "ant", "crane"]
    assert match_labels(vit(repeated).config, vit(repeated).config) is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["ant", "bee", "dog"], "has 3, the teacher 3; only the student has 'cow'; only the teacher has 'dog'"),
        (["ant", "bee"], "has 3, the teacher 2; only the student has 'cow'; only the teacher has none"),
        ([*NAMES, *"abcdefg"], "the teacher 10; only the student has none; .* 'a', 'b', 'c', 'd', 'e' and 2 more"),
    ],
)
def test_other_labels_are_refused_by_name_and_number(names, message):
    with pytest.raises(ValueError, match=message):
        build_teacher(vit(names), vit())


def test_a_name_of_two_labels_in_another_order_is_refused():
    with pytest.raises(ValueError, match="'crane' stand for more than one label"):
        match_labels(vit(["crane", "ant", "crane"]).config, vit(["ant", "crane", "crane"]).config)


def test_a_folder_is_loaded_with_its_own_image_processor(tmp_path):
    model = vit(seed=1, image_size=12).eval()
    model.save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 12, "width": 12}, image_mean=[0.1] * 3, image_std=[0.9] * 3).save_pretrained(
        tmp_path
    )
    raw = torch.rand(2, 3, 8, 8)
    logits = build_teacher(str(tmp_path), vit(), PROCESSOR)((raw - 0.5) / 0.5)
    with torch.no_grad():
        expected = model((F.interpolate(raw, (12, 12), mode="bilinear", antialias=True) - 0.1) / 0.9).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_folder_without_an_image_processor_is_refused(tmp_path):
    vit().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has no image processor .*pass teacher_processor="):
        build_teacher(str(tmp_path), vit(), PROCESSOR)


def test_a_model_in_memory_shares_the_students_processor_but_has_its_own_size():
    model = vit(seed=1, image_size=12).eval()
    pixel_values = torch.randn(2, 3, 8, 8)
    logits = build_teacher(model, vit(), PROCESSOR)(pixel_values)
    with torch.no_grad():
        expected = model(F.interpolate(pixel_values, (12, 12), mode="bilinear", antialias=True)).logits
    assert torch.equal(logits, expected)


def test_a_timm_teacher_brings_its_preprocessing_in_its_configuration(tmp_path):
    pytest.importorskip("timm", reason="timm teachers need the timm extra")
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    preprocessing = {"input_size": [3, 24, 24], "mean": [0.3] * 3, "std": [0.7] * 3, "interpolation": "bilinear"}
    settings = {"architecture": "test_resnet", "label_names": NAMES, "num_classes": 3, "pretrained_cfg": preprocessing}
    torch.manual_seed(0)
    model = TimmWrapperForImageClassification(TimmWrapperConfig.from_dict(settings)).eval()
    model.save_pretrained(tmp_path)
    raw = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        expected = model((F.interpolate(raw, (24, 24), mode="bilinear", antialias=True) - 0.3) / 0.7).logits
    for teacher in (model, tmp_path):
        logits = build_teacher(teacher, vit(), PROCESSOR)((raw - 0.5) / 0.5)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_teacher_with_a_processor_needs_the_students():
    with pytest.raises(ValueError, match="pass the student's to VaqTrainer as processing_class"):
        build_teacher(vit(), vit(), None, PROCESSOR)


def test_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="images of 1 channels, expected the student's 3"):
        build_teacher(vit(num_channels=1), vit())


def test_the_student_cannot_teach_itself():
    student = vit()
    with pytest.raises(ValueError, match="same object"):
        build_teacher(student, student)
