"""What the demo says about an image, without the page around it."""

import pytest
import torch
from huggingface_hub import SpaceCard
from PIL import Image
from space_helpers import SPACE, held_out, load_script, save_pair
from transformers import AutoImageProcessor, AutoModelForImageClassification

answers = load_script("answers")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return save_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def sides(pair):
    return answers.load_sides(*pair)


def test_the_probabilities_are_those_of_the_evaluation(pair, sides):
    split = held_out(3)
    for row in range(3):
        image = split.rows[row]["image"]
        for name, said in zip(pair, answers.answer(sides, image), strict=True):
            model = AutoModelForImageClassification.from_pretrained(name).eval()
            images = split.evaluation_set(model.config.id2label, AutoImageProcessor.from_pretrained(name))
            with torch.inference_mode():
                expected = model(pixel_values=images[row]["pixel_values"][None]).logits[0].softmax(0)
            by_label = torch.tensor([said.probabilities[str(digit)] for digit in range(10)])
            torch.testing.assert_close(by_label, expected)
            assert said.label == str(int(expected.argmax()))
            assert list(said.probabilities.values()) == sorted(said.probabilities.values(), reverse=True)
            assert said.milliseconds > 0


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_of_every_mode_are_read_as_rgb(sides, mode):
    image = Image.new("RGB", (20, 30), (200, 10, 60)).convert(mode)
    expected = sides[0].pixel_values(image.convert("RGB"))
    assert torch.equal(sides[0].pixel_values(image), expected) and expected.shape == (1, 3, 16, 16)


def test_size_and_execution_stand_under_an_answer(pair, sides):
    said = answers.Answer({"1": 1.0}, 2.5)
    text = answers.facts(sides[1], said)
    assert f"{sides[1].size_bytes / 1000:,.1f} kB" in text and "2.50 ms" in text
    assert str(getattr(sides[1].model, "execution", "float32")) in text
    assert (sides[0].form, sides[1].form) == ("full precision", "W2A2, packed")


def test_the_comparison_is_of_the_packed_model_with_the_other(sides):
    said = [answers.Answer({"1": 0.6, "7": 0.4}, 4.0), answers.Answer({"7": 0.9, "1": 0.1}, 2.0)]
    text = answers.comparison(sides, said)
    assert text.startswith("The answers differ.") and "takes 0.50 times as long" in text
    assert f"1 / {sides[0].size_bytes / sides[1].size_bytes:.1f} of the space" in text
    assert answers.comparison(sides, [said[0], said[0]]).startswith("Both give the same answer.")


def test_classes_of_the_same_name_are_told_apart(pair, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(pair[0])
    model.config.id2label = {index: "crane" if index in (3, 5) else str(index) for index in range(10)}
    model.save_pretrained(tmp_path)
    AutoImageProcessor.from_pretrained(pair[0]).save_pretrained(tmp_path)
    assert answers.Side.load(str(tmp_path)).labels[3:6] == ["crane (3)", "4", "crane (5)"]


def test_models_of_different_tasks_are_refused(pair, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(pair[0])
    model.config.id2label = {index: f"animal {index}" for index in range(10)}
    model.save_pretrained(tmp_path)
    AutoImageProcessor.from_pretrained(pair[0]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="have different classes"):
        answers.load_sides(str(tmp_path), pair[1])


def test_a_model_of_digits_gets_a_held_out_picture_of_each_as_small_as_it_is(sides):
    paths = answers.example_images(None, sides[0].labels)
    assert [path.rsplit("/", 1)[-1] for path in paths] == [f"{digit}.png" for digit in range(10)]
    assert Image.open(paths[4]).size == (8, 8)
    assert answers.example_images(None, ["cat", "dog"]) == []


def test_examples_come_from_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"accepted: a folder with \.png"):
        answers.example_images(tmp_path, [])
    with pytest.raises(ValueError, match="examples is"):
        answers.example_images(tmp_path / "absent", [])
    Image.new("RGB", (3, 3)).save(tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("")
    assert answers.example_images(tmp_path, []) == [str(tmp_path / "b.png")]


def test_the_card_of_the_space_names_what_is_there():
    card = SpaceCard.load(SPACE / "README.md")
    assert card.data.sdk == "gradio" and (SPACE / card.data.app_file).is_file()
    # The Hub refuses a longer one.
    assert len(card.data.short_description) <= 60
