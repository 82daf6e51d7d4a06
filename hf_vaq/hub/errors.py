"""Errors of the Hub in words that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

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
    if code is not None and code >= 500:
        return f"the Hub answered with an error of its own ({code}). {_AGAIN}"
    return f"{_first_line(error)}{server}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0] if lines else type(error).__name__}".rstrip(".") + "."
