"""Sends a staged folder as one commit that contains only what differs from the repository.

One idea: the commit is computed from the repository's present state. A file that is there with the same content isn't
sent, so running the same command again completes an interrupted push, and changes nothing after a complete one.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.repocard import REGEX_YAML_BLOCK, metadata_load
from yaml import YAMLError

from imagelm.hub.arguments import PushArguments
from imagelm.hub.client import hub_errors
from imagelm.hub.staged import CARD_FILE, MODEL_ID_FILE, OUR_TAG, Staged, is_ours
from imagelm.utils.errors import HubError, InputError

# The Hub writes a card itself when a repository is created: the license alone, or a Space's settings and this line.
HUB_LICENSE_KEYS = {"license", "license_name", "license_link"}
HUB_SPACE_LINE = re.compile(
    r"Check out the configuration reference at https://huggingface\.co/docs/hub/spaces-config\S*"
)


@dataclass
class Target:
    """The present state of a repository on the Hub."""

    kind: str
    repo_id: str
    exists: bool = False
    head: str | None = None  # newest commit of the branch; None if there is no such branch
    files: dict[str, RepoFile] = field(default_factory=dict)  # by path: size, SHA-1 of git, SHA-256 of large files
    tags: dict[str, str] = field(default_factory=dict)  # tag → its commit


@dataclass
class Sent:
    """The result of a push to one repository: its address, and counts of files and bytes."""

    url: str
    num_sent: int
    num_bytes: int
    num_deleted: int
    num_same: int


def look_at(api: HfApi, kind: str, repo_id: str, options: PushArguments) -> Target:
    """Reads the state of a repository, and refuses a push that couldn't succeed there.

    Raises:
        InputError: The token may not write, a public repository can't become private, or a pull request has no
            repository or branch.
        HubError: The Hub can't be reached.
    """
    target = Target(kind, repo_id)
    with hub_errors(f"{kind} {repo_id}"):
        try:
            info = api.repo_info(repo_id, repo_type=kind)
        except RepositoryNotFoundError as error:
            if options.create_pr:
                raise InputError(
                    f"{kind} {repo_id}: not found, or hidden from this token; a pull request needs a repository: "
                    "remove --create_pr to create it"
                ) from error
            return target
        target.exists = True
        if options.private and not info.private:
            raise InputError(
                f"{kind} {repo_id} exists and is public; --private can't hide it: choose another name, "
                "or change its settings on the Hub"
            )
        api.auth_check(repo_id, repo_type=kind, write=not options.create_pr)
        refs = api.list_repo_refs(repo_id, repo_type=kind)
        branch = options.revision or "main"
        heads = {ref.name: ref.target_commit for ref in refs.branches}
        target.head = heads.get(branch)
        if options.create_pr and options.revision and target.head is None:
            raise InputError(f"{kind} {repo_id} has no branch {branch} to open a pull request on; check --revision")
        target.tags = {ref.name: ref.target_commit for ref in refs.tags}
        if base := target.head or heads.get("main"):
            target.files = _files(api, kind, repo_id, base)
    return target


def check_tag(staged: Staged, target: Target, tag: str | None) -> None:
    """Refuses a tag that exists already with other content.

    Raises:
        InputError: It does; moving it would mislead users who rely on it.
    """
    if tag not in target.tags:
        return
    if target.tags[tag] != target.head or changed_files(staged, target) or _stale(staged, target):
        raise InputError(
            f"{target.kind} {target.repo_id} has a tag {tag} already, with other content; choose another tag: "
            "moving one would mislead users who rely on it"
        )


def check_owner(api: HfApi, target: Target, options: PushArguments) -> None:
    """Refuses to replace or delete files of a repository that no push of ours made.

    A repository is ours if its card has our tag.

    Raises:
        InputError: It isn't ours, and holds files of the names that a push writes.
        HubError: The Hub can't be reached.
    """
    files = [path for path in target.files if is_ours(target.kind, path)]
    if options.replace_foreign_files or not files or _has_our_card(api, target):
        return
    more = f" and {len(files) - 5} more" if len(files) > 5 else ""
    raise InputError(
        f"{target.kind} {target.repo_id} isn't the work of an earlier push: its card lacks the tag {OUR_TAG}, and this "
        f"push would replace or delete {', '.join(files[:5])}{more}; choose another name, or give imagelm push "
        "--replace_foreign_files"
    )


def send(api: HfApi, staged: Staged, target: Target, options: PushArguments) -> Sent:
    """Creates the repository if needed, and commits what differs; all of it or nothing.

    Raises:
        InputError: The Hub refuses the token or the name.
        HubError: The connection broke, the Hub is busy, or someone else committed meanwhile.
    """
    kind, repo_id, subject = staged.kind, target.repo_id, f"{staged.kind} {target.repo_id}"
    with hub_errors(subject):
        target = _ready(api, target, options)
    changed, stale = changed_files(staged, target), _stale(staged, target)
    url = f"{api.endpoint}/{'' if kind == 'model' else kind + 's/'}{repo_id}"
    commit = target.head
    if changed or stale:
        if options.create_pr and (request := _open_request(api, staged)):
            return Sent(request, 0, 0, 0, len(staged.files))
        additions = [CommitOperationAdd(path, str(file)) for path, file in changed.items()]
        deletions = [CommitOperationDelete(path) for path in stale]
        try:
            with hub_errors(subject):
                made = api.create_commit(
                    repo_id,
                    [*additions, *deletions],
                    repo_type=kind,
                    revision=options.revision,
                    create_pr=options.create_pr,
                    parent_commit=target.head,
                    commit_message=options.commit_message or f"Push {staged.kind} with imagelm",
                )
                commit, url = made.oid, made.pr_url or url
        except HubError:
            # The commit may have succeeded and only its answer been lost.
            commit = _head_if_complete(api, staged, options)
            if commit is None:
                raise
    if options.tag and target.tags.get(options.tag) != commit:
        with hub_errors(subject):
            api.create_tag(repo_id, tag=options.tag, revision=commit, repo_type=kind)
    num_bytes = sum(file.stat().st_size for file in changed.values())
    return Sent(url, len(changed), num_bytes, len(stale), len(staged.files) - len(changed))


def changed_files(staged: Staged, target: Target) -> dict[str, Path]:
    """The files that the repository lacks or holds with other content."""
    return {path: file for path, file in staged.files.items() if not _is_there(file, target.files.get(path))}


def validate_cards(staged: list[Staged]) -> None:
    """Lets the Hub check the cards' metadata.

    Raises:
        InputError: It refuses a card.
        HubError: The Hub can't be reached.
    """
    for one in staged:
        with hub_errors(f"{one.kind} {one.repo_id}"):
            try:
                ModelCard(one.files[CARD_FILE].read_text(encoding="utf-8")).validate(repo_type=one.kind)
            except ValueError as error:
                raise InputError(f"{one.kind} {one.repo_id}: the Hub refuses the card's metadata: {error}") from error


def _has_our_card(api: HfApi, target: Target) -> bool:
    """Whether the card has our tag, or is the only file and the one that the Hub itself wrote."""
    if target.kind == "space" and MODEL_ID_FILE in target.files:  # version 0.1.0 wrote no tag into a Space
        return True
    if CARD_FILE not in target.files:
        return False
    with tempfile.TemporaryDirectory(prefix="imagelm-card-") as home, hub_errors(f"{target.kind} {target.repo_id}"):
        revision = target.head or "main"
        file = Path(
            api.hf_hub_download(target.repo_id, CARD_FILE, repo_type=target.kind, revision=revision, local_dir=home)
        )
        text = file.read_text(encoding="utf-8", errors="replace")
        try:
            metadata = metadata_load(file) or {}
        except (ValueError, YAMLError):  # not UTF-8, not YAML
            return False
    tags = metadata.get("tags")
    if isinstance(tags, list) and OUR_TAG in tags:
        return True
    body = HUB_SPACE_LINE.sub("", REGEX_YAML_BLOCK.sub("", text))
    is_alone = not target.files.keys() - {CARD_FILE, ".gitattributes"}
    return is_alone and not body.strip() and (target.kind == "space" or metadata.keys() <= HUB_LICENSE_KEYS)


def _ready(api: HfApi, target: Target, options: PushArguments) -> Target:
    """Creates the repository and its branch if needed."""
    kind, repo_id = target.kind, target.repo_id
    if not target.exists:
        sdk = options.space_sdk if kind == "space" else None
        api.create_repo(repo_id, repo_type=kind, private=options.private or None, exist_ok=True, space_sdk=sdk)
        target = look_at(api, kind, repo_id, options)
    if options.revision and target.head is None and not options.create_pr:
        api.create_branch(repo_id, branch=options.revision, repo_type=kind, exist_ok=True)
        target = look_at(api, kind, repo_id, options)
    return target


def _head_if_complete(api: HfApi, staged: Staged, options: PushArguments) -> str | None:
    """The newest commit if it contains exactly the staged files, else None."""
    if options.create_pr:
        return None
    try:
        target = look_at(api, staged.kind, staged.repo_id, options)
    except (HubError, InputError):
        return None
    return None if _stale(staged, target) or changed_files(staged, target) else target.head


def _open_request(api: HfApi, staged: Staged) -> str | None:
    """The address of this user's open pull request that contains exactly the staged files, else None."""
    kind, repo_id, user = staged.kind, staged.repo_id, api.whoami()["name"]
    with hub_errors(f"{kind} {repo_id}"):
        requests = api.get_repo_discussions(
            repo_id, repo_type=kind, discussion_type="pull_request", discussion_status="open", author=user
        )
        for request in requests:
            state = Target(kind, repo_id, files=_files(api, kind, repo_id, f"refs/pr/{request.num}"))
            if not changed_files(staged, state) and not _stale(staged, state):
                return request.url
    return None


def _files(api: HfApi, kind: str, repo_id: str, revision: str) -> dict[str, RepoFile]:
    tree = api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=kind)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _stale(staged: Staged, target: Target) -> list[str]:
    """The files of an earlier push that this one doesn't write."""
    return [path for path in target.files if is_ours(staged.kind, path) and path not in staged.files]


def _is_there(file: Path, remote: RepoFile | None) -> bool:
    if remote is None or remote.size != file.stat().st_size:
        return False
    if remote.lfs is not None:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == remote.lfs.sha256
    digest = hashlib.sha1(b"blob %d\0" % remote.size, usedforsecurity=False)  # git's name for the content
    digest.update(file.read_bytes())
    return digest.hexdigest() == remote.blob_id
