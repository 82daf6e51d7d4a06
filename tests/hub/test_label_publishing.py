"""Stores of soft labels as data sets on a Hub on the loopback."""

import shutil

import numpy as np
import pytest
from helpers import IMAGE_SIZE, build, pictures
from huggingface_hub import DatasetCard
from transformers import ViTImageProcessor

from hf_vaq.soft_labels import SoftLabelStore, label_dataset


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> SoftLabelStore:
    processor = ViTImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    folder = tmp_path_factory.mktemp("labels") / "store"
    options = {"crops_per_image": 3, "top_k": 2, "images_per_shard": 5, "batch_size": 12}
    return label_dataset(pictures(["a", "b", "c"], 12), build(), folder, teacher_processor=processor, **options)


def test_a_store_is_published_whole_and_read_back_by_its_id(client, hub, store):
    (store.folder / "notes.txt").write_text("mine")
    assert client.hf_vaq("push", store.folder, "tester/labels", "--private") == 0, client.text
    (store.folder / "notes.txt").unlink()
    files = hub.files("tester/labels", kind="datasets")
    assert files == {
        p.relative_to(store.folder).as_posix(): p.read_bytes() for p in store.folder.rglob("*") if p.is_file()
    }
    assert hub.titles("tester/labels", kind="datasets") == ["Upload soft labels"]
    assert hub.repositories["datasets", "tester/labels"].private
    assert "soft-labels" in DatasetCard(files["README.md"].decode()).data["tags"]
    code = """
from hf_vaq.soft_labels import SoftLabelStore
store = SoftLabelStore.load(repo)
store.verify()
value = [len(store), store[7].boxes.tolist(), store[7].probabilities.astype("float64").tolist()]
"""
    count, boxes, probabilities = client.run(code, repo="tester/labels")
    assert count == 12
    np.testing.assert_array_equal(boxes, store[7].boxes)
    np.testing.assert_array_equal(probabilities, store[7].probabilities.astype(np.float64))


def test_publishing_from_python_returns_the_address_and_removes_old_shards(client, hub, store):
    code = "from hf_vaq.soft_labels import SoftLabelStore; value = SoftLabelStore(folder).push_to_hub('grown')"
    client.run(
        "from huggingface_hub import HfApi; api = HfApi(); api.create_repo('tester/grown', repo_type='dataset');"
        "add = dict(repo_id='tester/grown', repo_type='dataset', path_or_fileobj=b'old');"
        "api.upload_file(path_in_repo='soft_labels.json', **add);"
        "api.upload_file(path_in_repo='data/labels-00099.arrow', **add)"
    )
    address = client.run(code, folder=str(store.folder))
    assert address.startswith(f"{hub.endpoint}/datasets/tester/grown/commit/")
    names = set(hub.files("tester/grown", kind="datasets"))
    assert "data/labels-00099.arrow" not in names and "data/labels-00000.arrow" in names


def test_another_data_set_in_the_repository_is_refused(client, hub, store):
    client.run(
        "from huggingface_hub import HfApi; api = HfApi(); api.create_repo('tester/photos', repo_type='dataset');"
        "api.upload_file(path_or_fileobj=b'', path_in_repo='a.jpg', repo_id='tester/photos', repo_type='dataset')"
    )
    assert client.hf_vaq("push", store.folder, "tester/photos") == 1
    assert "something else than a store of soft labels (such as 'a.jpg')" in client.text


def test_a_damaged_shard_is_not_published(client, hub, store, tmp_path):
    damaged = shutil.copytree(store.folder, tmp_path / "damaged")
    shard = damaged / "data" / "labels-00001.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert client.hf_vaq("push", damaged, "tester/damaged") == 1
    assert "labels-00001.arrow is damaged" in client.text
    assert ("datasets", "tester/damaged") not in hub.repositories


def test_options_of_models_and_the_other_type_are_refused(client, store, models):
    assert client.hf_vaq("push", store.folder, "tester/x", "--license", "mit") == 1
    assert "--license is for models" in client.text
    assert client.hf_vaq("push", store.folder, "tester/x", "--repo_type", "model") == 1
    assert "accepted: dataset" in client.text
    assert client.hf_vaq("push", models.packed, "tester/x", "--repo_type", "dataset") == 1
    assert "holds no store of soft labels; accepted: model" in client.text
