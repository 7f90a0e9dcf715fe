"""Applies the operations of a commit to the files of its parent: all of them or none."""

from __future__ import annotations

import base64
import binascii
import json

from testing.local_hub import discussions
from testing.local_hub.store import LARGEST_REGULAR, Commit, Entry, HubError, Repo, now


def parse(body: bytes) -> tuple[dict, list[tuple[str, dict]]]:
    """The header and the operations of an NDJSON commit body."""
    header, operations = None, []
    for line in body.splitlines():
        try:
            item = json.loads(line)
            key, value = item["key"], item["value"]
        except (ValueError, TypeError, KeyError) as error:
            raise HubError(400, f"Malformed line in the commit: {line[:80]!r}") from error
        if key == "header":
            header = value
        else:
            operations.append((key, value))
    if not header or not header.get("summary"):
        raise HubError(400, '"summary" is required in the header of a commit')
    return header, operations


def apply(repo: Repo, files: dict[str, Entry], operations: list[tuple[str, dict]]) -> dict[str, Entry]:
    """The files after the operations. Contents of regular files are written; no ref changes."""
    files = dict(files)
    for key, value in operations:
        path = checked_path(value["path"])
        if key == "file":
            files[path] = repo.put_blob(_regular_content(path, value))
        elif key == "lfsFile":
            files[path] = _large_entry(repo, path, value)
        elif key == "deletedFile":
            if path not in files:
                raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            del files[path]
        elif key == "deletedFolder":
            inside = [name for name in files if name.startswith(path.rstrip("/") + "/")]
            if not inside:
                raise HubError(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound")
            for name in inside:
                del files[name]
        elif key == "copyFile":
            source = repo.commit(value["srcRevision"]).files if value.get("srcRevision") else files
            if value["srcPath"] not in source:
                raise HubError(404, f"No such file to copy: {value['srcPath']}", "EntryNotFound")
            files[path] = source[value["srcPath"]]
        else:
            raise HubError(400, f"Unknown operation {key!r}")
    folders = {name[:at] for name in files for at in range(len(name)) if name[at] == "/"}
    if clash := folders & set(files):
        raise HubError(400, f"{sorted(clash)[0]} is both a file and a folder")
    return files


def commit(repo: Repo, group: str, name: str, body: bytes, author: str, base: Commit) -> Commit:
    """Commits onto `base` and points the ref at the result."""
    header, operations = parse(body)
    parent = header.get("parentCommit")
    if parent is not None and not (len(parent) >= 7 and base.id.startswith(parent)):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    files = apply(repo, base.files, operations)
    new = repo.add_commit([base.id], header["summary"], header.get("description", ""), author, files)
    repo.set_ref(group, name, new.id)
    return new


def propose(repo: Repo, body: bytes, author: str, base: Commit) -> tuple[Commit, int]:
    """Commits onto a new pull request, and gives its number too."""
    header, _ = parse(body)
    number, at = discussions.reserve(repo), now()
    new = commit(repo, "pulls", str(number), body, author, base)
    discussions.open_new(
        repo, number, author, header["summary"], header.get("description", ""), base=base.id, status="open", at=at
    )
    return new, number


def checked_path(path: str) -> str:
    parts = path.rstrip("/").split("/")
    if not path or any(part in ("", ".", "..", ".git") for part in parts):
        raise HubError(400, f"Invalid path in repository: {path!r}")
    return path


def _regular_content(path: str, value: dict) -> bytes:
    try:
        content = value["content"].encode()
        if value.get("encoding") == "base64":
            content = base64.b64decode(content, validate=True)
    except (binascii.Error, KeyError) as error:
        raise HubError(400, f"Content of {path} is not base64") from error
    if len(content) > LARGEST_REGULAR:
        raise HubError(400, f"{path} has {len(content)} bytes: files above {LARGEST_REGULAR} must be uploaded as LFS")
    return content


def _large_entry(repo: Repo, path: str, value: dict) -> Entry:
    entry = repo.owned(value["oid"])
    if entry is None:
        raise HubError(400, f"LFS pointer of {path} points to a file that does not exist: {value['oid']}")
    if value.get("size", entry.size) != entry.size:
        raise HubError(400, f"{path}: size {value['size']} announced, {entry.size} stored")
    return entry
