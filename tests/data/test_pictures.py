"""Pictures of every kind become upright RGB: for training, evaluation and labelling, and in an exported run.py."""

import inspect
import io

import datasets
import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image

from hf_vaq.data import ImageDecodeError, as_rgb, decode_image
from hf_vaq.export.bundled import run
from hf_vaq.soft_labels.images import EncodedImages

ORIENTATION = 0x0112
UPRIGHT = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
# What EXIF says the stored rows and columns are, as what was done to the upright picture before it was stored.
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x, -1),
}


def encoded(picture, form="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def read_as_training_does(content):
    return decode_image({"bytes": content, "path": None}, "row 0", datasets.Image())


def read_as_labelling_does(content):
    return EncodedImages(datasets.Dataset.from_dict({"image": [content]}), "image")[0].decode()


def read_as_run_py_does(content):
    return run.as_rgb(Image.open(io.BytesIO(content)))


EVERY_READER = pytest.mark.parametrize("read", [read_as_training_does, read_as_labelling_does, read_as_run_py_does])


@EVERY_READER
@pytest.mark.parametrize("orientation", STORED)
def test_a_picture_is_turned_as_its_exif_orientation_says(read, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    content = encoded(Image.fromarray(np.ascontiguousarray(STORED[orientation](UPRIGHT))), exif=exif)
    assert np.array_equal(np.asarray(read(content)), UPRIGHT)
    assert np.array_equal(np.asarray(load_image(Image.open(io.BytesIO(content)))), UPRIGHT)  # that of pipeline(...)


@EVERY_READER
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_8_bit_pictures_are_read_as_the_pipeline_reads_them(read, mode):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 4, 4), dtype=np.uint8)).convert(mode)
    options = {"transparency": 3} if mode == "P" else {}
    content = encoded(picture, "TIFF" if mode == "CMYK" else "PNG", **options)
    made = read(content)
    assert made.mode == "RGB"
    assert np.array_equal(np.asarray(made), np.asarray(load_image(Image.open(io.BytesIO(content)))))


@EVERY_READER
@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_levels_are_divided_by_257(read, form):
    grey = np.array([[0, 128, 129, 257], [514, 25_700, 65_406, 65_535]], dtype=np.uint16)
    made = np.asarray(read(encoded(Image.fromarray(grey), form)))
    assert np.array_equal(made, np.array([[0, 0, 1, 1], [2, 100, 254, 255]])[..., None].repeat(3, 2))


@pytest.mark.parametrize(
    ("mode", "values", "levels"),
    [
        ("I;16B", [0, 257, 65_535], [0, 1, 255]),
        ("I", [0, 1, 255], [0, 1, 255]),
        ("I", [0, 256, 65_535], [0, 1, 255]),
        ("F", [0.0, 0.5, 1.0], [0, 128, 255]),
        ("F", [0.0, 0.003, 0.8], [0, 1, 204]),
    ],
)
def test_grey_levels_of_many_bits_keep_black_and_white(mode, values, levels):
    dtype = {"I;16B": ">u2", "I": np.int32, "F": np.float32}[mode]
    picture = Image.frombytes(mode, (3, 1), np.array(values, dtype).tobytes())
    assert np.asarray(as_rgb(picture))[0].tolist() == [[level] * 3 for level in levels]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.float32([0, 255]), r"\(mode F\) go from 0 to 255; accepted: 0 to 1\."),
        (np.float32([-0.5, 1]), r"go from -0.5 to 1"),
        (np.float32([0, np.nan]), r"go from nan to nan"),
        (np.int32([0, 65_536]), r"\(mode I\) go from 0 to 65536; accepted: 0 to 65535\."),
        (np.int32([-1, 5]), r"go from -1 to 5"),
    ],
)
def test_grey_levels_of_another_range_are_refused_with_row_and_file(values, message, tmp_path):
    picture = Image.fromarray(values[None])
    picture.save(tmp_path / "x-ray.tif")
    stored = {"bytes": None, "path": str(tmp_path / "x-ray.tif")}
    with pytest.raises(
        ImageDecodeError, match=r"row 7 \(file .*x-ray\.tif\) cannot be read: its grey levels.*" + message
    ):
        decode_image(stored, "row 7", datasets.Image())
    with pytest.raises(ValueError, match=message):
        run.as_rgb(picture)


def test_run_py_names_the_picture_that_it_cannot_read(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "read_settings", lambda: {"image": None})
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(SystemExit, match=r"notes\.txt: cannot identify image file"):
        run.main([str(tmp_path / "notes.txt")])


def test_run_py_has_the_same_rule_word_for_word():
    assert inspect.getsource(run.as_rgb) == inspect.getsource(as_rgb)
