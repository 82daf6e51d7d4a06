"""VaqTrainer: losses, parameter groups, accumulation, logs, calibration, precision."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import FAMILIES, IMAGE_SIZE
from helpers import build as build_model
from training_helpers import Images, arguments, states_equal, tiny_quantized_vit, tiny_vit
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher, TrainingArguments

import hf_vaq
from hf_vaq.nn import quantizer_parameter_names
from hf_vaq.training import OSCILLATION_NAME, NonFiniteError, VaqTrainer, cosine_ramp, model_bin_regularizer, reading

# Named gradient_checkpointing before transformers 5.23, and deprecated under that name since.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)


def build(folder, model, teacher=None, dataset=None, eval_dataset=None, compute_metrics=None, **fields):
    return VaqTrainer(
        model,
        arguments(folder, **fields),
        train_dataset=dataset or Images(),
        eval_dataset=eval_dataset,
        teacher=teacher,
        compute_metrics=compute_metrics,
    )


def batch():
    images = Images(8)
    return {"pixel_values": images.images, "labels": images.labels}


def step_logs(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def cross_entropy(logits, labels):
    return -logits.log_softmax(1)[torch.arange(len(labels)), labels].mean()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_training_loss_mixes_soft_and_hard_cross_entropy(tmp_path, weight):
    student, teacher = tiny_vit(0), tiny_vit(1, initializer_range=0.5)
    trainer = build(tmp_path, student, teacher, hard_label_weight=weight, distillation_temperature=2.0)
    inputs = batch()
    with torch.no_grad():
        loss = trainer.compute_loss(student.train(), inputs)
        z, t = student(inputs["pixel_values"]).logits / 2, teacher(inputs["pixel_values"]).logits / 2
    soft = -4 * (t.softmax(1) * z.log_softmax(1)).sum(1).mean()
    hard = cross_entropy(2 * z, inputs["labels"])
    torch.testing.assert_close(loss, (1 - weight) * soft + weight * hard)


def test_training_loss_without_a_teacher_is_cross_entropy_with_label_smoothing_where_asked(tmp_path):
    model, inputs = tiny_vit().train(), batch()
    with torch.no_grad():
        logits = model(inputs["pixel_values"]).logits
        plain = build(tmp_path, model).compute_loss(model, inputs)
        smooth = build(tmp_path, model, label_smoothing_factor=0.3).compute_loss(model, inputs)
    hard = cross_entropy(logits, inputs["labels"])
    torch.testing.assert_close(plain, hard)
    torch.testing.assert_close(smooth, 0.7 * hard - 0.3 * logits.log_softmax(1).mean())


def test_evaluation_loss_is_plain_cross_entropy_and_does_not_ask_the_teacher(tmp_path):
    model, dataset = tiny_quantized_vit(), Images(8)
    trainer = build(tmp_path, model, tiny_vit(1), eval_dataset=dataset, bin_regularization=1.0, max_steps=2)
    trainer.train()
    asked = []
    trainer.teacher.register_forward_hook(lambda *args: asked.append(1))
    with torch.no_grad():
        expected = cross_entropy(model.eval()(dataset.images).logits, dataset.labels)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected.item(), rel=1e-6)
    assert not asked


def test_scales_and_offsets_have_their_own_rate_no_decay_and_the_common_schedule(tmp_path):
    model = tiny_quantized_vit()
    settings = {"learning_rate": 1e-3, "scale_learning_rate": 5e-3, "weight_decay": 0.1, "adam_beta2": 0.9}
    trainer = build(tmp_path, model, lr_scheduler_type="linear", max_steps=4, **settings)
    trainer.train()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [{names[id(p)] for p in group["params"]} for group in trainer.optimizer.param_groups]
    assert groups[-1] == quantizer_parameter_names(model)
    assert "vit.layers.0.mlp.fc2.input_quantizer.offset" in groups[-1]
    assert sorted(name for group in groups for name in group) == sorted(names.values())
    assert [group["initial_lr"] for group in trainer.optimizer.param_groups] == [1e-3, 1e-3, 5e-3]
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.1, 0.0, 0.0]
    assert {group["betas"][1] for group in trainer.optimizer.param_groups} == {0.9}
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [0.0, 0.0, 0.0]


def test_a_model_without_quantizers_has_the_usual_two_groups(tmp_path):
    assert len(build(tmp_path, tiny_vit()).create_optimizer().param_groups) == 2


def test_two_accumulated_batches_of_four_equal_one_of_eight(tmp_path):
    states = []
    for size, accumulation in ((8, 1), (4, 2)):
        # Activations stay in float: their scale's gradient factor depends, as published, on the size of the batch.
        model = tiny_quantized_vit(activation_bits=None, edge_bits=None)
        build(
            tmp_path,
            model,
            tiny_vit(1, initializer_range=0.5),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=0.5,
            bin_regularization=1.0,
            bin_regularization_start=0.0,
            hard_label_weight=0.5,
        ).train()
        states.append(model.state_dict())
    start = tiny_quantized_vit(activation_bits=None, edge_bits=None).state_dict()
    for name, value in states[0].items():
        # Both sum the same gradients in another order; float32 leaves 1e-6 of it after four steps.
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6)
    moved = max((states[0][name] - value).abs().max().item() for name, value in start.items())
    assert moved > 1e-2, "the steps must be large against the tolerance"


def test_the_regularizer_counts_once_per_step_with_its_lambda(tmp_path):
    for accumulation in (1, 2):
        model = tiny_quantized_vit(activation_bits=None, edge_bits=None)
        settings = {"bin_regularization": 10.0, "bin_regularization_start": 0.0, "per_device_train_batch_size": 4}
        trainer = build(tmp_path, model, gradient_accumulation_steps=accumulation, **settings)
        trainer.train()
        for step, entry in enumerate(step_logs(trainer)):
            assert entry["lambda"] == pytest.approx(cosine_ramp(step / 4, 10.0, 0.0))
            expected = entry["hard_label_loss"] + entry["lambda"] * entry["bin_regularizer"]
            assert entry["loss"] == pytest.approx(expected, rel=1e-5)
        assert entry["lambda"] * entry["bin_regularizer"] > 1e-3


def test_a_strong_regularizer_pulls_the_weights_to_their_levels(tmp_path):
    values = []
    for strength in (0.0, 100.0):
        model = tiny_quantized_vit()
        build(tmp_path, model, bin_regularization=strength, bin_regularization_start=0.0, max_steps=8).train()
        values.append(model_bin_regularizer(model).item())
    assert values[1] < 0.7 * values[0]


def test_each_logging_step_holds_the_means_since_the_last(tmp_path):
    logs = {}
    for every in (1, 2):
        trainer = build(tmp_path, tiny_quantized_vit(), tiny_vit(1), logging_steps=every, hard_label_weight=0.5)
        trainer.train()
        logs[every] = step_logs(trainer)
    assert [len(logs[1]), len(logs[2])] == [4, 2]
    for i, entry in enumerate(logs[2]):
        first, second = logs[1][2 * i : 2 * i + 2]
        for key in ("distillation_loss", "hard_label_loss"):
            assert entry[key] == pytest.approx((first[key] + second[key]) / 2, rel=1e-6)
        for key in ("lambda", "oscillation_percentage"):
            assert entry[key] == second[key]
        assert entry["oscillation_by_module"].keys() == second["oscillation_by_module"].keys()
    # Lambda is 0 in the first half: the value is that of the present weights. In the second it is the mean.
    assert logs[2][0]["bin_regularizer"] == logs[1][1]["bin_regularizer"]
    expected = (logs[1][2]["bin_regularizer"] + logs[1][3]["bin_regularizer"]) / 2
    assert logs[2][1]["bin_regularizer"] == pytest.approx(expected, rel=1e-6)


def test_a_model_without_quantizers_logs_the_loss_only(tmp_path):
    trainer = build(tmp_path, tiny_vit(), tiny_vit(1), max_steps=1)
    trainer.train()
    (entry,) = step_logs(trainer)
    assert "distillation_loss" in entry
    assert not {"lambda", "bin_regularizer", "oscillation_percentage", "oscillation_by_module"} & entry.keys()


def test_oscillation_tracking_can_be_turned_off(tmp_path):
    fields = {"oscillation_tracking": False, "save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    trainer = build(tmp_path, tiny_quantized_vit(), **fields)
    trainer.train()
    assert "oscillation_percentage" not in step_logs(trainer)[0]
    assert not (tmp_path / "checkpoint-1" / OSCILLATION_NAME).exists()


def test_oscillations_are_seen_when_weights_flip(tmp_path):
    fields = {"learning_rate": 0.05, "oscillation_momentum": 1.0, "oscillation_threshold": 0.5, "max_steps": 8}
    trainer = build(tmp_path, tiny_quantized_vit(), **fields)
    trainer.train()
    # With momentum 1 the frequency is 1 for the weights that flipped back in this very step.
    assert max(entry["oscillation_percentage"] for entry in step_logs(trainer)) > 0


def test_an_uncalibrated_model_is_calibrated_on_seeded_training_images_whatever_was_drawn_before(
    tmp_path, monkeypatch
):
    seen, states = [], []

    def spy(model, loader, max_batches):
        batches = list(loader)
        seen.append(torch.cat([images["pixel_values"] for images in batches]))
        assert max_batches == len(batches) == 3
        hf_vaq.calibrate(model, batches)

    monkeypatch.setattr(reading, "calibrate", spy)
    dataset = Images(32)
    for draws in (0, 5):
        model = tiny_quantized_vit()
        trainer = build(tmp_path, model, dataset=dataset, calibration_batches=3, max_steps=1)
        torch.rand(draws)
        before = torch.get_rng_state()
        trainer.calibrate()
        assert torch.equal(torch.get_rng_state(), before)
        states.append(model.state_dict())
    assert hf_vaq.is_calibrated(model)
    assert torch.equal(seen[0], seen[1])
    assert states_equal(*states)
    assert len(seen[0]) == 12
    assert all(any(torch.equal(image, known) for known in dataset.images) for image in seen[0])
    trainer.train()
    assert len(seen) == 2, "a calibrated model keeps its scales"


def test_training_starts_with_calibration(tmp_path):
    model = tiny_quantized_vit()
    assert not hf_vaq.is_calibrated(model)
    build(tmp_path, model, max_steps=1, learning_rate=0.0).train()
    assert hf_vaq.is_calibrated(model)
    assert torch.isfinite(model.eval()(Images(4).images).logits).all()


def test_after_training_every_parameter_has_moved(tmp_path):
    model = tiny_quantized_vit()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer = build(tmp_path, model, tiny_vit(1, initializer_range=0.5), learning_rate=1e-2, max_steps=8)
    trainer.calibrate()
    before |= {name: p.clone() for name, p in model.named_parameters() if name in quantizer_parameter_names(model)}
    trainer.train()
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])] == []


def test_distillation_approaches_the_teacher(tmp_path):
    teacher = tiny_vit(1, initializer_range=0.5)
    trainer = build(tmp_path, tiny_quantized_vit(weight_bits=4), teacher, learning_rate=5e-3, max_steps=40)
    trainer.train()
    logs = step_logs(trainer)
    with torch.no_grad():
        p = teacher(Images().images).logits.softmax(1)
    entropy = -(p * p.log()).sum(1).mean().item()  # the least value that the loss can have
    first, last = (np.mean([entry["distillation_loss"] for entry in part]) for part in (logs[:4], logs[-4:]))
    assert entropy - 0.1 < last < first - 0.3 * (first - entropy)


def test_bfloat16_autocast_trains_float32_weights_to_nearly_the_same_loss(tmp_path):
    losses = []
    for bf16 in (False, True):
        model = tiny_quantized_vit(weight_bits=8, activation_bits=8)
        trainer = build(tmp_path, model, tiny_vit(1, initializer_range=0.5), bf16=bf16)
        trainer.train()
        losses.append([entry["loss"] for entry in step_logs(trainer)])
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert losses[0] != losses[1], "autocast must have been on"
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_gradient_checkpointing_changes_nothing(tmp_path):
    states = []
    for checkpointing in (False, True):
        model = tiny_quantized_vit(dropout=0.1)
        build(tmp_path, model, **{CHECKPOINTING: checkpointing}, bin_regularization_start=0.0).train()
        assert getattr(model, f"is_{CHECKPOINTING}") == checkpointing
        states.append(model.state_dict())
    assert states_equal(*states)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_in_bfloat16_with_checkpointed_activations(tmp_path, family):
    model = hf_vaq.quantize(build_model(family), hf_vaq.QuantConfig(weight_bits=2, activation_bits=2))
    fields = {"bf16": True, CHECKPOINTING: True, "bin_regularization_start": 0.0, "max_steps": 2}
    dataset = Images(8, size=IMAGE_SIZE)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer = build(tmp_path, model, build_model(family, seed=1), dataset, eval_dataset=dataset, **fields)
    trainer.train()
    assert np.isfinite(trainer.evaluate()["eval_loss"])
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    # Dinov2's mask token takes part in pre-training only.
    assert [name for name in still if not name.endswith("mask_token")] == []


def test_a_model_whose_forward_takes_no_labels_is_trained_and_evaluated(tmp_path):
    config = DeiTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,
        num_labels=3,
    )  # fmt: skip
    shapes = []

    def metrics(prediction):
        shapes.append((prediction.predictions.shape, prediction.label_ids.shape))
        return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}

    model = hf_vaq.quantize(DeiTForImageClassificationWithTeacher(config), hf_vaq.QuantConfig())
    trainer = build(tmp_path, model, eval_dataset=Images(10), compute_metrics=metrics)
    trainer.train()
    result = trainer.evaluate()
    assert result.keys() >= {"eval_loss", "eval_accuracy"}
    assert shapes == [((10, 3), (10,))]


def test_an_iterable_dataset_trains_a_quantized_model(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([Images()[i] for i in range(16)])

    assert build(tmp_path, tiny_quantized_vit(), dataset=Stream()).train().global_step == 4


def test_a_packed_model_cannot_be_trained(tmp_path):
    model = tiny_quantized_vit()
    hf_vaq.calibrate(model, [Images().images])
    with pytest.raises(ValueError, match="fine-tun"):
        build(tmp_path, hf_vaq.pack(model))


def test_a_model_made_by_a_function_is_trained(tmp_path):
    made = []

    def make():
        made.append(tiny_vit())
        return made[-1]

    trainer = VaqTrainer(None, arguments(tmp_path, max_steps=1), train_dataset=Images(), model_init=make)
    trainer.train()
    assert trainer.model is made[-1]
    trainer.save_model(tmp_path / "saved")
    loaded = type(trainer.model).from_pretrained(tmp_path / "saved")
    assert states_equal(loaded.state_dict(), trainer.model.state_dict())


def test_arguments_of_another_kind_are_refused(tmp_path):
    with pytest.raises(TypeError, match="args is a TrainingArguments: VaqTrainer expects VaqTrainingArguments"):
        VaqTrainer(tiny_vit(), TrainingArguments(str(tmp_path), use_cpu=True), train_dataset=Images())


class _OwnLoss(VaqTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(pixel_values=inputs["pixel_values"])
        loss = F.cross_entropy(outputs.logits, inputs["labels"], weight=CLASS_WEIGHTS)
        return (loss, outputs) if return_outputs else loss


CLASS_WEIGHTS = torch.tensor([1.0, 2.0, 3.0])


def weighted(outputs, labels, num_items_in_batch=None):
    assert num_items_in_batch is None
    return F.cross_entropy(outputs.logits, labels, weight=CLASS_WEIGHTS)


def test_an_own_loss_keeps_the_regularizer_its_log_and_its_checks(tmp_path):
    settings = {"bin_regularization": 10.0, "bin_regularization_start": 0.0, "gradient_accumulation_steps": 2}
    trained = []
    for make, options in ((_OwnLoss, {}), (VaqTrainer, {"compute_loss_func": weighted})):
        trainer = make(tiny_quantized_vit(), arguments(tmp_path, **settings), train_dataset=Images(), **options)
        trainer.train()
        for step, entry in enumerate(step_logs(trainer)):
            assert entry["lambda"] == pytest.approx(cosine_ramp(step / 4, 10.0, 0.0))
        assert entry["lambda"] * entry["bin_regularizer"] > 1e-3
        trained.append(trainer.model.state_dict())
    assert states_equal(*trained)
    torch.nn.init.constant_(trainer.model.classifier.weight, float("inf"))
    with pytest.raises(NonFiniteError):
        _OwnLoss(trainer.model, arguments(tmp_path), train_dataset=Images()).train()


def test_an_own_loss_function_takes_the_place_of_the_cross_entropy_with_labels(tmp_path):
    model, inputs = tiny_vit(), batch()
    teacher = tiny_vit(1)
    given = {"args": arguments(tmp_path, hard_label_weight=0.3, label_smoothing_factor=0.1), "train_dataset": Images()}
    trainer = VaqTrainer(model, teacher=teacher, compute_loss_func=weighted, **given)
    logits = model.eval()(inputs["pixel_values"]).logits
    hard = F.cross_entropy(logits, inputs["labels"], weight=CLASS_WEIGHTS)
    soft = -(teacher.eval()(inputs["pixel_values"]).logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()
    assert trainer.compute_loss(model.eval(), inputs).item() == pytest.approx(hard.item(), rel=1e-5)
    expected = 0.7 * soft + 0.3 * hard
    assert trainer.compute_loss(model.train(), inputs).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("label", [-1, -100, 3])
def test_a_label_that_is_no_class_is_named_with_its_row(tmp_path, label):
    dataset = Images()
    dataset.labels[5] = label
    for run in (lambda trainer: trainer.train(), lambda trainer: trainer.evaluate(dataset)):
        trainer = VaqTrainer(tiny_vit(), arguments(tmp_path), train_dataset=dataset)
        with pytest.raises(ValueError, match=rf"label {label} in row \d of the batch at step \d .*expected 0 to 2"):
            run(trainer)


def test_a_teacher_with_other_labels_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"the student has 3, the teacher 5; .*'LABEL_3', 'LABEL_4'"):
        build(tmp_path, tiny_vit(), tiny_vit(1, num_labels=5))


def test_training_needs_a_dataset(tmp_path):
    with pytest.raises(ValueError, match="requires a train_dataset"):
        VaqTrainer(tiny_vit(), arguments(tmp_path)).train()
