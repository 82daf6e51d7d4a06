"""Streams of labelled images: columns, labels as they come, and nothing kept."""

import weakref

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import ViTImageProcessor
from transformers.modeling_outputs import ImageClassifierOutput

from hf_vaq.data import ImageDecodeError, LabelledSplit, LabelLookup, load_dataset
from hf_vaq.evaluation import evaluate_side_by_side

FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
MODEL = {0: "b", 1: "a"}


def rows(count: int, label=lambda row: row % 2):
    for row in range(count):
        yield {"image": Image.new("RGB", (6, 5), (row % 250, 0, 0)), "label": label(row)}


def stream(count: int, features: datasets.Features | None = FEATURES, **options) -> datasets.IterableDataset:
    return datasets.IterableDataset.from_generator(rows, features=features, gen_kwargs={"count": count, **options})


def split_of(data: datasets.IterableDataset) -> LabelledSplit:
    return LabelledSplit.select(datasets.IterableDatasetDict(test=data), None, "image", "label")


def processor(size: int = 4) -> ViTImageProcessor:
    return ViTImageProcessor(size={"height": size, "width": size})


def test_labels_of_every_kind_are_looked_up_as_they_come():
    classes = LabelLookup(datasets.ClassLabel(names=["a", "b"]), "label", MODEL)
    assert [classes(value, 0) for value in (0, 1, 0)] == [1, 0, 1]
    strings = LabelLookup(datasets.Value("string"), "label", {0: "tench, Tinca tinca", 1: "bird"})
    assert [strings(value, 0) for value in ("Bird", "tench", "Bird")] == [1, 0, 1]
    numbers = LabelLookup(datasets.Value("int32"), "label", MODEL)
    assert [numbers(value, 0) for value in (1, 0)] == [1, 0]


@pytest.mark.parametrize(
    ("feature", "value", "message"),
    [
        (datasets.ClassLabel(names=["a", "b"]), -1, "holds -1 in row 7; accepted: 0 to 1"),
        (datasets.ClassLabel(names=["a", "b"]), None, "no label in row 7"),
        (datasets.Value("int64"), 2, "holds 2 in row 7; accepted: 0 to 1"),
        (datasets.Value("string"), "c", "does not know: 'c'"),
        (datasets.Value("string"), None, "no label in row 7"),
    ],
)
def test_a_wrong_label_in_a_stream_is_named(feature, value, message):
    with pytest.raises(ValueError, match=message):
        LabelLookup(feature, "label", MODEL)(value, 7)


@pytest.mark.parametrize(
    ("feature", "id2label", "message"),
    [
        (datasets.ClassLabel(names=["a", "x"]), MODEL, "does not know: 'x'"),
        (datasets.Value("float32"), MODEL, "whose type is float32"),
        (datasets.Value("string"), {0: "LABEL_0", 1: "LABEL_1"}, "accepted in a stream: class labels, integers"),
    ],
)
def test_labels_that_cannot_match_are_refused_before_the_first_row(feature, id2label, message):
    with pytest.raises(ValueError, match=message):
        LabelLookup(feature, "label", id2label)


@pytest.mark.parametrize("label", [lambda row: row % 2, lambda row: "ab"[row % 2]])
def test_a_stream_that_states_no_columns_shows_them_in_its_first_row(label):
    split = split_of(stream(4, features=None, label=label))
    assert isinstance(split.rows.features["image"], datasets.Image)
    (example,) = next(iter(split.side_by_side([({0: "a", 1: "b"}, processor())])))
    assert example["pixel_values"].shape == (3, 4, 4) and example["labels"] == 0


def test_an_empty_stream_is_refused():
    with pytest.raises(ValueError, match="The split is empty"):
        split_of(stream(0, features=None))
    with pytest.raises(ValueError, match="dataset to evaluate on is empty"):
        evaluate_side_by_side([Lookup()], split_of(stream(0)).side_by_side([(MODEL, processor())]), device="cpu")


def test_a_missing_column_of_a_stream_is_named():
    with pytest.raises(ValueError, match="image_column is 'img'; the data set has the columns: image, label"):
        LabelledSplit.select(datasets.IterableDatasetDict(test=stream(1)), "test", "img", "label")


def test_an_image_that_cannot_be_read_is_named_by_its_row():
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})

    def broken():
        yield {"image": {"bytes": b"no image", "path": None}, "label": 0}

    data = datasets.IterableDataset.from_generator(broken, features=features)
    images = split_of(data.cast_column("image", datasets.Image())).side_by_side([(MODEL, processor())])
    with pytest.raises(ImageDecodeError, match="column 'image', row 0 cannot be read"):
        list(images)


def test_the_same_processor_works_once_for_all_models(monkeypatch):
    calls = []
    original = ViTImageProcessor.__call__
    monkeypatch.setattr(ViTImageProcessor, "__call__", lambda *a, **k: calls.append(1) or original(*a, **k))
    views = [(MODEL, processor()), ({0: "a", 1: "b"}, processor()), (MODEL, processor(8))]
    (first, second, third) = next(iter(split_of(stream(1)).side_by_side(views)))
    assert len(calls) == 2
    assert first["pixel_values"] is second["pixel_values"] and third["pixel_values"].shape == (3, 8, 8)
    assert (first["labels"], second["labels"], third["labels"]) == (1, 0, 1)


def test_the_number_of_images_is_what_the_stream_states():
    assert split_of(stream(3)).num_images is None
    stated = stream(3)
    stated.info.splits = datasets.SplitDict({"train": datasets.SplitInfo("train", num_examples=7)})
    assert split_of(stated).num_images == 7
    assert LabelledSplit.select(load_dataset("digits"), "test", "image", "label").num_images == 360


def test_chosen_rows_keep_their_order_and_are_the_same_for_a_seed():
    split = LabelledSplit.select(load_dataset("digits"), "test", "image", "label")
    chosen = split.limited(20, seed=1)
    assert len(chosen.rows) == 20 and chosen.rows["label"][:] == split.limited(20, seed=1).rows["label"][:]
    assert chosen.rows["label"][:] != split.limited(20, seed=2).rows["label"][:]
    every = [np.asarray(image).tobytes() for image in split.rows["image"]]
    places = [every.index(np.asarray(image).tobytes()) for image in chosen.rows["image"]]
    assert places == sorted(places)
    assert split.limited(1000).rows is split.rows


class Lookup(nn.Module):
    """Always says class 0; notes how many images of a stream exist, and how far it has been read."""

    def __init__(self, read=None, alive=None):
        super().__init__()
        self.read, self.alive = read, alive
        self.seen, self.ahead, self.most_alive = 0, 0, 0

    def forward(self, pixel_values: torch.Tensor) -> ImageClassifierOutput:
        self.seen += len(pixel_values)
        if self.read is not None:
            self.ahead = max(self.ahead, self.read[0] - self.seen)
            self.most_alive = max(self.most_alive, len(self.alive))
        return ImageClassifierOutput(logits=torch.eye(2)[:1].expand(len(pixel_values), 2))


@pytest.mark.parametrize("count", [40, 400])
def test_a_stream_is_read_as_it_is_evaluated_and_none_of_it_is_kept(count):
    read, alive = [0], weakref.WeakValueDictionary()

    def images():
        for row in range(count):
            image = Image.new("RGB", (6, 5), (row % 250, 0, 0))
            alive[row] = image
            read[0] += 1
            yield {"image": image, "label": row % 2}
            del image

    data = datasets.IterableDataset.from_generator(images, features=FEATURES)
    model = Lookup(read, alive)
    (result,) = evaluate_side_by_side(
        [model], split_of(data).side_by_side([(MODEL, processor())]), batch_size=10, device="cpu"
    )
    assert result.num_images == model.seen == count and result.top1 == 50
    # The same few, however long the stream is.
    assert model.ahead <= 1 and model.most_alive <= 3
