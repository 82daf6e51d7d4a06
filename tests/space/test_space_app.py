"""The page of the demo: its arguments, what it does with an image, and, in a real browser, what it shows."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from space_helpers import SPACE, held_out, load_script, save_pair

pytest.importorskip("gradio", reason='the demo needs gradio: pip install "hf-vaq[demo]"')
app = load_script("app")
answers = load_script("answers")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SCREENSHOT = Path(__file__).parents[2] / "docs" / "images" / "demo.png"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return save_pair(tmp_path_factory.mktemp("models"))


def test_the_page_answers_an_image_and_is_empty_without_one(pair):
    sides = answers.load_sides(*pair)
    demo = app.build_demo(sides, answers.example_images(None, sides[0].labels))
    (respond,) = [function.fn for function in demo.fns.values() if function.api_name == "classify"]
    image = held_out(1).rows[0]["image"]
    first, first_facts, second, second_facts, comparison = respond(image)
    expected = answers.answer(sides, image)
    assert (first, second) == (expected[0].probabilities, expected[1].probabilities)
    assert "kB" in first_facts and "ms" in second_facts and "times as long" in comparison
    assert respond(None) == (None, "", None, "", "")


def test_the_environment_stands_in_for_arguments(monkeypatch):
    monkeypatch.setenv("VAQ_MODEL", "me/packed")
    monkeypatch.setenv("VAQ_FLOAT_MODEL", "me/float")
    arguments = app.parse_arguments([])
    assert (arguments.model, arguments.float_model) == ("me/packed", "me/float")
    assert app.parse_arguments(["--float", "other"]).float_model == "other"


def test_a_model_that_nobody_names_is_asked_for(monkeypatch, capsys):
    monkeypatch.delenv("VAQ_FLOAT_MODEL", raising=False)
    with pytest.raises(SystemExit):
        app.parse_arguments(["--model", "me/packed"])
    assert "no model: give --float, or set VAQ_FLOAT_MODEL" in capsys.readouterr().err


def test_a_model_that_is_not_there_ends_with_one_line(pair, tmp_path, capsys):
    assert app.main(["--model", str(tmp_path / "absent"), "--float", pair[0]]) == 1
    captured = capsys.readouterr().err
    assert captured.startswith("app.py: error: The model") and captured.count("\n") == 1


@pytest.fixture(scope="module")
def trained_pair(tmp_path_factory):
    """A run of the digits recipe: the one that HF_VAQ_DEMO_RUN names, or a short one."""
    run = os.environ.get("HF_VAQ_DEMO_RUN")
    if run is None:
        run = tmp_path_factory.mktemp("run") / "digits"
        command = ["hf_vaq", "train", "digits/vit_w2a2", "--output_dir", run, "--use_cpu", "true"]
        short = ["--float_num_train_epochs", 6, "--num_train_epochs", 3, "--disable_tqdm", "true"]
        subprocess.run([sys.executable, "-m", *map(str, command + short)], check=True, capture_output=True)
    return f"{run}/float", f"{run}/packed"


@pytest.fixture
def address(trained_pair):
    """The demo, started by its one command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, SPACE / "app.py", "--float", trained_pair[0], "--model", trained_pair[1]]
    environment = os.environ | {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SERVER_NAME": "127.0.0.1"}
    process = subprocess.Popen([*map(str, command), "--port", str(port)], env=environment)
    try:
        for _ in range(240):
            assert process.poll() is None, "the demo ended"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
def test_a_browser_uploads_a_digit_and_reads_both_answers(trained_pair, address, tmp_path):
    reason = "the browser test needs playwright (pip install playwright) and an installed Chromium or Chrome"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        pytest.skip(reason)
    image = held_out(20).rows[7]["image"]
    image.save(tmp_path / "digit.png")
    expected = answers.answer(answers.load_sides(*trained_pair), image)
    picture = tmp_path / "demo.png"
    with playwright.sync_playwright() as session:
        # Without a sandbox, which a container does not let it have; it opens nothing but our own page.
        browser = session.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 690})
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        page.set_input_files("input[type=file]", tmp_path / "digit.png")
        page.wait_for_selector("#comparison:has-text('times as long')", timeout=60_000)
        for element, said in zip(app.ELEMENTS, expected, strict=True):
            lines = page.inner_text(f"#{element}").split()
            shown = dict(zip(lines[-10::2], lines[-9::2], strict=True))
            best = dict(list(said.probabilities.items())[:5])
            assert shown.keys() == best.keys()
            for label, share in best.items():
                assert abs(float(shown[label].rstrip("%")) - 100 * share) <= 0.51
            assert "kB of weights" in page.inner_text(f"#{element}-facts")
        page.wait_for_timeout(1000)
        page.screenshot(path=picture)
        # One of the pictures to choose from is answered as well.
        before = page.inner_text("#packed")
        page.get_by_role("button").filter(has=page.locator("img")).nth(0).click()
        page.wait_for_function("before => document.querySelector('#packed').innerText !== before", arg=before)
        browser.close()
    assert not errors
    with Image.open(picture) as shot:
        assert shot.size == (1100, 690)
        if "HF_VAQ_DEMO_RUN" in os.environ:
            SCREENSHOT.parent.mkdir(parents=True, exist_ok=True)
            shot.convert("RGB").quantize(64).save(SCREENSHOT, optimize=True)
