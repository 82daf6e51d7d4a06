"""A headless browser, where there is one."""

import re
import shutil
import subprocess

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,1000",
)


@pytest.fixture
def browse(tmp_path):
    """A function that opens a page, runs a script in it, and returns what the script returned as text."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"no browser on this machine: {', '.join(BROWSERS)}")

    def open_page(path, script, *options):
        page = tmp_path / "page.html"
        probe = f'<script>document.title = "answer: " + (() => {{ {script} }})();</script></body>'
        page.write_text(path.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
        command = [browser, *OPTIONS, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        return re.search(r"<title>answer: (.*?)</title>", answer, re.DOTALL)[1]

    return open_page
