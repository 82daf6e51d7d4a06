"""Publishing from Python: `VaqTrainer`, `packed.push_to_hub`, and recipes with push_to_hub."""

import json
import re
from pathlib import Path

import pytest
import yaml
from helpers import IMAGE_SIZE, build
from hub_client_helpers import ClientError
from huggingface_hub import ModelCard
from transformers import ViTImageProcessor

TRAIN = """
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
from hf_vaq import QuantConfig, VaqTrainer, VaqTrainingArguments

config = QuantConfig(weight_bits=2, activation_bits=2)
model = AutoModelForImageClassification.from_pretrained(start, quantization_config=config)
data = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 3} for i in range(8)]
settings = dict(per_device_train_batch_size=4, max_steps=2, logging_steps=1, report_to=[], use_cpu=True,
                disable_tqdm=True, save_strategy="steps", save_steps=1, dataloader_pin_memory=False)
arguments = VaqTrainingArguments(output_dir=out, **settings | options)
trainer = VaqTrainer(model=model, args=arguments, train_dataset=data, eval_dataset=data, teacher=start,
                     processing_class=AutoImageProcessor.from_pretrained(start))
trainer.train()
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    """A full-precision model to start from."""
    folder = tmp_path_factory.mktemp("start")
    build().save_pretrained(folder)
    ViTImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}).save_pretrained(folder)
    return str(folder)


def test_trainer_publishes_the_packed_model_at_every_save_and_at_the_end(client, hub, start, tmp_path):
    options = {"push_to_hub": True, "hub_model_id": "tester/trained", "hub_strategy": "every_save"}
    code = TRAIN + "value = trainer.push_to_hub(license='mit', dataset_tags=['pictures/of-animals']).commit_url"
    address = client.run(code, start=start, out=str(tmp_path / "out"), options=options)
    assert address.startswith(f"{hub.endpoint}/tester/trained/commit/")
    titles = hub.titles("tester/trained")
    assert titles == ["Training in progress, step 1", "Training in progress, step 2", "End of training"]
    files = hub.files("tester/trained")
    assert set(files) == {
        "README.md",
        "config.json",
        "model.safetensors",
        "modeling_vaq.py",
        "preprocessor_config.json",
        "training.yaml",
        "training_log.json",
    }
    assert json.loads(files["config.json"])["quantization_config"]["packed"] is True
    log = json.loads(files["training_log.json"])
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2]
    training = yaml.safe_load(files["training.yaml"])
    assert training["arguments"]["max_steps"] == 2 and training["arguments"]["seed"] == 42
    assert "/" not in training["teacher"]  # the folder's name, not its path
    card = ModelCard(files["README.md"].decode())
    assert (card.data["license"], card.data["datasets"]) == ("mit", ["pictures/of-animals"])
    assert "| optimizer steps | 2 |" in card.text and "last logged distillation loss" in card.text


def test_checkpoints_come_with_the_model_where_the_strategy_says_so(client, hub, start, tmp_path):
    options = {"push_to_hub": True, "hub_model_id": "tester/checkpoints", "hub_strategy": "checkpoint"}
    client.run(TRAIN, start=start, out=str(tmp_path / "out"), options=options)
    files = hub.files("tester/checkpoints")
    assert {"model.safetensors", "last-checkpoint/model.safetensors"} <= set(files)
    assert json.loads(files["last-checkpoint/trainer_state.json"])["global_step"] == 2
    assert hub.titles("tester/checkpoints") == ["Training in progress, step 1", "Training in progress, step 2"]
    # A later commit leaves the checkpoint whole.
    code = "from hf_vaq.cli import main; value = main(['push', folder, 'tester/checkpoints', '--license', 'mit'])"
    assert client.run(code, folder=str(tmp_path / "out" / "checkpoint-2")) == 0, client.text
    after = hub.files("tester/checkpoints")
    checkpoint = {name for name in files if name.startswith("last-checkpoint/")}
    assert checkpoint == {name for name in after if name.startswith("last-checkpoint/")}
    assert len(hub.titles("tester/checkpoints")) == 3


def test_a_failing_upload_does_not_end_the_training(client, failing_hub, start, tmp_path):
    options = {"push_to_hub": True, "hub_model_id": "tester/unlucky", "hub_strategy": "every_save"}
    failing_hub.fail("POST", "/api/models/tester/unlucky/commit/", 500)
    client.run(TRAIN + "trainer.push_to_hub()", start=start, out=str(tmp_path / "out"), options=options)
    assert failing_hub.titles("tester/unlucky") == ["Training in progress, step 2", "End of training"]


def test_trainer_that_may_not_publish_says_so_before_training(client, hub, start, tmp_path):
    options = {"push_to_hub": True, "hub_model_id": "tester/animals-of-mine"}
    with pytest.raises(ClientError, match="may only read") as caught:
        client.run(TRAIN, token="hf_reader", start=start, out=str(tmp_path / "out"), options=options)
    assert caught.value.kind == "HubError"
    assert ("models", "tester/animals-of-mine") not in hub.repositories


def test_packed_model_in_memory_is_published_with_processor_and_card(client, hub, start, tmp_path):
    code = TRAIN + "value = hf_vaq.pack(trainer.model).push_to_hub('tester/packed', private=True).commit_url"
    client.run("import hf_vaq\n" + code, start=start, out=str(tmp_path / "out"), options={"save_strategy": "no"})
    files = hub.files("tester/packed")
    assert {"README.md", "preprocessor_config.json", "training_log.json", "modeling_vaq.py"} <= set(files)
    assert hub.titles("tester/packed") == ["Upload packed model"]
    assert hub.repositories["models", "tester/packed"].private
    # Loaded by its id it is published again, elsewhere, with the image processor from where it came.
    again = """
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained("tester/packed")
model.push_to_hub("packed-again", commit_message="Again", revision="side", tags=["moved"])
"""
    client.run(again)
    moved = hub.files("tester/packed-again", revision="side")
    assert moved["model.safetensors"] == files["model.safetensors"]
    assert moved["preprocessor_config.json"] == files["preprocessor_config.json"]
    assert hub.titles("tester/packed-again", revision="side") == ["Again"]


def test_packed_model_without_an_image_processor_is_refused_with_the_way_out(client, hub):
    code = """
import sys, torch
sys.path.insert(0, tests)
from helpers import build, images
import hf_vaq
model = hf_vaq.quantize(build(), hf_vaq.QuantConfig())
hf_vaq.calibrate(model, [images()])
hf_vaq.pack(model).push_to_hub("tester/no-processor")
"""
    with pytest.raises(ClientError, match=re.escape("push_to_hub(repo_id, image_processor=...)")):
        client.run(code, tests=str(Path(__file__).parents[1]))
    assert ("models", "tester/no-processor") not in hub.repositories


def test_packed_model_that_can_publish_is_copied_and_pickled_like_any_other(client, models):
    """A process that is started with a model as its argument receives it pickled."""
    code = """
import copy, pickle
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained(packed)
value = [twin.push_to_hub.args[0] is twin for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)))]
"""
    assert client.run(code, packed=str(models.packed)) == [True, True]


def test_recipe_with_push_to_hub_publishes_the_run_with_its_results(client, hub, tmp_path):
    recipe = {
        "model_config": {
            "model_type": "vit",
            "image_size": 8,
            "patch_size": 4,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
        "dataset": "digits",
        "train_split": "train[:32]",
        "eval_split": "test[:20]",
        "horizontal_flip": 0,
        "float_num_train_epochs": 1,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 16,
        "calibration_batches": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "push_to_hub": True,
        "hub_model_id": "tester/digits",
        "hub_private_repo": True,
    }
    path = tmp_path / "digits.yaml"
    path.write_text(yaml.safe_dump(recipe))
    refused = client.hf_vaq("train", path, "--output_dir", tmp_path / "out", token="hf_reader")
    assert refused == 1 and "may only read" in client.text
    assert not (tmp_path / "out").exists()
    assert client.hf_vaq("train", path, "--output_dir", tmp_path / "out") == 0, client.text
    assert hub.repositories["models", "tester/digits"].private
    files = hub.files("tester/digits")
    assert {"recipe.yaml", "results.json", "training_log.json", "figures/oscillation_shares.png"} <= set(files)
    result = json.loads(files["results.json"])["quantized"]["top1"]
    values = {r.metric_type: r.metric_value for r in ModelCard(files["README.md"].decode()).data["eval_results"]}
    assert values["accuracy"] == pytest.approx(result / 100)
    # The folder of the run has the card as well, without figures.
    local = (tmp_path / "out" / "packed" / "README.md").read_text()
    assert "out/packed" in local and "figures/" not in local
