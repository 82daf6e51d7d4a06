"""The evaluate library's own evaluator, which cannot stream, rank, or compare, must agree where it can be asked."""

import evaluate
import numpy as np
import pytest
from helpers import build
from transformers import ViTImageProcessor

import hf_vaq
from hf_vaq.data import LabelledSplit, load_dataset
from hf_vaq.evaluation import BootstrapSettings, TopKAccuracy, evaluate_model


class FirstClass(TopKAccuracy):
    """Takes one predicted class an image, as the evaluator hands them over."""

    def _info(self):
        info = super()._info()
        info.features["predictions"] = info.features["references"]
        return info

    def _compute(self, predictions, references):
        return {"accuracy": super()._compute(np.asarray(predictions)[:, None], references)["accuracy"]}


@pytest.mark.parametrize("packed", [False, True])
def test_the_evaluator_finds_the_same_accuracy_and_interval(packed):
    labels = {index: str(index) for index in range(10)}
    model = build(
        image_size=8, patch_size=4, num_labels=10, id2label=labels, label2id={v: k for k, v in labels.items()}
    )
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    split = LabelledSplit.select(load_dataset("digits"), "test[:60]", "image", "label")
    images = split.evaluation_set(labels, processor)
    if packed:
        model = hf_vaq.quantize(model, hf_vaq.QuantConfig(weight_bits=4, activation_bits=4))
        hf_vaq.calibrate(model, [{"pixel_values": images[index]["pixel_values"][None]} for index in range(8)])
        model = hf_vaq.pack(model)
    theirs = evaluate.evaluator("image-classification").compute(
        model_or_pipeline=model,
        feature_extractor=processor,
        data=split.rows,
        metric=FirstClass(),
        label_mapping=model.config.label2id,
        strategy="bootstrap",
        n_resamples=200,
        random_state=0,
    )["accuracy"]
    ours = evaluate_model(model, images, device="cpu")
    assert 100 * theirs["score"] == pytest.approx(ours.top1)
    interval = BootstrapSettings(resamples=2000).interval(ours.ranks < 1)
    assert 100 * np.asarray(theirs["confidence_interval"]) == pytest.approx(interval, abs=8)
