"""The Hub as this package talks to it: who the user is, what they may write, and what each failure means.

One idea: a wrong token or name is the user's to fix and becomes an `InputError`; everything else is the Hub's or the
network's and becomes a `HubError`, after which the same command continues.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from imagelm.hub.arguments import PushArguments
from imagelm.utils.errors import HubError, InputError
from imagelm.utils.text import first_line

AGAIN = "run the same command again; files that have arrived aren't sent twice"
TOKENS_PAGE = "https://huggingface.co/settings/tokens"
NO_ROOM = "no room for it on the Hub ({answer}); check your storage at huggingface.co/settings/billing"
REFUSALS = {  # by status code
    401: (InputError, "the token isn't valid ({answer}); log in with `hf auth login`, or give --token"),
    403: (InputError, "the token may not write there ({answer}); use a token with write access, or ask the owner"),
    404: (InputError, "not found, or hidden from this token ({answer}); check the name and the token"),
    409: (HubError, f"in conflict with the repository's state ({{answer}}); if it is changing, {AGAIN}"),
    412: (HubError, f"someone else committed meanwhile, so nothing was changed ({{answer}}); {AGAIN}"),
    413: (HubError, NO_ROOM),
    429: (HubError, f"too many requests ({{answer}}); wait some minutes, then {AGAIN}"),
    507: (HubError, NO_ROOM),
}
BROKEN = (HubError, f"the Hub failed again after retries ({{answer}}); later, {AGAIN}")  # any other code from 500
REFUSED = (HubError, f"the Hub refused the request ({{answer}}); check the options, then {AGAIN}")


def check_access(api: HfApi, options: PushArguments) -> str:
    """Asks the Hub whether the user may write, before any file is touched; returns the user's name.

    Raises:
        InputError: There is no token, or it doesn't allow this.
        HubError: The Hub can't be reached.
    """
    with hub_errors(api.endpoint):
        try:
            user = api.whoami()
        except LocalTokenNotFoundError as error:
            raise InputError(
                "no Hub token: log in with `hf auth login`, set HF_TOKEN, or give --token; create a token with write "
                f"access at {TOKENS_PAGE}"
            ) from error
    token = user.get("auth", {}).get("accessToken", {})
    token_name = repr(token.get("displayName", ""))
    if token.get("role") == "read":
        raise InputError(f"the token {token_name} may only read; log in with one that has write access")
    namespaces = {user["name"], *(organization["name"] for organization in user.get("orgs", []))}
    for kind, name in options.repositories.items():
        namespace = name.split("/")[0] if "/" in name else user["name"]
        if options.create_pr:  # anyone may propose a change
            continue
        if namespace not in namespaces:
            raise InputError(
                f"{kind} {name}: {user['name']} has no namespace {namespace!r}, only {', '.join(sorted(namespaces))}; "
                "check the spelling, or ask to join the organization"
            )
        if not _may_write(token, namespace, name):
            raise InputError(
                f"{kind} {name}: the fine-grained token {token_name} has no right to write there; grant it at "
                f"{TOKENS_PAGE}, or log in with another token"
            )
    return user["name"]


@contextmanager
def hub_errors(subject: str) -> Iterator[None]:
    """Turns every failure on the way to the Hub into a message that names the remedy.

    Args:
        subject: The repository or address in question; the message begins with it.
    """
    try:
        yield
    except (InputError, HubError):
        raise
    except OfflineModeIsEnabled as error:
        raise InputError(f"{subject}: HF_HUB_OFFLINE is set, so nothing is sent; unset it, or use --dry_run") from error
    except HFValidationError as error:
        raise InputError(f"{subject}: {_summary(error)}; check the name") from error
    except HfHubHTTPError as error:
        raise _refusal(subject, error) from error
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        cause = _root(error)
        if isinstance(cause, HfHubHTTPError):
            raise _refusal(subject, cause) from error
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            raise HubError(
                f"{subject}: the disk is full ({cause.filename or cause}); free some space, then {AGAIN}"
            ) from error
        raise HubError(f"{subject}: the connection to the Hub broke ({_summary(cause)}); {AGAIN}") from error


def _may_write(token: dict, namespace: str, repo_id: str) -> bool:
    """Whether a token may write to the repository; a fine-grained one lists namespaces and repositories."""
    if token.get("role") != "fineGrained" or "scoped" not in token.get("fineGrained", {}):
        return True
    return any(
        scope.get("entity", {}).get("name") in (namespace, repo_id) and "repo.write" in scope.get("permissions", ())
        for scope in token["fineGrained"]["scoped"]
    )


def _refusal(subject: str, error: HfHubHTTPError) -> Exception:
    """The error for a status code: wrong tokens and names are the user's to fix, the rest is the Hub's."""
    status = error.response.status_code if error.response is not None else 0
    answer = f"{status}: {_summary(error.server_message or error)}"
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"{subject}: the revision doesn't exist ({answer}); check --revision")
    status = 404 if isinstance(error, RepositoryNotFoundError) else status
    kind, text = REFUSALS.get(status, BROKEN if status >= 500 else REFUSED)
    return kind(f"{subject}: {text.format(answer=answer)}")


def _root(error: BaseException) -> BaseException:
    """The first cause: the client wraps errors of its threads."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _summary(error: object) -> str:
    return first_line(error) or type(error).__name__
