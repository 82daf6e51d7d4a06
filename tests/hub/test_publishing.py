"""`hf-vaq push` against a Hub on the loopback: what is published, where, and what happens when it cannot be."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from helpers import build
from huggingface_hub import ModelCard
from safetensors.numpy import load
from transformers import ViTImageProcessor

PUBLISHED = {
    "README.md",
    "config.json",
    "model.safetensors",
    "modeling_vaq.py",
    "preprocessor_config.json",
    "recipe.yaml",
    "results.json",
    "training_log.json",
}


def card_of(files: dict[str, bytes]) -> ModelCard:
    return ModelCard(files["README.md"].decode())


def test_a_run_is_published_in_one_commit_with_all_that_belongs_to_it(client, hub, models):
    code = client.hf_vaq("push", models.run, "tester/animals", "--license", "apache-2.0", "--tag", "animals")
    assert code == 0, client.text
    files = hub.files("tester/animals")
    assert set(files) >= PUBLISHED
    assert hub.titles("tester/animals") == ["Upload packed model"]
    assert files["model.safetensors"] == (models.packed / "model.safetensors").read_bytes()
    data = card_of(files).data
    assert data["base_model"] == "start/vit-tiny" and data["base_model_relation"] == "quantized"
    assert data["license"] == "apache-2.0" and data["datasets"] == ["pictures/of-animals"]
    assert {"hf_vaq", "w2a2", "animals"} <= set(data["tags"])
    values = {result.metric_type: result.metric_value for result in data["eval_results"]}
    assert values == {"accuracy": 0.9, "top_5_accuracy": 1.0}
    assert "model.safetensors" in client.text and "/commit/" in client.text
    assert not hub.unknown


def test_what_is_published_names_no_folder_and_no_token_of_this_machine(client, hub, run_copy):
    recipe = yaml.safe_load((run_copy / "recipe.yaml").read_text())
    pictures = run_copy / "my_pictures"
    pictures.mkdir()
    (run_copy / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"dataset": str(pictures)}))
    assert client.hf_vaq("push", run_copy, "tester/private-things") == 0, client.text
    files = hub.files("tester/private-things")
    published = yaml.safe_load(files["recipe.yaml"])
    assert published["dataset"] == "my_pictures"
    assert not {"output_dir", "hub_token"} & set(published)
    everything = b"".join(content for name, content in files.items() if name != "model.safetensors")
    assert b"hf_secret" not in everything and str(run_copy.parent).encode() not in everything


def test_a_model_in_training_form_is_packed_first_and_it_is_said(client, hub, models):
    assert client.hf_vaq("push", models.trained, "tester/packed-first") == 0, client.text
    assert "is in training form: it is packed first" in client.text
    files = hub.files("tester/packed-first")
    assert json.loads(files["config.json"])["quantization_config"]["packed"] is True
    names = load(files["model.safetensors"])
    assert any(name.endswith("weight_codes") for name in names)
    assert not any("log_scale" in name for name in names)


def test_publishing_again_replaces_changes_and_removes_what_is_no_longer_there(client, hub, run_copy):
    figures = run_copy / "packed" / "figures"
    figures.mkdir()
    (figures / "oscillation_shares.png").write_bytes(b"\x89PNG of the first model")
    assert client.hf_vaq("push", run_copy / "packed", "tester/again") == 0, client.text
    first = hub.files("tester/again")
    assert "figures/oscillation_shares.png" in first
    assert "![" in first["README.md"].decode()
    shutil.rmtree(figures)
    assert client.hf_vaq("push", run_copy / "packed", "tester/again", "--commit_message", "Second") == 0
    second = hub.files("tester/again")
    assert "figures/oscillation_shares.png" not in second and set(second) == set(first) - {
        "figures/oscillation_shares.png"
    }
    assert hub.titles("tester/again") == ["Upload packed model", "Second"]


def test_publishing_the_same_again_makes_no_commit_and_sends_no_large_file(client, hub, models):
    assert client.hf_vaq("push", models.packed, "tester/same") == 0, client.text
    uploads = hub.count("PUT", "^/large/")
    assert client.hf_vaq("push", models.packed, "tester/same") == 0, client.text
    assert len(hub.titles("tester/same")) == 1
    assert hub.count("PUT", "^/large/") == uploads


def test_a_private_repository_is_only_for_its_owner(client, hub, models):
    assert client.hf_vaq("push", models.packed, "secret", "--private") == 0, client.text
    assert hub.repositories["models", "tester/secret"].private
    info = "from huggingface_hub import HfApi; value = HfApi().repo_exists('tester/secret')"
    assert client.run(info) is True
    assert client.run(info, token="hf_stranger") is False
    assert client.run(info, token=None) is False


def test_a_branch_is_made_and_the_main_branch_stays_as_it_was(client, hub, models):
    assert client.hf_vaq("push", models.packed, "tester/branches", "--revision", "w2a2") == 0, client.text
    assert hub.files("tester/branches") == {}
    assert set(hub.files("tester/branches", revision="w2a2")) >= {"config.json", "README.md"}


def test_a_stranger_proposes_a_pull_request(client, hub, models):
    assert client.hf_vaq("push", models.packed, "tester/proposals") == 0, client.text
    before = hub.files("tester/proposals")
    words = ("push", models.trained, "tester/proposals", "--create_pr", "--license", "mit")
    assert client.hf_vaq(*words, token="hf_stranger") == 0, client.text
    assert "/discussions/1" in client.text
    assert hub.files("tester/proposals") == before
    proposed = card_of(hub.files("tester/proposals", revision="refs/pr/1"))
    assert proposed.data["license"] == "mit"


def uploads_of_the_weights(hub, models) -> int:
    digest = hashlib.sha256((models.packed / "model.safetensors").read_bytes()).hexdigest()
    return hub.count("PUT", f"/large/{digest}")


def test_an_interrupted_upload_goes_on_and_nothing_is_half_published(client, failing_hub, models):
    """The connection is cut at the commit, when all large files have arrived."""
    failing_hub.fail("POST", "/api/models/tester/interrupted/commit/", None)
    failing_hub.large.clear()
    before = uploads_of_the_weights(failing_hub, models)
    assert client.hf_vaq("push", models.packed, "tester/interrupted") == 1
    assert "Run the same command again" in client.text
    assert failing_hub.files("tester/interrupted") == {}
    assert uploads_of_the_weights(failing_hub, models) == before + 1
    assert client.hf_vaq("push", models.packed, "tester/interrupted") == 0, client.text
    assert uploads_of_the_weights(failing_hub, models) == before + 1
    assert len(failing_hub.titles("tester/interrupted")) == 1


def test_a_large_file_is_sent_again_after_a_cut_connection(client, failing_hub, models):
    failing_hub.large.clear()
    failing_hub.fail("PUT", "^/large/", None)
    arrived = len(failing_hub.large)
    before = failing_hub.count("PUT", "^/large/")
    assert client.hf_vaq("push", models.packed, "tester/cut") == 0, client.text
    assert failing_hub.count("PUT", "^/large/") - before == len(failing_hub.large) - arrived + 1
    assert "model.safetensors" in failing_hub.files("tester/cut")


def test_what_the_hub_does_not_allow_now_is_asked_again_when_it_does(client, failing_hub, models):
    steps = [
        ("GET", "/api/whoami"),
        ("GET", "/api/models/tester/limited"),
        ("POST", "/api/validate-yaml"),
        ("POST", "/api/repos/create"),
        ("POST", "/api/models/tester/limited/branch/"),
        ("POST", "/api/models/tester/limited/commit/"),
    ]
    before = [failing_hub.count(*step) for step in steps]
    for step in steps:
        failing_hub.fail(*step, 429, times=2, Retry_After="0")
    assert client.hf_vaq("push", models.packed, "tester/limited", "--revision", "new") == 0, client.text
    assert all(failing_hub.count(*step) - known >= 3 for step, known in zip(steps, before, strict=True))
    assert failing_hub.titles("tester/limited", revision="new") == ["Upload packed model"]


def test_a_limit_that_lasts_is_said_with_its_time_and_publishes_nothing(client, failing_hub, models):
    failing_hub.fail("POST", "/api/models/tester/lasting/commit/", 429, times=9, Retry_After="7200")
    assert client.hf_vaq("push", models.packed, "tester/lasting") == 1
    assert "allows no more requests" in client.text and "Try again in 7200 seconds." in client.text
    assert failing_hub.files("tester/lasting") == {}


@pytest.mark.parametrize("status, words", [(500, "error of its own (500)"), (409, "changed by somebody else")])
def test_an_error_of_the_hub_at_the_commit_publishes_nothing(client, failing_hub, models, status, words):
    failing_hub.fail("POST", f"/api/models/tester/refused-{status}/commit/", status)
    assert client.hf_vaq("push", models.packed, f"tester/refused-{status}") == 1
    assert words in client.text and "Run the same command again" in client.text
    assert failing_hub.files(f"tester/refused-{status}") == {}


def test_a_commit_that_somebody_made_meanwhile_is_not_overwritten(client, hub, models):
    """Between the look at the repository and the commit somebody else publishes."""
    code = """
from pathlib import Path
from hf_vaq.hub import Target, check_target, publish_folder
from huggingface_hub import HfApi
checked = check_target(Target("tester/raced"))
HfApi().upload_file(path_or_fileobj=b"theirs", path_in_repo="notes.txt", repo_id="tester/raced")
publish_folder(Path(folder), checked)
"""
    assert client.hf_vaq("push", models.packed, "tester/raced") == 0, client.text
    folder = str(models.trained)
    with pytest.raises(Exception, match="changed by somebody else"):
        client.run(code, folder=folder)
    assert hub.files("tester/raced")["notes.txt"] == b"theirs"
    assert json.loads(hub.files("tester/raced")["config.json"])["quantization_config"]["packed"] is True


def push_fails(client, *words, token="hf_writer") -> str:
    """Run a push that has to fail in one line, and return the line."""
    assert client.hf_vaq("push", *words, token=token) == 1, client.text
    lines = [line for line in client.text.splitlines() if line.startswith("hf-vaq push: error:")]
    assert len(lines) == 1, client.text
    return lines[0]


@pytest.mark.parametrize(
    "token, words",
    [
        (None, "hf auth login"),
        ("hf_reader", "may only read"),
        ("hf_nobody", "does not know the token"),
        ("hf_stranger", "no permission to write"),
    ],
)
def test_who_may_not_write_is_told_so_and_leaves_no_repository(client, hub, models, token, words):
    assert words in push_fails(client, models.packed, "tester/forbidden", token=token)
    assert ("models", "tester/forbidden") not in hub.repositories


def test_a_repository_with_something_else_is_refused_unless_told_to_overwrite(client, hub, models):
    client.run(
        "from huggingface_hub import HfApi; api = HfApi(); api.create_repo('tester/novel');"
        "api.upload_file(path_or_fileobj=b'Chapter 1', path_in_repo='novel.txt', repo_id='tester/novel')"
    )
    line = push_fails(client, models.packed, "tester/novel")
    assert "something else than a model of hf_vaq (such as 'novel.txt')" in line and "--overwrite" in line
    assert set(hub.files("tester/novel")) == {"novel.txt"}
    assert client.hf_vaq("push", models.packed, "tester/novel", "--overwrite") == 0, client.text
    assert {"novel.txt", "config.json"} <= set(hub.files("tester/novel"))


def test_overwriting_removes_no_file_of_others(client, hub, models):
    client.run(
        "from huggingface_hub import HfApi; api = HfApi(); api.create_repo('tester/theirs');"
        "api.upload_file(path_or_fileobj=b'1', path_in_repo='other.safetensors', repo_id='tester/theirs')"
    )
    assert client.hf_vaq("push", models.packed, "tester/theirs", "--overwrite") == 0, client.text
    assert {"other.safetensors", "model.safetensors"} <= set(hub.files("tester/theirs"))


def test_a_full_precision_model_in_the_repository_is_something_else(client, hub, models, tmp_path):
    build().save_pretrained(tmp_path)
    client.run(
        "from huggingface_hub import upload_folder, create_repo; create_repo('tester/float');"
        "upload_folder(repo_id='tester/float', folder_path=folder)",
        folder=str(tmp_path),
    )
    assert "something else than a model of hf_vaq" in push_fails(client, models.packed, "tester/float")


@pytest.mark.parametrize(
    "number, content", enumerate(["[1]", "null", '{"quantization_config": "vaq"}', '{"quant', "[" * 9999])
)
def test_a_damaged_config_in_the_repository_is_something_else(number, content, client, hub, models):
    client.run(
        "from huggingface_hub import HfApi; api = HfApi(); api.create_repo(repo);"
        "api.upload_file(path_or_fileobj=content.encode(), path_in_repo='config.json', repo_id=repo)",
        repo=f"tester/damaged{number}",
        content=content,
    )
    line = push_fails(client, models.packed, f"tester/damaged{number}")
    assert "something else than a model of hf_vaq (such as 'config.json')" in line


def test_the_name_of_a_data_set_is_refused(client, hub, models):
    client.run("from huggingface_hub import create_repo; create_repo('tester/pictures', repo_type='dataset')")
    assert "is the name of a dataset" in push_fails(client, models.packed, "tester/pictures")
    assert ("models", "tester/pictures") not in hub.repositories


def test_a_card_that_does_not_validate_is_refused_before_anything_is_made(client, hub, models):
    line = push_fails(client, models.packed, "tester/bad-card", "--license", "my-own")
    assert "README.md) does not validate" in line and "license" in line and "my-own" in line
    assert ("models", "tester/bad-card") not in hub.repositories


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("--base_model", "not an id", "card: base_model is 'not an id'"),
        ("--dataset", "a/b/c", "card: datasets is 'a/b/c'"),
        ("--license", "My Own", "card: license is 'My Own'"),
        ("--revision", "refs/pr/9", "'refs/pr/9', which tester/same does not have"),
    ],
)
def test_fields_that_mean_nothing_to_the_hub_are_named(client, models, field, value, words):
    client.hf_vaq("push", models.packed, "tester/same")
    assert words in push_fails(client, models.packed, "tester/same", field, value)


def test_an_id_that_is_none_is_refused(client, models):
    assert "REPO_ID is 'tester/a b'" in push_fails(client, models.packed, "tester/a b")


def test_folders_that_hold_nothing_to_publish_are_refused_with_the_way_out(client, run_copy, tmp_path):
    assert "there is no such folder" in push_fails(client, tmp_path / "nowhere", "tester/x")
    (tmp_path / "empty").mkdir()
    assert "it has no config.json" in push_fails(client, tmp_path / "empty", "tester/x")
    build().save_pretrained(tmp_path / "float")
    ViTImageProcessor().save_pretrained(tmp_path / "float")
    line = push_fails(client, tmp_path / "float", "tester/x")
    assert "is in full precision" in line and "hf-vaq train" in line
    (run_copy / "packed" / "preprocessor_config.json").unlink()
    line = push_fails(client, run_copy / "packed", "tester/x")
    assert "has no image processor (preprocessor_config.json)" in line and "save_pretrained" in line


def test_a_model_of_a_newer_version_is_refused_with_the_version(client, run_copy):
    path = run_copy / "packed" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= {"format_version": 2, "hf_vaq_version": "9.1.0"}
    path.write_text(json.dumps(config))
    line = push_fails(client, run_copy / "packed", "tester/x")
    assert "written by hf_vaq 9.1.0 in checkpoint format 2" in line and "pip install --upgrade hf-vaq" in line


def test_output_writes_the_folder_and_publishes_nothing(client, hub, models, tmp_path):
    before = len(hub.requests)
    out = tmp_path / "out"
    assert client.hf_vaq("push", models.run, "tester/not-yet", "--output", out, token=None) == 0, client.text
    assert {path.name for path in Path(out).iterdir()} >= PUBLISHED
    assert len(hub.requests) == before
