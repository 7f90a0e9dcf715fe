"""What went wrong on the way to the Hub, as a message that says what to do.

One idea: wrong tokens and names are the user's to mend and end as an `InputError`; the rest is the Hub's or the
network's, and the same command goes on later.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from imagelm.utils.errors import HubError, InputError

AGAIN = "run the same command again; what has arrived isn't sent twice"


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turns whatever goes wrong on the way to the Hub into a message that says what to do.

    Args:
        what: What was worked on, to begin the message.
    """
    try:
        yield
    except (InputError, HubError):
        raise
    except OfflineModeIsEnabled as error:
        raise InputError(
            f"{what}: HF_HUB_OFFLINE is set, so nothing can be sent; unset it, or use --dry_run"
        ) from error
    except HFValidationError as error:
        raise InputError(f"{what}: {_first_line(error)}; check the name") from error
    except HfHubHTTPError as error:
        raise _refusal(what, error) from error
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        cause = _root(error)
        if isinstance(cause, HfHubHTTPError):
            raise _refusal(what, cause) from error
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            raise HubError(
                f"{what}: the disk is full ({cause.filename or cause}); free some space, then {AGAIN}"
            ) from error
        raise HubError(f"{what}: the connection to the Hub broke ({_first_line(cause)}); {AGAIN}") from error


def _refusal(what: str, error: HfHubHTTPError) -> Exception:
    """What a status code means here. Wrong tokens and names are the user's to mend, the rest is the Hub's."""
    status = error.response.status_code if error.response is not None else 0
    said = f"{status}: {_first_line(error.server_message or error)}"
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"{what}: there is no such revision ({said}); check --revision")
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return InputError(f"{what}: not found, or hidden from this token ({said}); check the name and the token")
    if status == 401:
        return InputError(f"{what}: the token isn't valid ({said}); log in with `hf auth login`, or give --token")
    if status == 403:
        return InputError(
            f"{what}: the token may not write there ({said}); make one with the right to write, or ask the owner"
        )
    if status == 409:
        return HubError(f"{what}: in conflict with what is there ({said}); if it is being changed, {AGAIN}")
    if status == 412:
        return HubError(f"{what}: someone else committed meanwhile, so nothing was changed ({said}); {AGAIN}")
    if status == 429:
        return HubError(f"{what}: too many requests ({said}); wait some minutes, then {AGAIN}")
    if status in (413, 507):
        return HubError(
            f"{what}: no room for it on the Hub ({said}); see your storage at huggingface.co/settings/billing"
        )
    if status >= 500:
        return HubError(f"{what}: the Hub failed also when asked again ({said}); later {AGAIN}")
    return HubError(f"{what}: the Hub refuses ({said})")


def _root(error: BaseException) -> BaseException:
    """The first cause: the client wraps what happened in a thread."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
