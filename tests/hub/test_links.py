"""What links of a folder lead to elsewhere is never published; links within it, and those of the Hub's cache, work."""

import hashlib
import shutil

import pytest

from hf_vaq.hub import CardOptions, HubError
from hf_vaq.hub.links import check_links
from hf_vaq.hub.publishing import CheckedTarget, Target, publish_folder
from hf_vaq.hub.staging import ModelSource, copy_records, stage_model

PRIVATE = "CANARY"


@pytest.fixture
def home(tmp_path):
    """A folder with something private, and what may lie in it by the names that are published."""
    home = tmp_path / "home"
    for name in ("key", "results.json", "evaluation/a.json", "oscillation/record.json", "figures/a.png"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(PRIVATE)
    return home


def link(path, target):
    """Put a link in the place of whatever is there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("packed/figures", "figures"),
        ("packed/figures/a.png", "key"),
        ("packed/onnx/deep/model.bin", "key"),
        ("packed/extra.safetensors", "key"),
        ("packed/model.safetensors", "key"),
        ("packed/config.json", "key"),
        ("packed/preprocessor_config.json", "key"),
        ("packed/results.json", "results.json"),
        ("results.json", "results.json"),
        ("recipe.yaml", "results.json"),
        ("evaluation", "evaluation"),
        ("evaluation/b.json", "evaluation/a.json"),
        ("oscillation", "oscillation"),
        ("trained/model.safetensors", "key"),
        ("packed/openvino", "nothing/is/here"),
    ],
)
def test_a_link_out_of_a_run_is_refused_with_its_name_and_what_it_leads_to(run_copy, home, place, target):
    place, target = run_copy / place, home / target
    place.parent.mkdir(parents=True, exist_ok=True)
    link(place, target)
    folder = home.parent / "staged"
    folder.mkdir()
    refused = rf"'{place}' is a link to '{target}', outside of '{run_copy}'"
    with pytest.raises(HubError, match=refused):
        stage_model(run_copy, folder, CardOptions())
    if place.relative_to(run_copy).parts[0] not in (
        "oscillation",
        "trained",
    ):  # of which figures are made, and no copies
        with pytest.raises(HubError, match=refused):
            copy_records(ModelSource.find(run_copy), folder)
    assert list(folder.iterdir()) == []


def test_a_model_on_its_own_may_not_link_to_its_neighbours(run_copy, tmp_path):
    """Which it may in a run."""
    alone = tmp_path / "alone"
    shutil.copytree(run_copy / "packed", alone / "model")
    shutil.copy(run_copy / "results.json", alone / "results.json")
    link(alone / "model" / "results.json", "../results.json")
    with pytest.raises(HubError, match="is a link to"):
        ModelSource.find(alone / "model").check_links()
    link(run_copy / "packed" / "results.json", "../results.json")
    ModelSource.find(run_copy / "packed").check_links()


def test_links_within_a_folder_are_followed_and_a_link_to_it_too(run_copy, tmp_path):
    packed = run_copy / "packed"
    (packed / "onnx").mkdir()
    (packed / "kept").mkdir()
    (packed / "kept" / "model.onnx").write_bytes(b"graph")
    link(packed / "onnx" / "model.onnx", "../kept/model.onnx")
    (packed / "model.safetensors").rename(packed / "weights")
    link(packed / "model.safetensors", "weights")
    (tmp_path / "shortcut").symlink_to(packed)
    staged = tmp_path / "staged"
    staged.mkdir()
    stage_model(tmp_path / "shortcut", staged, CardOptions())
    assert (staged / "onnx" / "model.onnx").read_bytes() == b"graph"
    assert (staged / "model.safetensors").read_bytes() == (packed / "weights").read_bytes()
    assert not any(path.is_symlink() for path in staged.rglob("*"))


def test_what_lies_behind_links_within_a_folder_is_looked_at_too(tmp_path, home):
    root = tmp_path / "root"
    (root / "behind").mkdir(parents=True)
    (root / "model").mkdir()
    (root / "model" / "figures").symlink_to("../behind")
    check_links([root / "model"], root)
    (root / "behind" / "key").symlink_to(home / "key")
    with pytest.raises(HubError, match=r"key' is a link to"):
        check_links([root / "model"], root)


def test_links_in_a_circle_are_refused_or_come_to_an_end(tmp_path):
    (tmp_path / "self").symlink_to(tmp_path)
    check_links([tmp_path], tmp_path)
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(HubError, match="leads nowhere"):
        check_links([tmp_path], tmp_path)


def in_cache(folder, cache):
    """The folder as the Hub's cache has it: links into blobs."""
    snapshot = cache / "models--me--animals" / "snapshots" / "0123abc"
    blobs = cache / "models--me--animals" / "blobs"
    blobs.mkdir(parents=True)
    for path in folder.rglob("*"):
        if path.is_file():
            blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
            shutil.copy(path, blob)
            place = snapshot / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            ups = "../" * (2 + len(place.relative_to(snapshot).parts) - 1)
            place.symlink_to(f"{ups}blobs/{blob.name}")
    return snapshot


def test_a_snapshot_of_the_cache_of_the_hub_is_published_like_any_folder(models, tmp_path, home):
    source = shutil.copytree(models.packed, tmp_path / "packed")
    (source / "figures").mkdir()
    (source / "figures" / "variation_weights.png").write_bytes(b"picture")
    snapshot = in_cache(source, tmp_path / "cache")
    staged = tmp_path / "staged"
    staged.mkdir()
    stage_model(snapshot, staged, CardOptions())
    assert (staged / "model.safetensors").read_bytes() == (models.packed / "model.safetensors").read_bytes()
    assert (staged / "figures" / "variation_weights.png").read_bytes() == b"picture"
    (snapshot / "onnx").mkdir()
    (snapshot / "onnx" / "model.onnx").symlink_to(home / "key")
    with pytest.raises(HubError, match="is a link to"):
        check_links([snapshot], snapshot)


@pytest.mark.parametrize("how", ["whole", "files", "extra"])
def test_nothing_is_sent_of_a_folder_with_a_link_out_of_it(tmp_path, home, how):
    folder, other = tmp_path / "folder", tmp_path / "other"
    for place in (folder, other):
        place.mkdir()
    (folder / "a.txt").symlink_to(home / "key")
    checked = CheckedTarget(Target("me/x"), False, None, False, frozenset(), False)
    options = {
        "whole": (folder, {}),
        "files": (folder, {"files": ["a.txt"]}),
        "extra": (other, {"extra": {"x": folder}}),
    }
    place, more = options[how]
    with pytest.raises(HubError, match=r"a\.txt' is a link to"):
        publish_folder(place, checked, **more)
