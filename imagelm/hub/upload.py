"""From a folder to one commit: what stands on the Hub, what differs, and that alone is sent.

One idea: a commit is computed from what stands on the Hub at that moment. A file that is there with the same content
isn't sent, so the same command again finishes what a broken connection left, and changes nothing when all is there.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from imagelm.hub.arguments import PushArguments
from imagelm.hub.client import hub_errors
from imagelm.hub.staged import CARD_FILE, Staged, is_ours
from imagelm.utils.errors import HubError, InputError


@dataclass
class Target:
    """A repository as it stands on the Hub.

    Attributes:
        exists: Whether it's there.
        has_revision: Whether the branch is.
        head: Its newest commit; None where there is none.
        files: Path → its size, git's SHA-1, and SHA-256 where it lies in large storage.
        tags: Tag → its commit.
    """

    kind: str
    repo_id: str
    exists: bool = False
    has_revision: bool = False
    head: str | None = None
    files: dict[str, RepoFile] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class Sent:
    """What a push did to one repository: its address, and counts of files and bytes."""

    url: str
    num_sent: int
    num_bytes: int
    num_deleted: int
    num_same: int


def look_at(api: HfApi, kind: str, repo_id: str, options: PushArguments) -> Target:
    """Reads what stands in a repository, and refuses what a push couldn't do there.

    Raises:
        InputError: The token may not write, a public repository should be private, or a pull request has no repository.
        HubError: The Hub can't be reached.
    """
    target = Target(kind, repo_id)
    with hub_errors(f"{kind} {repo_id}"):
        try:
            info = api.repo_info(repo_id, repo_type=kind)
        except RepositoryNotFoundError as error:
            if options.create_pr:
                raise InputError(
                    f"{kind} {repo_id}: not there, or hidden from this token; a pull request needs a repository: "
                    "leave out --create_pr to make it"
                ) from error
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
        if options.create_pr and options.revision and not target.has_revision:
            raise InputError(f"{kind} {repo_id} has no branch {branch} to open a pull request on; check --revision")
        target.tags = {ref.name: ref.target_commit for ref in refs.tags}
        if base := target.head or heads.get("main"):
            target.files = _files(api, kind, repo_id, base)
    return target


def check_tag(staged: Staged, target: Target, tag: str | None) -> None:
    """Refuses a tag that stands on anything but what would be sent.

    Raises:
        InputError: It does; a tag that moves misleads whoever trusts it.
    """
    if tag not in target.tags:
        return
    if target.tags[tag] != target.head or changed_files(staged, target) or _stale(staged, target):
        raise InputError(
            f"{target.kind} {target.repo_id} has a tag {tag} already; choose another one: a tag that moves misleads "
            "whoever trusts it"
        )


def send(api: HfApi, staged: Staged, target: Target, options: PushArguments) -> Sent:
    """Makes the repository, where it isn't there, and commits what differs; all of it or nothing.

    Raises:
        InputError: The Hub refuses the token or the name.
        HubError: The connection broke, the Hub is busy, or someone else committed meanwhile.
    """
    kind, repo_id, what = staged.kind, target.repo_id, f"{staged.kind} {target.repo_id}"
    with hub_errors(what):
        target = _made_ready(api, target, options)
    changed, stale = changed_files(staged, target), _stale(staged, target)
    url = f"{api.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
    commit = target.head
    if changed or stale:
        if options.create_pr and (request := _open_request(api, staged)):
            return Sent(request, 0, 0, 0, len(staged.files))
        operations = [CommitOperationAdd(path, str(file)) for path, file in changed.items()]
        operations += [CommitOperationDelete(path) for path in stale]
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
    if options.tag and target.tags.get(options.tag) != commit:
        with hub_errors(what):
            api.create_tag(repo_id, tag=options.tag, revision=commit, repo_type=kind)
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


def _made_ready(api: HfApi, target: Target, options: PushArguments) -> Target:
    """The repository with its branch, made where it isn't there."""
    kind, repo_id = target.kind, target.repo_id
    if not target.exists:
        sdk = {"space_sdk": "gradio"} if kind == "space" else {}
        api.create_repo(repo_id, repo_type=kind, private=options.private or None, exist_ok=True, **sdk)
        target = look_at(api, kind, repo_id, options)
    if options.revision and not target.has_revision and not options.create_pr:
        api.create_branch(repo_id, branch=options.revision, repo_type=kind, exist_ok=True)
        target = look_at(api, kind, repo_id, options)
    return target


def _head_if_complete(api: HfApi, staged: Staged, options: PushArguments) -> str | None:
    """The newest commit where it holds just what was to be sent, else None."""
    if options.create_pr:
        return None
    try:
        target = look_at(api, staged.kind, staged.repo_id, options)
    except (HubError, InputError):
        return None
    return None if _stale(staged, target) or changed_files(staged, target) else target.head


def _open_request(api: HfApi, staged: Staged) -> str | None:
    """The address of an open pull request of this user that holds just what would be sent, else None."""
    kind, repo_id = staged.kind, staged.repo_id
    which = {"discussion_type": "pull_request", "discussion_status": "open", "author": api.whoami()["name"]}
    with hub_errors(f"{kind} {repo_id}"):
        for request in api.get_repo_discussions(repo_id, repo_type=kind, **which):
            there = Target(kind, repo_id, files=_files(api, kind, repo_id, request.git_reference))
            if not changed_files(staged, there) and not _stale(staged, there):
                return request.url
    return None


def _files(api: HfApi, kind: str, repo_id: str, revision: str) -> dict[str, RepoFile]:
    tree = api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=kind)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _stale(staged: Staged, target: Target) -> list[str]:
    """What an earlier push left there, and this one doesn't write."""
    return [path for path in target.files if is_ours(staged.kind, path) and path not in staged.files]


def _is_there(file: Path, remote: RepoFile | None) -> bool:
    if remote is None or remote.size != file.stat().st_size:
        return False
    if remote.lfs is not None:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == remote.lfs.sha256
    digest = hashlib.sha1(b"blob %d\0" % remote.size, usedforsecurity=False)  # git's name for a content
    digest.update(file.read_bytes())
    return digest.hexdigest() == remote.blob_id
