"""The blocks of docs/hub.md are run, against a Hub on the loopback."""

import re
import shlex
import shutil
from pathlib import Path

from helpers import IMAGE_SIZE, build, pictures
from transformers import ViTImageProcessor

from hf_vaq.soft_labels import label_dataset

DOCUMENT = Path(__file__).parents[2] / "docs" / "hub.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_blocks_of_the_document_run_one_after_the_other(client, hub, models, tmp_path):
    shutil.copytree(models.run, tmp_path / "outputs" / "digits" / "vit_w2a2")
    processor = ViTImageProcessor(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    images = pictures(["a", "b", "c"], 6)
    label_dataset(images, build(), tmp_path / "labels" / "digits", teacher_processor=processor, crops_per_image=2)
    client.run("import os; os.chdir(folder)", folder=str(tmp_path))
    for block in blocks("bash"):
        program, *words = shlex.split(block)
        assert program == "hf-vaq"
        # The user of the token, and not "me", owns the repositories.
        assert client.hf_vaq(*(word.replace("me/", "tester/") for word in words)) == 0, client.text
    for block in blocks("python"):
        client.run(block.replace('"me/', '"tester/'))
    assert (tmp_path / "to_be_published" / "README.md").is_file()
    assert len(hub.titles("tester/digits-w2a2")) == 2
    assert {"recipe.yaml", "results.json"} <= set(hub.files("tester/digits-w2a2"))
    assert hub.titles("tester/digits-labels", kind="datasets") == ["Upload soft labels"]
