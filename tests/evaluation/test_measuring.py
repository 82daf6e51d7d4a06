import numpy as np
import pytest
import torch
from torch import nn
from transformers import EvalPrediction
from transformers.modeling_outputs import ImageClassifierOutput

from hf_vaq.evaluation import TopKAccuracy, compute_metrics, evaluate_model, preprocess_logits_for_metrics


class Lookup(nn.Module):
    """A model whose logits are its pixel values."""

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        assert not self.training
        return ImageClassifierOutput(logits=pixel_values.flatten(1))


def images(logits: torch.Tensor, labels: torch.Tensor) -> list[dict]:
    return [
        {"pixel_values": row[:, None, None], "labels": int(label)} for row, label in zip(logits, labels, strict=True)
    ]


@pytest.fixture
def logits_and_labels():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(50, 20, generator=generator), torch.randint(20, (50,), generator=generator)


def independent_top_k(logits: torch.Tensor, labels: torch.Tensor, k: int) -> float:
    """Share of images whose true class is beaten by fewer than k classes."""
    true = logits[torch.arange(len(labels)), labels]
    return float(((logits > true[:, None]).sum(1) < k).double().mean())


@pytest.mark.parametrize("batch_size", [1, 16, 64])
def test_accuracy_agrees_with_counting_and_does_not_depend_on_the_batch_size(logits_and_labels, batch_size):
    logits, labels = logits_and_labels
    result = evaluate_model(Lookup(), images(logits, labels), batch_size=batch_size, device="cpu")
    assert result.top1 == pytest.approx(100 * independent_top_k(logits, labels, 1))
    assert result.top5 == pytest.approx(100 * independent_top_k(logits, labels, 5))
    assert result.num_images == 50
    assert result.images_per_second > 0 and result.seconds > 0


def test_with_fewer_than_five_classes_top5_counts_all():
    result = evaluate_model(Lookup(), images(torch.eye(3), torch.tensor([0, 2, 1])), device="cpu")
    assert (result.top1, result.top5) == (pytest.approx(100 / 3), 100)


def test_the_mode_of_the_model_is_restored(logits_and_labels):
    model = Lookup().train()
    evaluate_model(model, images(*logits_and_labels), device="cpu")
    assert model.training


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        evaluate_model(Lookup(), images(torch.tensor([[0.0, float("nan")]]), torch.tensor([0])), device="cpu")


def test_nothing_to_evaluate_and_no_batch_are_refused(logits_and_labels):
    with pytest.raises(ValueError, match="empty"):
        evaluate_model(Lookup(), [], device="cpu")
    with pytest.raises(ValueError, match="batch_size is 0"):
        evaluate_model(Lookup(), images(*logits_and_labels), batch_size=0, device="cpu")


def test_the_metric_joins_batches(logits_and_labels):
    logits, labels = logits_and_labels
    ranked = logits.argsort(1, descending=True)[:, :5]
    metric = TopKAccuracy()
    metric.add_batch(predictions=ranked[:30].numpy(), references=labels[:30].numpy())
    metric.add_batch(predictions=ranked[30:].numpy(), references=labels[30:].numpy())
    assert metric.compute() == pytest.approx(
        {"accuracy": independent_top_k(logits, labels, 1), "top5_accuracy": independent_top_k(logits, labels, 5)}
    )


def test_the_trainers_metrics_are_the_same_from_logits_tuples_and_ranks(logits_and_labels):
    logits, labels = logits_and_labels
    expected = {
        "accuracy": independent_top_k(logits, labels, 1),
        "top5_accuracy": independent_top_k(logits, labels, 5),
    }
    ranked = preprocess_logits_for_metrics((logits, -logits), labels)
    assert ranked.shape == (50, 5) and not ranked.is_floating_point()
    for predictions in (logits.numpy(), (logits.numpy(), -logits.numpy()), ranked.numpy()):
        metrics = compute_metrics(EvalPrediction(predictions=predictions, label_ids=np.asarray(labels)))
        assert metrics == pytest.approx(expected)
