"""The dataset of the student: the teacher's pixels, every crop in turn, and no image twice."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from soft_label_helpers import SIZE, photographs, processor, store_of, teacher

from hf_vaq.data import decode_image
from hf_vaq.soft_labels import ImageMismatchError, SoftLabelDataset, SoftLabelStore, recover_probabilities
from hf_vaq.soft_labels import dataset as dataset_module
from hf_vaq.training import measure_normalization


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    return store_of(photographs(), tmp_path_factory.mktemp("labels") / "store")


def dataset_of(labels, images=None, num_crops=4, size=SIZE, own=None, **fields):
    return SoftLabelDataset(
        images or photographs(),
        labels,
        num_crops=num_crops,
        normalization=measure_normalization(own or processor()),
        size=(size, size),
        **fields,
    )


def choices(dataset, epochs):
    """(epoch, image, crop) of every item of some epochs."""
    found = []
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        for position in range(len(dataset) // dataset.num_crops):
            image, crops = dataset.choice(position)
            found += [(epoch, image, int(crop)) for crop in crops]
    return found


@pytest.mark.parametrize("own", [processor(), processor(image_mean=[0.1, 0.5, 0.9], image_std=[0.2, 0.3, 0.4])])
def test_the_student_sees_the_teachers_pixels_bit_for_bit(tmp_path, own):
    model, images = teacher(), photographs()
    seen = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True)
    labels = store_of(images, tmp_path / "store", model, teacher_processor=own)
    shown = torch.cat(seen).reshape(12, 6, 3, SIZE, SIZE)
    dataset = dataset_of(labels, own=own)
    for epoch in range(4):
        dataset.set_epoch(epoch)
        items = dataset.__getitems__(range(len(dataset)))
        for index, item in enumerate(items):
            image, crops = dataset.choice(index // 4)
            assert torch.equal(item["pixel_values"], shown[image, crops[index % 4]])
    assert len(torch.unique(shown.flatten(0, 1), dim=0)) == 72, "crops must differ for this to mean something"


def test_in_another_size_and_normalisation_the_student_sees_the_same_place(tmp_path):
    """Pixels that state their place: red is the column, green the row, blue tells left from right."""
    import datasets
    from PIL import Image

    columns, rows = np.meshgrid(np.arange(200), np.arange(160))
    picture = Image.fromarray(np.stack([columns, rows, 255 * (columns > 100)], -1).astype(np.uint8))
    features = datasets.Features({"image": datasets.Image()})
    images = datasets.Dataset.from_dict({"image": [picture] * 2}, features=features)
    labels = store_of(images, tmp_path / "store")
    own = processor(40, image_mean=[0.2] * 3, image_std=[0.1] * 3)
    item = dataset_of(labels, images, num_crops=1, size=40, own=own)
    for position in range(2):
        image, (crop,) = item.choice(position)
        stored = labels[image]
        left, top, right, bottom = stored.boxes[crop] / 65535 * [200, 160, 200, 160]
        levels = (item[position]["pixel_values"] * 0.1 + 0.2) * 255
        if stored.flips[crop]:
            levels = levels.flip(-1)
        # The value at the centre of output pixel i is that of the source at left + (i + 0.5) * width / 40 - 0.5.
        across = left + (np.arange(40) + 0.5) * (right - left) / 40 - 0.5
        down = top + (np.arange(40) + 0.5) * (bottom - top) / 40 - 0.5
        assert levels[0].mean(0).numpy()[2:-2] == pytest.approx(across[2:-2], abs=1)
        assert levels[1].mean(1).numpy()[2:-2] == pytest.approx(down[2:-2], abs=1)


def test_labels_belong_to_the_crops(labels):
    dataset = dataset_of(labels)
    for index in range(len(dataset)):
        image, crops = dataset.choice(index // 4)
        stored, crop = labels[image], crops[index % 4]
        expected = recover_probabilities(stored.classes[crop], stored.probabilities[crop], 3)
        assert np.array_equal(dataset[index]["soft_labels"].numpy(), expected)
    renormalized = dataset_of(labels, recovery="renormalization")[0]["soft_labels"]
    assert (renormalized == 0).sum() == 1 and renormalized.sum() == pytest.approx(1)


def test_labels_come_in_the_students_order(labels):
    plain, ordered = dataset_of(labels), dataset_of(labels, label_order=[2, 0, 1])
    for index in range(len(plain)):
        assert torch.equal(ordered[index]["soft_labels"], plain[index]["soft_labels"][[2, 0, 1]])


@pytest.mark.parametrize(("images", "num_crops", "per_epoch"), [(12, 4, 12), (12, 1, 12), (11, 2, 10), (11, 3, 9)])
def test_an_epoch_has_as_many_crops_as_images_and_m_epochs_visit_every_image(tmp_path, images, num_crops, per_epoch):
    dataset = dataset_of(store_of(photographs(images), tmp_path / "s"), photographs(images), num_crops=num_crops)
    assert len(dataset) == per_epoch
    for sweep in range(3):
        found = choices(dataset, (sweep + 1) * num_crops)[sweep * num_crops * per_epoch :]
        visits = Counter((image, epoch) for epoch, image, _ in found)
        assert set(visits.values()) == {num_crops}
        assert len({image for image, _ in visits}) == len(visits), "no image twice in a sweep"
        assert len(visits) == num_crops * (images // num_crops)


def test_no_crop_is_used_again_before_all_others_were(labels):
    dataset = dataset_of(labels, num_crops=2)
    # Three sweeps of two epochs use each of the six crops of an image once.
    for deal in range(3):
        used = Counter((image, crop) for _, image, crop in choices(dataset, 6 * (deal + 1))[6 * deal * len(dataset) :])
        assert used == {(image, crop): 1 for image in range(12) for crop in range(6)}


def test_order_and_crops_are_seeded_and_differ_between_sweeps(labels):
    first, again, other = (choices(dataset_of(labels, seed=seed), 8) for seed in (0, 0, 1))
    assert first == again != other
    half = 4 * len(dataset_of(labels))
    assert [image for _, image, _ in first[:half]] != [image for _, image, _ in first[half:]]


def test_an_image_is_decoded_once_for_its_crops_in_a_batch(labels, monkeypatch):
    decoded = []

    def counting(stored, where, decoder):
        decoded.append(where)
        return decode_image(stored, where, decoder)

    monkeypatch.setattr("hf_vaq.soft_labels.images.decode_image", counting)
    dataset = dataset_of(labels)
    batch = dataset.__getitems__(list(range(8)))
    assert len(batch) == 8 and len(decoded) == 2
    alone = [dataset[index] for index in range(8)]
    assert len(decoded) == 10
    for a, b in zip(batch, alone, strict=True):
        assert torch.equal(a["pixel_values"], b["pixel_values"]) and torch.equal(a["soft_labels"], b["soft_labels"])


def test_workers_that_outlive_an_epoch_see_it_change(labels):
    dataset = dataset_of(labels)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=8, num_workers=1, persistent_workers=True, multiprocessing_context="fork"
    )
    for epoch in (0, 5):
        dataset.set_epoch(epoch)
        batches = list(loader)
        expected = dataset.__getitems__(range(len(dataset)))
        assert torch.equal(
            torch.cat([batch["pixel_values"] for batch in batches]),
            torch.stack([item["pixel_values"] for item in expected]),
        )


def test_it_can_be_sent_to_a_worker_process(labels):
    dataset = dataset_of(labels)
    sent = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(sent[3]["pixel_values"], dataset[3]["pixel_values"])


def test_the_same_images_pass_the_check(labels):
    dataset_of(labels).check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images.select(range(11)), "label 12 images, and the training split has 11"),
        (lambda images: photographs(seed=1), "row 0 of the training split is not the one that was labelled"),
        (lambda images: images.select([0, 1, 3, 2, *range(4, 12)]), "row 2 of the .* was row 3 when .* another order"),
        (lambda images: images.select([*range(11), 0]), "row 11 of the .* was row 0 when .* another order"),
    ],
    ids=["number", "other images", "two swapped", "one repeated"],
)
def test_other_images_are_refused_before_training(labels, change, message):
    with pytest.raises(ImageMismatchError, match=message):
        dataset_of(labels, change(photographs())).check()


def test_an_image_that_the_check_did_not_look_at_is_compared_when_it_is_read(labels, monkeypatch):
    from hf_vaq.soft_labels import check_images
    from hf_vaq.soft_labels.images import EncodedImages

    images = photographs().select([0, 1, 3, 2, *range(4, 12)])
    check_images(labels, EncodedImages(images, "image"), limit=2)  # the first and the last are right
    dataset = dataset_of(labels, images)
    monkeypatch.setattr(dataset_module.SoftLabelDataset, "choice", lambda self, position: (2, np.arange(4)))
    with pytest.raises(ImageMismatchError, match="row 2 of the training split was row 3"):
        dataset[0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_crops": 0}, "num_crops is 0; accepted: 1 to 6"),
        ({"num_crops": 7}, "num_crops is 7; accepted: 1 to 6"),
        ({"recovery": "half"}, "soft_label_recovery is 'half'"),
        ({"images": photographs().to_iterable_dataset()}, "are a IterableDataset; accepted with soft_labels"),
        ({"images": photographs().remove_columns("image")}, "no column holds images"),
    ],
)
def test_wrong_arguments_are_refused(labels, fields, message):
    with pytest.raises(ValueError, match=message):
        dataset_of(labels, **fields)


def test_a_store_opened_by_folder_serves_as_well(labels):
    opened = dataset_of(SoftLabelStore.load(labels.folder))
    assert torch.equal(opened[5]["pixel_values"], dataset_of(labels)[5]["pixel_values"])
