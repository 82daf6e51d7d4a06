import datasets
import numpy as np
import pytest
from PIL import Image

from hf_vaq.data import held_out_split, load_dataset, prepare_columns, select_split

FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})


def small_dataset(rows: int = 4) -> datasets.Dataset:
    images = [Image.new("RGB", (5, 4), (40 * row, 0, 0)) for row in range(rows)]
    return datasets.Dataset.from_dict({"image": images, "label": [row % 2 for row in range(rows)]}, features=FEATURES)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_a_parquet_file_is_one_training_split(tmp_path):
    small_dataset().to_parquet(tmp_path / "data.parquet")
    loaded = load_dataset(tmp_path / "data.parquet")
    assert list(loaded) == ["train"] and loaded["train"].features == FEATURES


def test_a_folder_of_parquet_files_has_the_splits_of_their_names(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    small_dataset(4).to_parquet(folder / "train.parquet")
    small_dataset(2).to_parquet(folder / "validation.parquet")
    loaded = load_dataset(str(folder))
    assert {name: len(split) for name, split in loaded.items()} == {"train": 4, "validation": 2}


def test_an_image_folder_has_its_subfolders_as_classes(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "images" / "train" / name).mkdir(parents=True)
        Image.new("RGB", (5, 4)).save(tmp_path / "images" / "train" / name / "0.png")
    loaded = load_dataset(tmp_path / "images")
    assert loaded["train"].features["label"].names == ["cat", "dog"]


def test_what_save_to_disk_wrote_is_loaded(tmp_path):
    datasets.DatasetDict(test=small_dataset(3)).save_to_disk(tmp_path / "saved")
    assert len(load_dataset(tmp_path / "saved")["test"]) == 3


@pytest.mark.parametrize("name", ["./absent", "/no/such/folder", "absent.parquet"])
def test_a_missing_path_is_refused_without_asking_the_hub(name, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("asked the Hub"))
    with pytest.raises(ValueError, match=r"there is no such folder or file; accepted: .*'digits'"):
        load_dataset(name)


def test_a_hub_id_that_cannot_be_loaded_is_named(monkeypatch):
    def offline(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ValueError, match=r"'owner/name'.*Couldn't reach the Hub"):
        load_dataset("owner/name")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "data.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"data\.csv'; accepted: .*a \.parquet file"):
        load_dataset(tmp_path / "data.csv")


def test_slices_of_splits():
    data = datasets.DatasetDict(train=small_dataset(4))
    assert len(select_split(data, "train")) == 4
    assert len(select_split(data, "train[:75%]")) == 3
    assert select_split(data, "train[3:]")["label"][:] == [1]


def test_a_missing_split_names_those_there_are():
    with pytest.raises(ValueError, match="split is 'test'; the data set has: train"):
        select_split(datasets.DatasetDict(train=small_dataset()), "test")


def test_a_malformed_slice_is_refused():
    with pytest.raises(ValueError, match=r"split is 'train\[x\]'; accepted"):
        select_split(datasets.DatasetDict(train=small_dataset()), "train[x]")


def test_an_empty_split_is_refused():
    data = datasets.DatasetDict(train=small_dataset(4), test=small_dataset(4).select([]))
    with pytest.raises(ValueError, match="split 'test' is empty"):
        select_split(data, "test")
    with pytest.raises(ValueError, match=r"split 'train\[:0\]' is empty: it holds 0 of the 4 rows"):
        select_split(data, "train[:0]")


def test_the_held_out_split_prefers_validation_to_test():
    part = small_dataset(1)
    assert held_out_split(datasets.DatasetDict(train=part, test=part, validation=part)) == "validation"
    assert held_out_split(datasets.DatasetDict(train=part, test=part)) == "test"
    with pytest.raises(ValueError, match="no validation or test split"):
        held_out_split(datasets.DatasetDict(train=part))


@pytest.mark.parametrize(
    ("image_column", "label_column", "field"),
    [("img", "label", "image_column is 'img'"), ("image", "class", "label_column is 'class'")],
)
def test_a_missing_column_names_those_there_are(image_column, label_column, field):
    with pytest.raises(ValueError, match=f"{field}; the data set has the columns: image, label"):
        prepare_columns(small_dataset(), image_column, label_column)


def test_a_column_that_holds_no_images_is_refused():
    with pytest.raises(ValueError, match="image_column is 'label', whose type is"):
        prepare_columns(small_dataset(), "label", "label")


def test_bytes_and_file_names_are_accepted_as_images(tmp_path):
    Image.new("RGB", (3, 2), (7, 8, 9)).save(tmp_path / "x.png")
    encoded = (tmp_path / "x.png").read_bytes()
    for value in (str(tmp_path / "x.png"), encoded, {"bytes": encoded, "path": None}):
        split = datasets.Dataset.from_dict({"image": [value], "label": [0]})
        image = prepare_columns(split, "image", "label")[0]["image"]
        assert np.asarray(image).tolist() == np.full((2, 3, 3), (7, 8, 9)).tolist()


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"train.parquet": b"PAR1 and nothing else"},
        {"train.parquet": b""},
        {"dataset_dict.json": b"[]"},
        {"dataset_dict.json": b"{"},
        {"dataset_dict.json": b'{"splits": ["train"]}'},
        {"state.json": b"{}"},
        {"dataset_infos.json": b"[1", "train.parquet": b""},
        {"state.json": b'{"_data_files": 3}', "dataset_info.json": b"[]"},
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_damaged_folder_is_named_in_one_line(tmp_path, monkeypatch, files, streaming):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"^dataset is '{folder}', which cannot be read \(\w+: .*\); accepted: a local"
    ):
        load_dataset(folder, streaming=streaming)


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"^dataset is '.*a\.parquet', which cannot be read"):
        load_dataset(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["/", "//", "/tmp/.."])
def test_the_root_of_the_file_system_is_refused_without_looking_through_it(name, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("looked through"))
    with pytest.raises(ValueError, match="the root of the file system; accepted: a local folder"):
        load_dataset(name)
