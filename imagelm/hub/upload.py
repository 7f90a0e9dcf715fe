"""From a folder to one commit: who may write, what differs, and what to do when it fails.

One idea: a commit is computed from what stands on the Hub at that moment. A file that is there with the same content
isn't sent, so the same command again finishes what a broken connection left, and changes nothing when all is there.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from imagelm.errors import HubError, InputError
from imagelm.hub.content import CARD_FILE, Staged, is_ours
from imagelm.hub.options import PushOptions

AGAIN = "run the same command again; what has arrived isn't sent twice"


@dataclass
class Target:
    """A repository as it stands on the Hub.

    Attributes:
        exists: Whether it's there.
        has_revision: Whether the branch is.
        head: Its newest commit; None where there is none.
        files: Path → (size, git's SHA-1, and SHA-256 where it lies in large storage).
    """

    kind: str
    repo_id: str
    exists: bool = False
    has_revision: bool = False
    head: str | None = None
    files: dict[str, RepoFile] = field(default_factory=dict)


@dataclass
class Sent:
    """What a push did to one repository: its address, and counts of files and bytes."""

    url: str
    num_sent: int
    num_bytes: int
    num_deleted: int
    num_same: int


def check_access(api: HfApi, options: PushOptions) -> str:
    """Asks the Hub who this is and whether it may write, before any file is touched.

    Returns:
        The user's name.

    Raises:
        InputError: There is no token, or it may not do this.
        HubError: The Hub can't be reached.
    """
    with hub_errors(f"{api.endpoint}"):
        try:
            who = api.whoami()
        except LocalTokenNotFoundError as error:
            raise InputError(
                "no Hub token: log in with `hf auth login`, set HF_TOKEN, or give --token; one that may write is "
                "made at https://huggingface.co/settings/tokens"
            ) from error
    token = who.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        raise InputError(f"the token {token.get('displayName', '')!r} may only read; log in with one that may write")
    mine = {who["name"], *(org["name"] for org in who.get("orgs", []))}
    for kind, name in options.repositories.items():
        namespace = name.split("/")[0] if "/" in name else who["name"]
        if namespace not in mine:
            raise InputError(
                f"{kind} {name}: {who['name']} has no namespace {namespace!r}, only {', '.join(sorted(mine))}; "
                "check the spelling, or ask to join the organization"
            )
    return who["name"]


def look_at(api: HfApi, kind: str, repo_id: str, options: PushOptions) -> Target:
    """Reads what stands in a repository, and refuses what a push couldn't do there.

    Raises:
        InputError: The token may not write, a public repository should be private, or the tag is taken.
        HubError: The Hub can't be reached.
    """
    target = Target(kind, repo_id)
    with hub_errors(f"{kind} {repo_id}"):
        try:
            info = api.repo_info(repo_id, repo_type=kind)
        except RepositoryNotFoundError:
            return target
        target.exists = True
        if options.private and not info.private:
            raise InputError(
                f"{kind} {repo_id} is there and public; --private can't hide it: choose another name, "
                "or change it in its settings"
            )
        api.auth_check(repo_id, repo_type=kind, write=not options.create_pr)
        refs = api.list_repo_refs(repo_id, repo_type=kind)
        branch = options.revision or "main"
        heads = {ref.name: ref.target_commit for ref in refs.branches}
        target.head, target.has_revision = heads.get(branch), branch in heads
        if options.tag:
            _check_tag(target, options.tag, {ref.name for ref in refs.tags})
        base = target.head or heads.get("main")
        if base:
            tree = api.list_repo_tree(repo_id, recursive=True, revision=base, repo_type=kind)
            target.files = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    return target


def send(api: HfApi, staged: Staged, target: Target, options: PushOptions) -> Sent:
    """Makes the repository, where it isn't there, and commits what differs; all of it or nothing.

    Raises:
        InputError: The Hub refuses the token or the name.
        HubError: The connection broke, the Hub is busy, or someone else committed meanwhile.
    """
    kind, repo_id, what = staged.kind, target.repo_id, f"{staged.kind} {target.repo_id}"
    with hub_errors(what):
        if not target.exists:
            sdk = {"space_sdk": "gradio"} if kind == "space" else {}
            api.create_repo(repo_id, repo_type=kind, private=options.private or None, exist_ok=True, **sdk)
            target = look_at(api, kind, repo_id, options)
        if options.revision and not target.has_revision and not options.create_pr:
            api.create_branch(repo_id, branch=options.revision, repo_type=kind, exist_ok=True)
            target = look_at(api, kind, repo_id, options)
    changed = changed_files(staged, target)
    stale = [path for path in target.files if is_ours(kind, path) and path not in staged.files]
    operations = [CommitOperationAdd(path, str(file)) for path, file in changed.items()]
    operations += [CommitOperationDelete(path) for path in stale]
    url = f"{api.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
    commit = target.head
    if operations:
        try:
            with hub_errors(what):
                made = api.create_commit(
                    repo_id,
                    operations,
                    repo_type=kind,
                    revision=options.revision,
                    create_pr=options.create_pr,
                    parent_commit=target.head,
                    commit_message=options.commit_message or f"Push {staged.kind} with imagelm",
                )
                commit, url = made.oid, made.pr_url or url
        except HubError:
            # The commit may have been made and only its answer lost.
            commit = _head_if_complete(api, staged, options)
            if commit is None:
                raise
    if options.tag:
        with hub_errors(what):
            api.create_tag(repo_id, tag=options.tag, revision=commit, repo_type=kind, exist_ok=True)
    num_bytes = sum(file.stat().st_size for file in changed.values())
    return Sent(url, len(changed), num_bytes, len(stale), len(staged.files) - len(changed))


def changed_files(staged: Staged, target: Target) -> dict[str, Path]:
    """The files that aren't on the Hub with the same content."""
    return {path: file for path, file in staged.files.items() if not _is_there(file, target.files.get(path))}


def validate_cards(staged: list[Staged]) -> None:
    """Lets the Hub check the cards' metadata, which it knows best.

    Raises:
        InputError: It refuses one.
        HubError: The Hub can't be reached.
    """
    for one in staged:
        with hub_errors(f"{one.kind} {one.repo_id}"):
            try:
                ModelCard(one.files[CARD_FILE].read_text(encoding="utf-8")).validate(repo_type=one.kind)
            except ValueError as error:
                raise InputError(f"{one.kind} {one.repo_id}: the Hub refuses the card's metadata: {error}") from error


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


def _head_if_complete(api: HfApi, staged: Staged, options: PushOptions) -> str | None:
    """The newest commit where it holds just what was to be sent, else None."""
    if options.create_pr:
        return None
    try:
        target = look_at(api, staged.kind, staged.repo_id, options)
    except (HubError, InputError):
        return None
    stale = any(is_ours(staged.kind, path) and path not in staged.files for path in target.files)
    return None if stale or changed_files(staged, target) else target.head


def _check_tag(target: Target, tag: str, tags: set[str]) -> None:
    if tag in tags:
        raise InputError(
            f"{target.kind} {target.repo_id} has a tag {tag} already; choose another one: a tag that moves misleads "
            "whoever trusts it"
        )


def _is_there(file: Path, remote: RepoFile | None) -> bool:
    if remote is None or remote.size != file.stat().st_size:
        return False
    if remote.lfs is not None:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == remote.lfs.sha256
    digest = hashlib.sha1(b"blob %d\0" % remote.size, usedforsecurity=False)  # git's name for a content
    digest.update(file.read_bytes())
    return digest.hexdigest() == remote.blob_id


def _root(error: BaseException) -> BaseException:
    """The first cause: the client wraps what happened in a thread."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: object) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
