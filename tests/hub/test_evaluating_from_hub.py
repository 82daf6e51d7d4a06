"""`hf-vaq evaluate` with model and data set from a Hub on the loopback, streamed and stored."""

import json

import datasets
import pytest
from helpers import pictures

MODEL, DATA = "tester/evaluated", "tester/pictures_of_animals"
UPLOAD = """
from huggingface_hub import HfApi
api = HfApi()
api.create_repo(repo, repo_type="dataset")
value = api.upload_folder(repo_id=repo, repo_type="dataset", folder_path=folder).oid
"""


@pytest.fixture(scope="module")
def commits(client, hub, models, tmp_path_factory) -> tuple[str, str]:
    """Commits of a published model and of a data set with the same classes in another order."""
    assert client.hf_vaq("push", models.packed, MODEL) == 0, client.text
    folder = tmp_path_factory.mktemp("animals")
    rows = pictures(["fish", "dog", "cat"])
    rows.to_parquet(folder / "validation.parquet")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return hub.repositories["models", MODEL].find("main").sha, client.run(UPLOAD, repo=DATA, folder=str(folder))


def evaluate(client, output, *words) -> dict:
    assert client.hf_vaq("evaluate", *words, "--device", "cpu", "--output", output) == 0, client.text
    return json.loads(output.read_text())


def test_model_and_data_set_are_found_by_id_and_their_commits_written_down(client, models, commits, tmp_path):
    output = tmp_path / "result.json"
    streamed = evaluate(client, output, MODEL, "--dataset", DATA, "--streaming")
    stored = evaluate(client, output, f"{MODEL}@{commits[0]}", "--dataset", DATA, "--dataset_revision", commits[1])
    local = evaluate(client, output, models.packed, "--dataset", DATA)
    for report in (streamed, stored):
        assert report["models"][0]["revision"] == commits[0]
        assert (report["data"]["dataset_id"], report["data"]["dataset_revision"]) == (DATA, commits[1])
        assert report["data"]["split"] == "validation"
        for key in ("top1", "top5", "top1_interval", "size_bytes"):
            assert report["models"][0][key] == local["models"][0][key]
    assert local["models"][0]["revision"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([f"{MODEL}@absent", "--dataset", DATA], f"The model '{MODEL}' cannot be loaded"),
        ([MODEL, "--dataset", "tester/nothing"], "dataset is 'tester/nothing'"),
        ([MODEL, "--dataset", DATA, "--dataset_revision", "absent"], f"dataset is '{DATA}'"),
    ],
)
def test_what_the_hub_does_not_have_is_named(client, commits, words, message):
    assert client.hf_vaq("evaluate", *words, "--streaming") == 1
    assert message in client.text and "Traceback" not in client.text


def test_the_rows_of_the_data_set_have_names(commits):
    # Otherwise the labels would be taken for indices, and the comparison above would say nothing.
    assert isinstance(pictures(["fish", "dog", "cat"]).features["label"], datasets.ClassLabel)
