"""Of a damaged model folder, one line says which folder, which file, and why."""

import contextlib
import io
import json
import shutil

import pytest
import torch
from helpers import build, images
from safetensors.torch import load_file, save_file
from transformers import (
    BeitImageProcessor,
    BitImageProcessor,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    ViTImageProcessor,
)

import hf_vaq
from hf_vaq import QuantConfig
from hf_vaq.cli import main
from hf_vaq.data.processors import check_image_processor
from hf_vaq.integration import quantizer
from hf_vaq.job.models import load_config, load_image_processor, load_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model of each form, with its image processor."""
    folder = tmp_path_factory.mktemp("sound")
    small = {"num_hidden_layers": 1, "num_labels": 10}
    build(**small).save_pretrained(folder / "float")
    model = hf_vaq.quantize(build(**small), QuantConfig())
    hf_vaq.calibrate(model, [images()])
    model.save_pretrained(folder / "training")
    hf_vaq.pack(model).save_pretrained(folder / "packed")
    for each in folder.iterdir():
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(each)
    return folder


@pytest.fixture(params=["float", "training", "packed"])
def folder(request, folders, tmp_path):
    return shutil.copytree(folders / request.param, tmp_path / "model")


def edit_config(folder, change):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | change if isinstance(change, dict) else change))


CONFIGS = [
    [],
    None,
    {"quantization_config": [1]},
    {"quantization_config": "x"},
    {"id2label": 3},
    {"hidden_act": "nope"},
    {"patch_size": 0},
    {"num_attention_heads": 0},
    {"hidden_size": -1},
    {"hidden_size": None},
    {"dtype": "float99"},
    {"architectures": 3},
    {"model_type": "swin"},
    {"model_type": 3},
    {"auto_map": 3},
]


@pytest.mark.parametrize("change", CONFIGS, ids=str)
def test_what_no_config_holds_is_an_error_of_the_folder_and_of_config_json(change, folder):
    edit_config(folder, change)
    with pytest.raises(ValueError, match=rf"The model '{folder}' cannot be loaded: .*config\.json|{folder}.*model"):
        load_model(folder)


@pytest.mark.parametrize("change", [{"image_size": 64}, {"num_labels": 3}, {"num_attention_heads": 5}], ids=str)
def test_a_config_for_other_shapes_is_an_error_that_names_tensor_and_shapes(change, folder, capsys):
    edit_config(folder, change)
    with pytest.raises(ValueError, match=rf"'{folder}' cannot be loaded: .*tensor '.*' has shape \(.*\), .*\(.*\)"):
        load_model(folder)
    assert capsys.readouterr().err == ""  # no table


def test_a_model_that_lacks_tensors_is_not_filled_with_random_numbers(folder, capsys):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["vit.layernorm.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"'{folder}' cannot be loaded: .*lack.*'vit\.layernorm\.weight'"):
        load_model(folder)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content", [b"", b"some text, not tensors", b'{"a":' * 3])
def test_damaged_weights_are_named(content, folder):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"The model '{folder}' cannot be loaded: .*model\.safetensors is"):
        load_model(folder)


@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_shard_is_named(packed, folders, tmp_path):
    load_model(folders / ("packed" if packed else "float")).save_pretrained(tmp_path, max_shard_size="10KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    shards[-1].write_bytes(shards[-1].read_bytes()[:-5])
    with pytest.raises(ValueError, match=rf"'{tmp_path}' cannot be loaded: .*{shards[-1].name} is .*damaged"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 3}}', "{", "3"])
def test_a_damaged_index_of_shards_is_named(content, folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=rf"'{folder}' cannot be loaded: model\.safetensors\.index\.json is damaged"):
        load_model(folder)


def test_a_shard_that_the_index_names_in_vain_is_named(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}, "metadata": {}}')
    with pytest.raises(ValueError, match=rf"'{folder}' cannot be loaded: .*b\.safetensors"):
        load_model(folder)


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "null",
        "[" * 100_000,
        '{"image_processor_type": 3}',
        '{"image_processor_type": "Nope"}',
        '{"image_processor_type": "ViTImageProcessor", "size": "x"}',
        '{"image_',
    ],
    ids=lambda content: content[:40],
)
def test_a_damaged_image_processor_is_named(content, folders, tmp_path):
    folder = shutil.copytree(folders / "float", tmp_path / "model")
    (folder / "preprocessor_config.json").write_text(content)
    with pytest.raises(ValueError, match=rf"'{folder}' has no image processor that can be loaded") as error:
        load_image_processor(folder)
    assert "\n" not in str(error.value) and error.value.__cause__ is not None


SETTINGS = {
    "size": (
        {"height": 0, "width": 0},
        {"height": -3, "width": 3},
        {"height": "x", "width": 3},
        {"shortest_edge": 0.5},
    ),
    "image_std": (0, "x", [0, 0, 0], [1, 1], [1, 1, -1], [1, 1, float("nan")], [], None),
    "image_mean": (None, [0, 0, float("inf")], [0, 0, "x"], [0, 0, True]),
    "rescale_factor": (0, "x", None, float("nan"), -1),
    "resample": (99, "x"),
    "do_resize": ("x", 3),
    "do_normalize": ([],),
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in SETTINGS.items() for value in values])
def test_settings_that_make_no_pixels_are_refused_by_name_and_value(name, value, tmp_path):
    ViTImageProcessor().save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(
        ValueError, match=rf"'{tmp_path}' has no image processor .*preprocessor_config\.json.* {name} "
    ):
        load_image_processor(tmp_path)


def test_processors_of_every_family_are_accepted():
    for each in (
        ViTImageProcessor(),
        ViTImageProcessor(do_normalize=False, image_std=[0, 0, 0]),
        DeiTImageProcessor(),
        BeitImageProcessor(),
        BitImageProcessor(),
        ConvNextImageProcessor(),
    ):
        check_image_processor(each)


def test_a_config_nested_too_deeply_is_an_error(folders, tmp_path):
    (tmp_path / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(ValueError, match=rf"'{tmp_path}' cannot be loaded: config\.json is damaged \(RecursionError"):
        load_config(tmp_path)


def test_a_fault_of_this_package_is_not_taken_for_one_of_the_folder(folders, monkeypatch):
    monkeypatch.setattr(quantizer, "plan_quantization", lambda *args, **options: {}["a fault"])
    with pytest.raises(KeyError, match="a fault"):
        load_model(folders / "packed")


def test_what_loads_is_whole_and_in_evaluation_mode(folders):
    for each in folders.iterdir():
        model = load_model(each)
        assert not model.training
        with torch.no_grad():
            assert torch.isfinite(model(images()).logits).all()


COMMANDS = {
    "pack": ["pack", "MODEL", "OUT"],
    "push": ["push", "MODEL", "me/x", "--output", "OUT"],
    "evaluate": ["evaluate", "MODEL", "--dataset", "digits", "--split", "test", "--max_images", "4"],
    "benchmark": ["benchmark", "MODEL"],
    "export": ["export", "MODEL", "OUT", "--format", "onnx"],
    "sensitivity": ["analyze", "sensitivity", "MODEL", "--output", "OUT", "--dataset", "digits", "--split", "test"],
    "variation": ["analyze", "variation", "MODEL", "--output", "OUT"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "change", [[], {"hidden_act": "nope"}, {"quantization_config": [1]}, {"architectures": 3}], ids=str
)
def test_every_command_says_it_in_one_line(command, change, folders, tmp_path):
    folder = shutil.copytree(folders / "training", tmp_path / "model")
    edit_config(folder, change)
    words = [{"MODEL": str(folder), "OUT": str(tmp_path / "out")}.get(word, word) for word in COMMANDS[command]]
    with contextlib.redirect_stderr(io.StringIO()) as error:
        assert main(words) == 1
    *progress, line = error.getvalue().splitlines()
    assert progress in ([], [f"loading {folder}"])
    assert "error: " in line and str(folder) in line
    assert not (tmp_path / "out").exists()
