"""Errors of the Hub in words that say what to do."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import TypeVar

from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.utils import logging

logger = logging.get_logger(__name__)

Result = TypeVar("Result")
LONGEST_WAIT = 600.0
"""Seconds; the limits of the Hub are counted in periods of five minutes."""
_ATTEMPTS = 5
LOG_IN = "log in with 'hf auth login', set HF_TOKEN, or give --token (token=...)"


class HubError(ValueError):
    """Something could not be published; the message says why, and what to do."""


@contextmanager
def explained(repo_id: str, doing: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into a `HubError`.

    Args:
        repo_id: the repository.
        doing: what was being done, such as "uploading to".

    Raises:
        HubError: instead of an error of the Hub or of the network.
    """
    try:
        yield
    except HubError:
        raise
    except LocalTokenNotFoundError as error:
        raise HubError(f"there is no token for the Hub: {LOG_IN}.") from error
    except OfflineModeIsEnabled as error:
        raise HubError(f"{doing} {repo_id}: HF_HUB_OFFLINE is set, so the Hub is not asked.") from error
    except RevisionNotFoundError as error:
        raise HubError(f"{doing} {repo_id}: the revision does not exist there.") from error
    except RepositoryNotFoundError as error:
        raise HubError(
            f"{doing} {repo_id}: there is no such repository, or the token may not see it; {LOG_IN}."
        ) from error
    except HFValidationError as error:
        raise HubError(f"REPO_ID is {repo_id!r}; accepted: user/name or organization/name ({error}).") from error
    except HfHubHTTPError as error:
        raise HubError(f"{doing} {repo_id}: {_status(error)}") from error
    except (HTTPError, OSError) as error:  # a connection that is refused, is cut, or times out
        raise HubError(f"{doing} {repo_id}: {_first_line(error)} {_AGAIN}") from error


def patiently(call: Callable[[], Result]) -> Result:
    """Call something of the Hub; where it says that it allows no more requests now, call again when it allows them.

    huggingface_hub does so for files, and not for what is asked and said about them.

    Args:
        call: may be called again: the Hub has done nothing of a request that it answers with 429.

    Raises:
        HfHubHTTPError: another one, or if it says to wait longer than `LONGEST_WAIT` seconds, or says so again and
            again.
    """
    for attempt in itertools.count():
        try:
            return call()
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code != 429:
                raise
            wait = _stated_wait(error.response.headers)
            wait = 2.0**attempt if wait is None else wait
            if attempt == _ATTEMPTS or wait > LONGEST_WAIT:
                raise
            logger.warning("The Hub allows no more requests now: waiting %.0f s, as it says.", wait)
            time.sleep(wait)
    raise AssertionError("the loop above has no end")


def _stated_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer says to wait: `Retry-After` in seconds or as a date, or `RateLimit: ...;t=seconds`."""
    stated = headers.get("retry-after", "").strip()
    if stated.isdecimal():
        return float(stated)
    if stated:
        try:
            until = parsedate_to_datetime(stated)
        except ValueError:
            return None
        return max(0.0, until.timestamp() - time.time())
    limit = re.search(r";\s*t=(\d+)", headers.get("ratelimit", ""))
    return float(limit[1]) if limit else None


_AGAIN = "Run the same command again: it goes on where it stopped, and nothing is published half."


def _status(error: HfHubHTTPError) -> str:
    code = None if error.response is None else error.response.status_code
    server = f" ({error.server_message})" if getattr(error, "server_message", None) else ""
    if code == 401:
        return f"the Hub does not know the token: {LOG_IN}."
    if code == 403:
        return (
            f"the token has no permission to write there{server}. Use a token with write access, an id in your own"
            " name space, or --create_pr to propose the change."
        )
    if code in (409, 412):
        return f"it was changed by somebody else meanwhile, or a name is taken{server}. {_AGAIN}"
    if code == 429:
        wait = _stated_wait(error.response.headers)
        said = "later" if wait is None else f"in {wait:.0f} seconds"
        return f"the Hub allows no more requests of this token or address now (429){server}. Try again {said}."
    if code is not None and code >= 500:
        return f"the Hub answered with an error of its own ({code}). {_AGAIN}"
    return f"{_first_line(error)}{server}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0] if lines else type(error).__name__}".rstrip(".") + "."
