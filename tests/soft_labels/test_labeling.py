"""Labelling: what the teacher says of which pixels, in any number of sittings, from any source."""

import os
import signal
import traceback

import datasets
import numpy as np
import pytest
import torch
from soft_label_helpers import SIZE, files_of, photographs, processor, store_of, teacher
from transformers import TimmWrapperConfig

from hf_vaq import files
from hf_vaq.data import ImageDecodeError
from hf_vaq.soft_labels import CropSampling, DamagedStoreError, SoftLabelStore, draw_crops, label_dataset, lock
from hf_vaq.soft_labels.teacher import LabelingTeacher
from hf_vaq.soft_labels.unfinished import UnfinishedStore


def expected_labels(images, model, index, crops=6, seed=0, side=SIZE):
    """The teacher's probabilities of the crops of an image, by torchvision's crop and the image processor itself."""
    from torchvision.transforms import v2

    picture = images[index]["image"].convert("RGB")
    boxes, flips = draw_crops(CropSampling(seed=seed), index, crops, *picture.size)
    pixels = []
    for (left, top, right, bottom), flip in zip(boxes / 65535, flips, strict=True):
        width, height = picture.size
        box = (left * width, top * height, right * width, bottom * height)
        crop = picture.resize((side, side), 2, box=box)
        pixels.append(v2.functional.hflip(crop) if flip else crop)
    inputs = processor(side)(pixels, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model(pixel_values=inputs).logits.softmax(-1).numpy()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The store of an uninterrupted run."""
    return store_of(photographs(), tmp_path_factory.mktemp("whole") / "store")


@pytest.mark.parametrize("top_k", [1, 2, 3, None])
def test_stored_probabilities_are_those_of_the_teacher_to_16_bits(tmp_path, top_k):
    images, model = photographs(), teacher()
    labels = store_of(images, tmp_path / "store", model, top_k=top_k)
    for index in range(len(images)):
        exact = expected_labels(images, model, index)
        stored = labels[index]
        if top_k in (3, None):
            assert stored.classes is None, "the top 3 of 3 are all"
        else:
            assert np.array_equal(stored.classes, np.argsort(-exact, -1)[:, :top_k])
            exact = np.take_along_axis(exact, stored.classes.astype(int), -1)
        assert stored.probabilities.dtype == np.float16
        # Half a unit in the last of 11 binary digits; what the two ways to the logits differ by is far less.
        assert stored.probabilities.astype(np.float64) == pytest.approx(exact, rel=2**-11 + 1e-5, abs=1e-7)


def test_the_teacher_is_asked_in_its_own_size_and_normalisation(tmp_path):
    images, model = photographs(3), teacher(size=12)
    own = processor(12, image_mean=[0.1, 0.2, 0.3], image_std=[0.3, 0.2, 0.1], resample=3)
    seen = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True)
    labels = store_of(images, tmp_path / "store", model, teacher_processor=own)
    assert labels.settings.teacher_image_size == (12, 12) and labels.settings.interpolation == "bicubic"
    pixels = torch.cat(seen)
    assert pixels.shape == (18, 3, 12, 12)
    mean, std = torch.tensor(own.image_mean)[:, None, None], torch.tensor(own.image_std)[:, None, None]
    levels = (pixels * std + mean) * 255
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert levels.round().min() >= 0 and levels.round().max() <= 255 and levels.std() > 20


def test_labels_do_not_depend_on_threads_or_shards(tmp_path, whole):
    threaded = store_of(photographs(), tmp_path / "threads", num_workers=2)
    assert files_of(threaded.folder) == files_of(whole.folder)
    one = store_of(photographs(), tmp_path / "one", images_per_shard=100, batch_size=7)
    assert [shard.images for shard in one.metadata.shards] == [12]
    for index in range(12):
        assert np.array_equal(one[index].boxes, whole[index].boxes)
        assert one[index].probabilities == pytest.approx(whole[index].probabilities, abs=1e-3)


def test_another_seed_gives_other_crops(tmp_path, whole):
    other = store_of(photographs(), tmp_path / "store", sampling=CropSampling(seed=1))
    assert not np.array_equal(other[0].boxes, whole[0].boxes)


def run_and_kill(folder, moment):
    """Label in a process of its own, which is killed, without a chance to tidy up, at its n-th moment.

    A moment is each time before and after a file is put on the disk or takes its name, and each answer of the teacher.
    Returns whether the process lived to the end.
    """
    child = os.fork()
    if child == 0:
        try:
            left = moment

            def tick():
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            flush, ask = files._flush, LabelingTeacher.probabilities

            def counted_flush(path):
                tick()
                flush(path)

            def counted_ask(self, pixels):
                tick()
                return ask(self, pixels)

            files._flush, LabelingTeacher.probabilities = counted_flush, counted_ask
            store_of(photographs(), folder)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), "the child failed; its traceback is in the captured output"
    return status == 0


def test_a_labelling_that_is_killed_at_any_moment_ends_as_if_it_was_not(tmp_path, whole):
    moments, finished = 0, False
    while not finished:
        folder = tmp_path / f"killed-{moments}"
        finished = run_and_kill(folder, moments)
        if not (folder / "soft_labels.json").exists():
            with pytest.raises(ValueError, match=r"not finished|holds no store"):
                SoftLabelStore(folder)
        store_of(photographs(), folder)
        assert files_of(folder) == files_of(whole.folder)
        moments += 1
    assert moments > 15, "shards, plan, card and metadata, each before and after it takes its name, and the teacher"


def test_a_labelling_that_is_killed_again_and_again_ends_as_if_it_was_not(tmp_path, whole):
    folder = tmp_path / "store"
    deaths = 0
    while not run_and_kill(folder, 8):
        deaths += 1
        assert deaths < 20, "every sitting must get further"
    assert deaths >= 2
    assert files_of(folder) == files_of(whole.folder)


def test_a_shard_that_is_damaged_before_the_store_is_finished_is_labelled_anew(tmp_path, whole):
    folder = tmp_path / "store"
    run_and_kill(folder, 22)
    shard = folder / "data" / "labels-00000.arrow"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    store_of(photographs(), folder)
    assert files_of(folder) == files_of(whole.folder)


def test_a_shard_that_is_damaged_while_others_are_made_stops_the_store(tmp_path, whole, monkeypatch):
    folder, finish = tmp_path / "store", UnfinishedStore.finish

    def damage_and_finish(store, num_images):
        shard = folder / "data" / "labels-00001.arrow"
        shard.write_bytes(shard.read_bytes()[:-1] + b"?")
        finish(store, num_images)

    with monkeypatch.context() as patch:
        patch.setattr(UnfinishedStore, "finish", damage_and_finish)
        with pytest.raises(DamagedStoreError, match=r"labels-00001\.arrow is damaged: it is not what was written"):
            store_of(photographs(), folder)
    store_of(photographs(), folder)
    assert files_of(folder) == files_of(whole.folder)


def test_one_labelling_at_a_time_in_a_folder(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0)
    folder = tmp_path / "store"
    run_and_kill(folder, 14)  # its lock ended with it
    with lock.sole_user(folder):
        before = files_of(folder)
        with pytest.raises(ValueError, match=rf"'{folder}' is being written by process {os.getpid()} on .*; wait"):
            store_of(photographs(), folder)
        assert files_of(folder) == before
    store_of(photographs(), folder)
    assert files_of(folder) == files_of(whole.folder)


def test_who_comes_while_the_last_shard_is_written_gets_the_store(tmp_path, whole):
    child = os.fork()
    if child == 0:
        try:
            store_of(photographs(), tmp_path / "store")
            os._exit(0)
        finally:
            os._exit(1)
    assert store_of(photographs(), tmp_path / "store").metadata == whole.metadata
    assert os.waitpid(child, 0)[1] == 0
    assert files_of(tmp_path / "store") == files_of(whole.folder)


def test_an_interrupted_store_is_refused_with_the_way_out(tmp_path):
    run_and_kill(tmp_path / "store", 9)
    with pytest.raises(ValueError, match="not finished: its labelling was interrupted"):
        SoftLabelStore(tmp_path / "store")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crops_per_image": 5}, "crops_per_image was 6, now it is 5"),
        ({"top_k": None}, "top_k was 2, now it is None"),
        ({"sampling": CropSampling(seed=4)}, "seed was 0, now it is 4"),
        ({"batch_size": 6}, "batch_size was 12, now it is 6"),
        ({"model": teacher(seed=2)}, "teacher_fingerprint was"),
    ],
)
@pytest.mark.parametrize("interrupted", [True, False])
def test_a_folder_with_another_labelling_is_refused(tmp_path, fields, message, interrupted):
    folder = tmp_path / "store"
    assert run_and_kill(folder, 9 if interrupted else 1000) != interrupted
    before = files_of(folder)
    with pytest.raises(ValueError, match=f"holds another labelling: {message}"):
        store_of(photographs(), folder, **fields)
    assert files_of(folder) == before


def test_an_interrupted_labelling_of_other_images_is_not_continued(tmp_path):
    run_and_kill(tmp_path / "store", 14)
    assert (tmp_path / "store" / "data" / "labels-00000.arrow").exists()
    with pytest.raises(ValueError, match="labelling of other images: row 0"):
        store_of(photographs(seed=1), tmp_path / "store")


def test_a_finished_store_is_not_taken_for_one_of_other_images(tmp_path):
    store_of(photographs(), tmp_path / "store")
    with pytest.raises(ValueError, match="labelling of other images: row 0"):
        store_of(photographs(seed=1), tmp_path / "store")
    with pytest.raises(ValueError, match="a finished labelling of"):
        store_of(photographs().select(range(3)), tmp_path / "store")


def test_a_folder_with_something_else_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no labelling"):
        store_of(photographs(), tmp_path)
    assert files_of(tmp_path) == {"thesis.txt": b"mine"}


def test_a_finished_store_is_returned_without_asking_the_teacher(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(LabelingTeacher, "probabilities", None)
    again = store_of(photographs(), whole.folder)
    assert again.metadata == whole.metadata


def sources(folder):
    """The same photographs in every way that datasets come."""
    images = photographs()
    images.to_parquet(str(folder / "train.parquet"))
    images.save_to_disk(str(folder / "saved"))
    pictures = folder / "pictures" / "train" / "a"
    pictures.mkdir(parents=True)
    for index, content in enumerate(images.cast_column("image", datasets.Image(decode=False))["image"]):
        (pictures / f"{index:03d}.png").write_bytes(content["bytes"])
    parquet = {"path": "parquet", "data_files": {"train": str(folder / "train.parquet")}, "split": "train"}
    pictures = {"path": str(folder / "pictures"), "split": "train"}
    cache = {"cache_dir": str(folder / "cache")}
    return {
        "Parquet": datasets.load_dataset(**parquet, **cache),
        "Parquet, streamed": datasets.load_dataset(**parquet, streaming=True),
        "folder of images": datasets.load_dataset(**pictures, **cache),
        "folder of images, streamed": datasets.load_dataset(**pictures, streaming=True),
        "saved": datasets.load_from_disk(str(folder / "saved")),
        "paths": datasets.Dataset.from_dict({"image": [str(p) for p in sorted((folder / "pictures").rglob("*.png"))]}),
    }


def test_every_source_of_the_same_images_gives_the_same_labels(tmp_path, whole):
    for name, split in sources(tmp_path).items():
        labels = store_of(split, tmp_path / "stores" / name)
        found, expected = files_of(labels.folder), files_of(whole.folder)
        assert {file: found[file] for file in found if file.endswith(".arrow")} == {
            file: expected[file] for file in expected if file.endswith(".arrow")
        }, name
        assert labels.metadata.source_fingerprint == whole.metadata.source_fingerprint


def test_a_stream_is_continued_too(tmp_path, whole):
    images = photographs()
    folder = tmp_path / "store"
    asked = LabelingTeacher.probabilities
    answers = 0

    def breaks(self, pixels):
        nonlocal answers
        answers += 1
        if answers > 4:
            raise KeyboardInterrupt
        return asked(self, pixels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LabelingTeacher, "probabilities", breaks)
        with pytest.raises(KeyboardInterrupt):
            store_of(images.to_iterable_dataset(), folder)
    assert (folder / "data" / "labels-00000.arrow").exists()
    continued = store_of(images.to_iterable_dataset(), folder)
    assert files_of(continued.folder) == files_of(whole.folder)


def test_a_large_crop_count_does_not_change_how_small_ones_are_grouped(tmp_path):
    # 7 crops in batches of 3: an image does not fit into a batch, and its last one is not full.
    images, model = photographs(4), teacher()
    labels = store_of(images, tmp_path / "store", model, crops_per_image=7, batch_size=3, top_k=None)
    for index in range(4):
        exact = expected_labels(images, model, index, crops=7)
        assert labels[index].probabilities.astype(np.float64) == pytest.approx(exact, rel=2**-11 + 1e-5, abs=1e-7)


def test_low_precision_teachers_label_almost_alike(tmp_path, whole):
    labels = store_of(photographs(), tmp_path / "store", dtype="bfloat16", top_k=2)
    assert labels.settings.teacher_dtype == "bfloat16"
    assert not all(np.array_equal(labels[index].probabilities, whole[index].probabilities) for index in range(12))
    assert np.mean([abs(labels[i].probabilities - whole[i].probabilities).mean() for i in range(12)]) < 0.05


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    column = datasets.Features({"image": datasets.Image()})
    broken = datasets.Dataset.from_dict({"image": [{"bytes": b"no image", "path": None}]}, features=column)
    with pytest.raises(ImageDecodeError, match="column 'image', row 0 cannot be read"):
        store_of(broken, tmp_path / "store")


def test_a_teacher_that_is_not_finite_is_refused(tmp_path):
    model = teacher()
    torch.nn.init.constant_(model.classifier.bias, float("nan"))
    with pytest.raises(ValueError, match="a crop of image 0 with probabilities that are not finite"):
        store_of(photographs(), tmp_path / "store", model)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 4}, "top_k is 4; accepted: 1 to 3"),
        ({"top_k": 0}, "top_k is 0; accepted: 1 to 3"),
        ({"crops_per_image": 0}, "crops_per_image is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"dtype": "int8"}, "dtype is 'int8'; accepted: float32, bfloat16, float16"),
        ({"image_column": "picture"}, "image_column is 'picture'; the data set has: image, label"),
        ({"teacher_processor": None}, "the teacher has no image processor"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        store_of(photographs(), tmp_path / "store", **fields)
    assert not (tmp_path / "store").exists()


def test_teachers_are_loaded_from_folders_with_their_processor(tmp_path, whole):
    teacher().save_pretrained(tmp_path / "the_teacher")
    processor().save_pretrained(tmp_path / "the_teacher")
    labels = label_dataset(
        photographs(), str(tmp_path / "the_teacher"), tmp_path / "store", crops_per_image=6, top_k=2, batch_size=12
    )
    assert labels.settings.teacher == "the_teacher", "and not where it lies on this machine"
    assert labels.settings.teacher_fingerprint == whole.settings.teacher_fingerprint
    assert np.array_equal(labels[11].probabilities, whole[11].probabilities)
    with pytest.raises(ValueError, match=r"teacher '.*nowhere' cannot be loaded"):
        label_dataset(photographs(), str(tmp_path / "nowhere"), tmp_path / "other")


def test_a_timm_teacher_brings_its_own_size_and_normalisation(tmp_path):
    pytest.importorskip("timm")
    from transformers import TimmWrapperForImageClassification

    described = {
        "input_size": [3, 48, 48],
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.2, 0.2],
        "interpolation": "bicubic",
    }
    config = TimmWrapperConfig(architecture="mobilenetv3_small_050", pretrained_cfg=described, num_labels=4)
    model = TimmWrapperForImageClassification(config).eval()
    settings = {"crops_per_image": 3, "batch_size": 3, "top_k": 2}
    labels = label_dataset(photographs(2), model, tmp_path / "store", **settings)
    assert labels.settings.teacher_image_size == (48, 48)
    assert labels.settings.interpolation == "bicubic"
    assert len(labels) == 2 and labels.num_classes == 4
