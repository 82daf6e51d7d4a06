"""Published models are loaded from a Hub on the loopback: with this package, without it, and without the network."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_client_helpers import Client, ClientError, environment
from PIL import Image

REPO = "tester/loadable"
LOGITS = """
import sys, torch
from transformers import {auto_class}
model = {auto_class}.from_pretrained(repo, **options)
{execution}
with torch.no_grad():
    value = model(pixel_values=torch.tensor(pixels)).logits.tolist()
"""
SIMULATION = "from hf_vaq.inference import set_execution; set_execution(model, 'simulation')"


@pytest.fixture(scope="module")
def published(client, hub, models) -> str:
    """The id of a published model."""
    assert client.hf_vaq("push", models.packed, REPO) == 0, client.text
    return REPO


@pytest.fixture(scope="module")
def foreign(hub, tmp_path_factory) -> Client:
    """A process in which hf_vaq cannot be imported."""
    variables = environment(hub.endpoint, tmp_path_factory.mktemp("foreign"))
    client = Client(variables, "import sys; sys.modules['hf_vaq'] = None; import transformers")
    yield client
    client.close()


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "picture.png"
    Image.fromarray(np.arange(40 * 30 * 3, dtype=np.uint8).reshape(40, 30, 3)).save(path)
    return path


def logits(client: Client, repo: str, pixels, execution: str = SIMULATION, **options) -> np.ndarray:
    code = LOGITS.format(auto_class="AutoModelForImageClassification", execution=execution)
    return np.array(client.run(code, repo=repo, pixels=pixels, options=options))


@pytest.fixture(scope="module")
def pixels() -> list:
    from helpers import images

    return images().tolist()


def test_loading_by_id_gives_the_logits_of_the_packed_model(client, published, models, pixels):
    np.testing.assert_array_equal(logits(client, published, pixels), models.logits.numpy())
    np.testing.assert_array_equal(
        logits(client, published, pixels, device_map="cpu", dtype="float32"), models.logits.numpy()
    )


def test_pipeline_and_bare_model_load_by_id(client, published, picture):
    code = """
from transformers import AutoModel, pipeline
answers = pipeline("image-classification", model=repo)(picture)
bare = AutoModel.from_pretrained(repo, dtype="bfloat16")
value = [sorted(answer["label"] for answer in answers), type(bare).__name__, str(bare.dtype)]
"""
    assert client.run(code, repo=published, picture=str(picture)) == [
        ["cat", "dog", "fish"],
        "ViTModel",
        "torch.bfloat16",
    ]


def test_a_revision_is_loaded_and_one_that_does_not_exist_is_refused(client, hub, models, published, pixels):
    assert client.hf_vaq("push", models.packed, published, "--revision", "first", "--tag", "x") == 0, client.text
    np.testing.assert_array_equal(logits(client, published, pixels, revision="first"), models.logits.numpy())
    with pytest.raises(ClientError, match="nonsense"):
        logits(client, published, pixels, revision="nonsense")
    code = "from hf_vaq.job.models import load_model; load_model(repo, revision='nonsense')"
    with pytest.raises(ClientError, match="cannot be loaded") as caught:
        client.run(code, repo=published)
    assert caught.value.kind == "ValueError"


def test_without_the_import_loading_stops_and_says_what_is_missing(foreign, published):
    for loader in (
        "AutoModelForImageClassification.from_pretrained",
        "ViTForImageClassification.from_pretrained",
        "AutoModel.from_pretrained",
    ):
        with pytest.raises(ClientError, match="needs 'import hf_vaq' \\(pip install hf-vaq\\)"):
            foreign.run(f"import transformers; transformers.{loader}(repo)", repo=published)
    with pytest.raises(ClientError, match="needs 'import hf_vaq'"):
        foreign.run("from transformers import pipeline; pipeline('image-classification', model=repo)", repo=published)


def test_trusted_code_loads_without_the_package_with_the_same_logits(foreign, published, models, pixels, picture):
    """After the test above in the same process: this one registers the format."""
    found = logits(
        foreign, published, pixels, execution="assert sys.modules['hf_vaq'] is None", trust_remote_code=True
    )
    np.testing.assert_array_equal(found, models.logits.numpy())
    code = """
from transformers import AutoModel, pipeline
answers = pipeline("image-classification", model=repo, trust_remote_code=True)(picture)
bare = AutoModel.from_pretrained(repo, trust_remote_code=True)
value = [sorted(answer["label"] for answer in answers), type(bare).__name__]
"""
    assert foreign.run(code, repo=published, picture=str(picture)) == [["cat", "dog", "fish"], "ViTModel"]


def test_the_cache_is_enough_once_a_model_was_loaded(hub, published, models, pixels, client, tmp_path_factory):
    home = tmp_path_factory.mktemp("offline")
    online = "from huggingface_hub import snapshot_download; value = snapshot_download(repo, cache_dir=cache)"
    client.run(online, repo=published, cache=str(home / "hub"))
    requests = len(hub.requests)
    offline = Client(environment(hub.endpoint, home, HF_HUB_OFFLINE="1"))
    try:
        np.testing.assert_array_equal(logits(offline, published, pixels), models.logits.numpy())
        assert offline.hf_vaq("push", models.packed, published) == 1
        assert "HF_HUB_OFFLINE is set" in offline.text
    finally:
        offline.close()
    assert len(hub.requests) == requests


def test_the_hf_command_downloads_and_uploads_what_was_published(hub, published, models, tmp_path):
    hf = Path(sys.executable).with_name("hf")
    variables = environment(hub.endpoint, tmp_path / "home", HF_TOKEN="hf_writer")
    folder = tmp_path / "downloaded"
    for words in (
        ["download", published, "--local-dir", folder],
        ["upload", "tester/copied", folder, ".", "--exclude", ".cache/*"],
    ):
        done = subprocess.run([hf, *words], env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert (folder / "model.safetensors").read_bytes() == (models.packed / "model.safetensors").read_bytes()
    assert hub.files("tester/copied") == hub.files(published)
    assert not hub.unknown
