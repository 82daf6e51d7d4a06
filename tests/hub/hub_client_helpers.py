"""Clients of the loopback Hub: processes of their own, because huggingface_hub reads its settings when imported."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

WORKER = """
import contextlib, io, json, os, sys
os.environ["PYTHONWARNINGS"] = "ignore"
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
exec(sys.argv[1], {})
for line in sys.stdin:
    order = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if order["token"] is not None:
        os.environ["HF_TOKEN"] = order["token"]
    names, text = dict(order["names"]), io.StringIO()
    answer = {"value": None, "error": None}
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            exec(order["code"], names)
        answer["value"] = names.get("value")
    except BaseException as error:
        answer["error"] = [type(error).__name__, str(error)]
    answers.write(json.dumps(answer | {"text": text.getvalue()}) + "\\n")
    answers.flush()
"""


class ClientError(Exception):
    """What the code in the client raised: its type's name and its message."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


def environment(endpoint: str, home: Path, **more: str) -> dict[str, str]:
    """The environment of a client, with nothing of this user's own settings of the Hub."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS"))
    }
    return kept | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        **more,
    }


class Client:
    """A Python process that runs one piece of code after another, each with names of its own.

    Args:
        variables: its environment.
        preparation: code that it runs at its start.
    """

    def __init__(self, variables: dict[str, str], preparation: str = "import hf_vaq"):
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, preparation],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=variables,
        )
        self.text = ""

    def run(self, code: str, token: str | None = "hf_writer", **names: Any) -> Any:
        """Run `code` with these names and return what it calls `value`; what it printed is then in `text`.

        Raises:
            ClientError: it raised.
        """
        order = {"code": code, "token": token, "names": names}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the client has died"
        answer = json.loads(line)
        self.text = answer["text"]
        if answer["error"] is not None:
            raise ClientError(*answer["error"])
        return answer["value"]

    def hf_vaq(self, *words: str, token: str | None = "hf_writer") -> int:
        """Run a command of hf-vaq and return its exit code; what it printed is then in `text`."""
        return self.run("from hf_vaq.cli import main; value = main(words)", token, words=list(map(str, words)))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)
