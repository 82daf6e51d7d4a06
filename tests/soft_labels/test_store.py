"""The store: what a crop takes, random access, readers that are not ours, damage."""

import dataclasses
import json
import pickle

import datasets
import numpy as np
import pyarrow as pa
import pytest
import yaml
from soft_label_helpers import files_of, photographs, store_of, teacher

from hf_vaq.soft_labels import DamagedStoreError, SoftLabelStore, store
from hf_vaq.soft_labels.card import store_card
from hf_vaq.soft_labels.records import ImageLabels, RecordLayout
from hf_vaq.soft_labels.values import impossible_label


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return store_of(photographs(), tmp_path_factory.mktemp("labels") / "store")


@pytest.fixture
def copy(finished, tmp_path):
    import shutil

    return shutil.copytree(finished.folder, tmp_path / "copy")


def random_rows(layout, count):
    random = np.random.default_rng(0)
    values = layout.top_k or layout.num_classes
    return [
        ImageLabels(
            random.integers(0, 65536, (layout.crops, 4), dtype=np.uint16),
            random.integers(0, 2, layout.crops).astype(bool),
            None if layout.top_k is None else random.integers(0, layout.num_classes, (layout.crops, values)),
            random.random((layout.crops, values)).astype(np.float16),
            int(random.integers(0, 2**63)),
        )
        for _ in range(count)
    ]


def equal(a, b):
    return all(
        np.array_equal(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(ImageLabels)
    )


def rewrite(folder, number, column, value):
    """Fill a column of a shard with a value, and make size, checksum and metadata agree with it."""
    path = folder / "data" / f"labels-{number:05d}.arrow"
    with pa.ipc.open_file(pa.OSFile(str(path))) as reader:
        table = reader.read_all()
    old = table.column(column).combine_chunks()
    flat = old
    while pa.types.is_fixed_size_list(flat.type):
        flat = flat.values
    new = pa.array(np.full(len(flat), value, flat.type.to_pandas_dtype()))
    for kind in reversed(list(nested(old.type))):
        new = pa.FixedSizeListArray.from_arrays(new, kind.list_size)
    table = table.set_column(table.schema.get_field_index(column), table.schema.field(column), new)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    metadata = json.loads((folder / "soft_labels.json").read_text())
    metadata["shards"][number] |= {"bytes": path.stat().st_size, "crc32": store.file_checksum(path)}
    (folder / "soft_labels.json").write_text(json.dumps(metadata))


def nested(kind):
    while pa.types.is_fixed_size_list(kind):
        yield kind
        kind = kind.value_type


@pytest.mark.parametrize("layout", [RecordLayout(7, 3, 10), RecordLayout(7, None, 10), RecordLayout(7, 3, 70_000)])
def test_records_come_back_as_they_were_written(layout):
    rows = random_rows(layout, 5)
    batch = layout.encode(40, rows)
    assert batch.column("image").to_pylist() == [40, 41, 42, 43, 44]
    assert all(equal(layout.decode(batch, index), row) for index, row in enumerate(rows))


def test_a_crop_takes_at_most_32_bytes_at_top_5_and_16_bit_indices_while_these_suffice():
    assert RecordLayout(500, 5, 1000).bytes_per_crop == 8 + 1 / 8 + 5 * (2 + 2)
    assert RecordLayout(500, 5, 65_536).class_type == "uint16"
    wide = RecordLayout(500, 5, 65_537)
    assert wide.class_type == "uint32" and wide.bytes_per_crop == 8 + 1 / 8 + 5 * (4 + 2)


def test_a_crop_takes_at_most_32_bytes_on_disk(tmp_path):
    settings = {"top_k": 5, "crops_per_image": 500, "images_per_shard": 16, "batch_size": 500}
    labels = store_of(photographs(16), tmp_path / "store", teacher(10), **settings)
    on_disk = sum(len(content) for name, content in files_of(labels.folder).items() if name.endswith(".arrow"))
    assert labels.metadata.bytes_per_crop == on_disk / (16 * 500)
    assert labels.metadata.bytes_per_crop < 30


def test_every_image_is_found_whatever_the_order(finished):
    assert len(finished) == 12
    in_order = [finished[index] for index in range(12)]
    assert all(equal(finished[index], in_order[index]) for index in (11, 0, 5, 4, 9))
    assert len({labels.digest for labels in in_order}) == 12
    with pytest.raises(IndexError):
        finished[12]


def test_reading_an_image_reads_a_small_part_of_its_shard(tmp_path, monkeypatch):
    settings = {"crops_per_image": 1000, "images_per_shard": 40, "batch_size": 1000}
    labels = store_of(photographs(40), tmp_path / "store", **settings)
    (shard,) = labels.metadata.shards
    read = 0

    class CountingFile:
        """Counts what pyarrow reads."""

        def __init__(self, path):
            self.file = open(path, "rb")  # noqa: SIM115 (pyarrow closes it)
            self.closed = False

        def read(self, size=-1):
            nonlocal read
            content = self.file.read(size)
            read += len(content)
            return content

        def __getattr__(self, name):
            return getattr(self.file, name)

    labels[0]
    monkeypatch.setattr(store.pa, "OSFile", lambda path: store.pa.PythonFile(CountingFile(path), mode="r"))
    fresh = SoftLabelStore(labels.folder)
    assert equal(fresh[17], labels[17])
    assert 0 < read < shard.bytes / 8


def test_open_files_are_few_however_many_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_OPEN_SHARDS", 2)
    labels = store_of(photographs(), tmp_path / "store", images_per_shard=2)
    for index in (0, 11, 5, 7, 0, 3):
        labels[index]
        assert len(labels._readers) <= 2
    assert equal(labels[0], SoftLabelStore(labels.folder)[0])


def test_a_store_can_be_sent_to_a_worker_process(finished):
    finished[0]
    sent = pickle.loads(pickle.dumps(finished))
    assert equal(sent[3], finished[3])


@pytest.mark.parametrize("top_k", [2, None])
def test_datasets_reads_it_without_us(tmp_path, top_k):
    labels = store_of(photographs(), tmp_path / "store", top_k=top_k)
    table = datasets.load_dataset(str(labels.folder), split="train", cache_dir=str(tmp_path / "cache"))
    table = table.with_format("numpy")
    assert table["image"][:].tolist() == list(range(12))
    for index in (0, 7, 11):
        row, ours = table[index], labels[index]
        for name in ("boxes", "flips", "probabilities", *(["classes"] if top_k else [])):
            assert np.array_equal(row[name], getattr(ours, name))
    assert table.features["probabilities"].feature.feature.dtype == "float16"
    assert ("classes" in table.column_names) == (top_k is not None)
    streamed = datasets.load_dataset(str(labels.folder), split="train", streaming=True)
    assert sum(1 for _ in streamed) == 12


def test_the_card_says_how_the_labels_were_made(finished):
    card = (finished.folder / "README.md").read_text()
    header, body = card.removeprefix("---\n").split("---\n", 1)
    assert yaml.safe_load(header)["configs"][0]["data_files"] == [{"split": "train", "path": "data/*.arrow"}]
    settings = finished.settings
    for said in (
        settings.teacher,
        settings.teacher_fingerprint,
        "none (a local model)",
        finished.metadata.source_fingerprint,
        "| crops an image | 6 |",
        "| classes stored of each crop | top 2 of 3 |",
        "random-resized crops of 0.08 to 1 of the area, width / height 0.75 to 1.333, bilinear; mirrored with "
        "probability 0.5 |",
        "| seed | 0 |",
        f"{finished.metadata.bytes_per_crop:.2f} bytes a crop",
    ):
        assert said in body
    assert "{" not in body


@pytest.mark.parametrize("name", ["run: w2a2", "x # y", "a\nlicense: mit", "a|b\n---\nc", "<b>`", "{0}", "${x}$"])
def test_names_are_text_in_every_part_of_the_card(finished, name):
    settings = dataclasses.replace(finished.settings, teacher=name, dataset=name, split=name, image_column=name)
    card = store_card(dataclasses.replace(finished.metadata, settings=settings))
    _, body = card.removeprefix("---\n").split("\n---\n", 1)
    fields, usual = (
        yaml.safe_load(text.removeprefix("---\n").split("\n---\n", 1)[0])
        for text in (card, store_card(finished.metadata))
    )
    assert fields.pop("pretty_name") == f"Soft labels of {name} for {name}"
    assert fields == {key: value for key, value in usual.items() if key != "pretty_name"}
    assert len(body.splitlines()) == len(store_card(finished.metadata).split("\n---\n", 1)[1].splitlines())


def test_the_data_set_of_a_store_is_named_without_keys_and_folders(tmp_path):
    for name, public in (("s3://k:s@bucket/x", "s3://bucket/x"), ("/data/me/photos", "photos")):
        labels = store_of(photographs(), tmp_path / public.replace("/", "-"), dataset_name=name)
        assert labels.settings.dataset == public
        assert name not in (labels.folder / "README.md").read_text()


def test_a_damaged_shard_is_named(copy):
    path = copy / "data" / "labels-00001.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedStoreError, match=r"labels-00001.arrow is damaged: its CRC-32 is"):
        SoftLabelStore(copy).verify()


def test_a_shard_that_cannot_be_decoded_is_named_when_it_is_read(copy):
    path = copy / "data" / "labels-00001.arrow"
    labels = SoftLabelStore(copy)
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(DamagedStoreError, match=r"labels-00001.arrow is damaged \(image 7\)"):
        labels[7]


def test_a_short_or_missing_shard_is_named_at_once(copy):
    path = copy / "data" / "labels-00002.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedStoreError, match=r"labels-00002.arrow is damaged: it has \d+ bytes, expected \d+"):
        SoftLabelStore(copy)
    path.unlink()
    with pytest.raises(DamagedStoreError, match=r"labels-00002.arrow is missing"):
        SoftLabelStore(copy)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("probabilities", np.nan, r"its probabilities go from nan to nan and sum to nan; accepted: 0 to 1"),
        ("probabilities", np.inf, "sum to inf"),
        ("probabilities", -0.5, "go from -0.5 to -0.5"),
        ("probabilities", 0.75, "sum to 1.5"),
        ("probabilities", 0, "sum to 0"),
        ("classes", 1, r"its classes are \[1, 1\]; accepted: each once"),
        ("classes", 3, r"its classes are \[3, 3\]; accepted: 0 to 2"),
        ("boxes", 9, r"its box is \[9, 9, 9, 9\]; accepted: left < right and top < bottom"),
    ],
)
def test_labels_that_cannot_be_are_refused_with_file_image_and_crop(copy, column, value, message):
    rewrite(copy, 1, column, value)
    labels = SoftLabelStore(copy)
    labels[0]  # of another shard
    with pytest.raises(
        DamagedStoreError, match=rf"labels-00001\.arrow is damaged \(image 7\): image 7, crop 0: .*{message}"
    ):
        labels[7]
    with pytest.raises(DamagedStoreError, match=rf"labels-00001\.arrow is damaged: image 5, crop 0: .*{message}"):
        labels.verify()


def test_images_of_another_place_or_another_data_set_are_refused(copy):
    rewrite(copy, 2, "digest", 7)
    with pytest.raises(DamagedStoreError, match="source_fingerprint is not that of the images in the shards"):
        SoftLabelStore(copy).verify()
    rewrite(copy, 2, "image", 3)
    with pytest.raises(DamagedStoreError, match=r"labels-00002\.arrow is damaged.* not numbered from 11 on"):
        SoftLabelStore(copy)[11]
    with pytest.raises(DamagedStoreError, match=r"labels-00002\.arrow is damaged.* not numbered from 10 on"):
        SoftLabelStore(copy).verify()


@pytest.mark.parametrize("crop", range(3))
def test_the_crop_that_cannot_be_is_the_one_that_is_named(crop):
    boxes = np.array([[[0, 0, 5, 5]] * 3] * 2, np.uint16)
    classes, values = np.array([[[0, 1]] * 3] * 2), np.array([[[0.5, 0.25]] * 3] * 2, np.float16)
    labels = ImageLabels(boxes, np.zeros((2, 3), bool), classes, values, 0)
    assert impossible_label(labels, 2) is None
    boxes[1, crop, 1] = 5
    assert impossible_label(labels, 2)[0] == (1, crop)
    boxes[1, crop, 1], classes[0, crop, 0] = 0, 1
    assert impossible_label(labels, 2)[0] == (0, crop)
    classes[0, crop, 0], values[0, crop, 1] = 0, np.nan
    assert impossible_label(labels, 2)[0] == (0, crop)


@pytest.mark.parametrize("classes", [3, 1000, 21_843])
def test_probabilities_of_all_classes_rounded_to_16_bits_can_be(classes):
    boxes = np.array([[0, 0, 5, 5]] * 2, np.uint16)
    one_class, even = np.eye(1, classes), np.full((1, classes), 1 / classes)
    labels = ImageLabels(boxes, np.zeros(2, bool), None, np.concatenate([one_class, even]).astype(np.float16), 0)
    assert impossible_label(labels, classes) is None
    labels.probabilities[1] *= 0.5
    assert impossible_label(labels, classes)[0] == (1,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["shards"][0].update(file="../../secret"), "shards are not data/labels-00000.arrow to"),
        (lambda m: m["shards"].pop(), "shards are not data/labels-00000.arrow to data/labels-00002.arrow"),
        (lambda m: m.update(num_images=0), "num_images is 0; accepted: 1 to"),
        (lambda m: m["settings"].update(crops_per_image="6"), "crops_per_image is '6'; accepted: 1 to"),
        (lambda m: m["settings"].update(images_per_shard=-5), "images_per_shard is -5; accepted: 1 to"),
        (lambda m: m["settings"].update(top_k=4), "top_k is 4; accepted: 1 to 3"),
        (lambda m: m["settings"].update(interpolation="x"), "interpolation is 'x'; accepted: "),
        (lambda m: m["settings"].pop("seed"), "seed"),
    ],
)
def test_metadata_that_no_store_has_are_refused(copy, change, message):
    path = copy / "soft_labels.json"
    metadata = json.loads(path.read_text())
    change(metadata)
    path.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=rf"soft_labels\.json' is damaged: .*{message}"):
        SoftLabelStore(copy)


def test_damaged_and_newer_metadata_are_refused(copy):
    path = copy / "soft_labels.json"
    newer = json.loads(path.read_text()) | {"format_version": 99}
    path.write_text(json.dumps(newer))
    with pytest.raises(ValueError, match="format_version 99; this version of hf_vaq reads 1"):
        SoftLabelStore(copy)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"soft_labels.json' is damaged"):
        SoftLabelStore(copy)


def test_a_folder_without_a_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no store of soft labels: it has no soft_labels.json"):
        SoftLabelStore(tmp_path)
    with pytest.raises(ValueError, match=r"there is no such folder .*'hf-vaq label RECIPE' makes it"):
        SoftLabelStore.load("nobody/labels")
