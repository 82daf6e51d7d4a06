"""Waiting as long as the Hub says, and no longer than makes sense."""

from email.utils import formatdate

import pytest
from huggingface_hub.errors import HfHubHTTPError

from hf_vaq.hub import errors


class Answer:
    request = None

    def __init__(self, status, **headers):
        self.status_code = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


@pytest.fixture
def waited(monkeypatch):
    """The seconds that were waited, which take no time; the clock stands at 1,000,000."""
    waited = []
    monkeypatch.setattr(errors.time, "sleep", waited.append)
    monkeypatch.setattr(errors.time, "time", lambda: 1_000_000.0)
    return waited


def failing(times, answer):
    """A call that fails so often, and then returns "done"."""
    left = [HfHubHTTPError("arranged", response=answer)] * times

    def call():
        if left:
            raise left.pop()
        return "done"

    return call


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after": "7"}, [7, 7]),
        ({"retry_after": "0"}, [0, 0]),
        ({"retry_after": formatdate(1_000_030, usegmt=True)}, [30, 30]),
        ({"retry_after": formatdate(999_000, usegmt=True)}, [0, 0]),
        ({"ratelimit": '"api";r=0;t=55'}, [55, 55]),
        ({"retry_after": "soon"}, [1, 2]),
        ({}, [1, 2]),
    ],
)
def test_the_stated_time_is_waited(waited, headers, seconds):
    assert errors.patiently(failing(2, Answer(429, **headers))) == "done"
    assert waited == seconds


@pytest.mark.parametrize(
    ("answer", "waits"), [(Answer(429, retry_after="601"), 0), (Answer(429), 5), (Answer(500), 0)]
)
def test_what_does_not_end_is_raised(waited, answer, waits):
    with pytest.raises(HfHubHTTPError):
        errors.patiently(failing(9, answer))
    assert len(waited) == waits
