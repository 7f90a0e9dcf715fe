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


def check_access(api: HfApi, options: PushArguments) -> str:
    """Asks the Hub who the user is and whether they may write, before any file is touched.

    Returns:
        The user's name.

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
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return InputError(f"{subject}: not found, or hidden from this token ({answer}); check the name and the token")
    if status == 401:
        return InputError(f"{subject}: the token isn't valid ({answer}); log in with `hf auth login`, or give --token")
    if status == 403:
        return InputError(
            f"{subject}: the token may not write there ({answer}); use a token with write access, or ask the owner"
        )
    if status == 409:
        return HubError(f"{subject}: in conflict with the repository's state ({answer}); if it is changing, {AGAIN}")
    if status == 412:
        return HubError(f"{subject}: someone else committed meanwhile, so nothing was changed ({answer}); {AGAIN}")
    if status == 429:
        return HubError(f"{subject}: too many requests ({answer}); wait some minutes, then {AGAIN}")
    if status in (413, 507):
        return HubError(
            f"{subject}: no room for it on the Hub ({answer}); check your storage at huggingface.co/settings/billing"
        )
    if status >= 500:
        return HubError(f"{subject}: the Hub failed again after retries ({answer}); later, {AGAIN}")
    return HubError(f"{subject}: the Hub refused the request ({answer}); check the options, then {AGAIN}")


def _root(error: BaseException) -> BaseException:
    """The first cause: the client wraps errors of its threads."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _summary(error: object) -> str:
    return first_line(error) or type(error).__name__
