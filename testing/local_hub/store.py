"""Repositories on disk: content-addressed files, commits as JSON, and one file of refs that a commit replaces.

A commit writes its contents and its JSON first and then replaces `refs.json`, so that a reader, or a server started
again after a crash, sees the old version or the new one and nothing between.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

KINDS = ("model", "dataset", "space")
# What the Hub writes into a new repository: its list of suffixes that are large files.
LARGE_SUFFIXES = (
    *("7z", "arrow", "bin", "bz2", "ckpt", "ftz", "gz", "h5", "joblib", "lfs.*", "mlmodel", "model", "msgpack", "npy"),
    *("npz", "onnx", "ot", "parquet", "pb", "pickle", "pkl", "pt", "pth", "rar", "safetensors", "tar", "tflite"),
    *("tgz", "wasm", "xz", "zip", "zst"),
)
GITATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES)
LARGEST_REGULAR = 10 * 1024 * 1024


class HubError(Exception):
    """An answer other than 2xx: its status, a message, the Hub's error code ("RepoNotFound", …) and headers."""

    def __init__(
        self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}


@dataclass(frozen=True)
class Entry:
    """A file of a commit. `oid` is its git blob's SHA-1; a large file has the SHA-256 of its content in `lfs`."""

    oid: str
    size: int
    lfs: str | None = None
    xet: str | None = None


@dataclass(frozen=True)
class Commit:
    id: str
    parents: tuple[str, ...]
    title: str
    message: str
    author: str
    date: str
    files: dict[str, Entry]


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class Store:
    """All repositories, and the large files they share, under one folder.

    `free_bytes` is what the disk still holds (None: no limit); a write beyond it raises OSError(ENOSPC).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.free_bytes: int | None = None
        self.before_publish: Callable[[], None] = lambda: None
        for name in ("repos", "objects", "partial", "xet"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    def repo(self, kind: str, repo_id: str) -> Repo | None:
        folder = self._repo_folder(kind, repo_id)
        return Repo(self, folder) if (folder / "refs.json").is_file() else None

    def repos(self, kind: str) -> list[Repo]:
        found = sorted((self.folder / "repos" / f"{kind}s").glob("*/*/refs.json"))
        return [Repo(self, file.parent) for file in found]

    def create(self, kind: str, repo_id: str, author: str, **meta: object) -> Repo:
        """A repository with its first commit, as the Hub makes it."""
        repo = Repo(self, self._repo_folder(kind, repo_id))
        repo.folder.mkdir(parents=True, exist_ok=True)
        repo.write_meta({"id": repo_id, "kind": kind, "private": False, "gated": False, "created": now()} | meta)
        content = {".gitattributes": GITATTRIBUTES.encode()}
        if kind == "space":
            name = repo_id.split("/")[1]
            readme = f"---\ntitle: {name}\nsdk: {meta.get('sdk')}\n---\n"
            content["README.md"] = readme.encode()
        files = {path: repo.put_blob(data) for path, data in content.items()}
        commit = repo.add_commit((), "initial commit", "", author, files)
        repo.publish({"branches": {"main": commit.id}, "tags": {}, "pulls": {}})
        return repo

    def delete(self, repo: Repo) -> None:
        # Out of sight in one step, then removed.
        grave = self.folder / "partial" / uuid.uuid4().hex
        os.replace(repo.folder, grave)
        shutil.rmtree(grave)

    def move(self, repo: Repo, repo_id: str) -> Repo:
        target = self._repo_folder(repo.kind, repo_id)
        target.parent.mkdir(parents=True, exist_ok=True)
        old_kind, old_id = repo.kind, repo.id
        repo.write_meta(repo.meta | {"id": repo_id})
        os.replace(repo.folder, target)
        moved = self._moved() | {f"{old_kind}s/{old_id}": repo_id}
        self.write(self.folder / "moved.json", json.dumps(moved).encode())
        return Repo(self, target)

    def moved_to(self, kind: str, repo_id: str) -> str | None:
        """The present name of a repository that was renamed."""
        return self._moved().get(f"{kind}s/{repo_id}")

    def object(self, sha256: str) -> Path:
        return self.folder / "objects" / sha256[:2] / sha256

    def keep_object(self, file: Path, sha256: str) -> None:
        """Moves a whole large file, whose SHA-256 was checked, to its place."""
        self.object(sha256).parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, self.object(sha256))

    async def receive(self, stream: AsyncIterator[bytes], target: Path, size: int | None = None) -> str:
        """Streams into `target` and gives the SHA-256; on any error, also of the connection, nothing is left."""
        partial, digest, received = self._partial(), hashlib.sha256(), 0
        try:
            with partial.open("wb") as file:
                async for piece in stream:
                    self._take(len(piece))
                    file.write(piece)
                    digest.update(piece)
                    received += len(piece)
            if size is not None and received != size:
                raise HubError(400, f"{received} bytes received, {size} announced")
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
        return digest.hexdigest()

    def write(self, target: Path, content: bytes) -> None:
        """Replaces a file in one step."""
        partial = self._partial()
        try:
            self._take(len(content))
            partial.write_bytes(content)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def _take(self, size: int) -> None:
        if self.free_bytes is not None:
            if size > self.free_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.free_bytes -= size

    def _partial(self) -> Path:
        return self.folder / "partial" / uuid.uuid4().hex

    def _moved(self) -> dict[str, str]:
        file = self.folder / "moved.json"
        return json.loads(file.read_bytes()) if file.exists() else {}

    def _repo_folder(self, kind: str, repo_id: str) -> Path:
        return self.folder / "repos" / f"{kind}s" / repo_id


class Repo:
    """One repository. Everything is read from disk at each call, so that any thread may look."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder

    @property
    def meta(self) -> dict:
        return json.loads((self.folder / "meta.json").read_bytes())

    @property
    def id(self) -> str:
        return self.meta["id"]

    @property
    def kind(self) -> str:
        return self.meta["kind"]

    @property
    def refs(self) -> dict[str, dict[str, str]]:
        """{"branches": {name: commit}, "tags": {…}, "pulls": {number: commit}}"""
        return json.loads((self.folder / "refs.json").read_bytes())

    def sha(self, revision: str = "main") -> str | None:
        """The commit of a branch, tag, `refs/pr/N`, full or shortened commit id."""
        refs = self.refs
        for prefix, group in (("refs/heads/", "branches"), ("refs/tags/", "tags"), ("refs/pr/", "pulls")):
            if revision.startswith(prefix):
                return refs[group].get(revision.removeprefix(prefix))
        named = refs["branches"].get(revision) or refs["tags"].get(revision)
        if named or not re.fullmatch(r"[0-9a-f]{7,40}", revision):
            return named
        found = list((self.folder / "commits").glob(f"{revision}*.json"))
        return found[0].stem if len(found) == 1 else None

    def commit(self, revision: str = "main") -> Commit:
        sha = self.sha(revision)
        if sha is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self._load(sha)

    def _load(self, sha: str) -> Commit:
        data = json.loads((self.folder / "commits" / f"{sha}.json").read_bytes())
        files = {path: Entry(**entry) for path, entry in data.pop("files").items()}
        return Commit(**data | {"parents": tuple(data["parents"]), "files": files})

    def history(self, revision: str = "main") -> list[Commit]:
        """Newest first."""
        commits = [self.commit(revision)]
        while commits[-1].parents:
            commits.append(self.commit(commits[-1].parents[0]))
        return commits

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Every file's content, by path."""
        return {path: self.read(path, revision) for path in self.commit(revision).files}

    def read(self, path: str, revision: str = "main") -> bytes:
        return self.content(self.commit(revision).files[path]).read_bytes()

    def content(self, entry: Entry) -> Path:
        return self.store.object(entry.lfs) if entry.lfs else self.folder / "blobs" / entry.oid

    def put_blob(self, content: bytes) -> Entry:
        entry = Entry(git_blob(content), len(content))
        if not self.content(entry).exists():
            self.store.write(self.content(entry), content)
        return entry

    def own(self, sha256: str, xet: str | None = None) -> None:
        """Records that this repository holds a large file, which other repositories may share."""
        self.store.write(self.folder / "large" / sha256, (xet or "").encode())

    def owned(self, sha256: str) -> Entry | None:
        """The large file, if it was uploaded to this repository."""
        file, content = self.folder / "large" / sha256, self.store.object(sha256)
        if not (file.is_file() and content.is_file()):
            return None
        size = content.stat().st_size
        return Entry(git_blob(lfs_pointer(sha256, size)), size, sha256, file.read_text() or None)

    def add_commit(
        self, parents: Iterable[str], title: str, message: str, author: str, files: dict[str, Entry]
    ) -> Commit:
        """Writes a commit that no ref names yet."""
        body = {
            "parents": list(parents),
            "title": title,
            "message": message,
            "author": author,
            "date": now(),
            "files": {path: asdict(entry) for path, entry in sorted(files.items())},
        }
        sha = hashlib.sha1((json.dumps(body) + uuid.uuid4().hex).encode()).hexdigest()
        self.store.write(self.folder / "commits" / f"{sha}.json", json.dumps(body | {"id": sha}).encode())
        return self._load(sha)

    def publish(self, refs: dict) -> None:
        """The one step by which anything becomes visible."""
        self.store.before_publish()
        self.store.write(self.folder / "refs.json", json.dumps(refs).encode())

    def set_ref(self, group: str, name: str, sha: str | None) -> None:
        """Points a branch, tag or pull request at a commit, or removes it."""
        refs = self.refs
        if sha is None:
            del refs[group][name]
        else:
            refs[group][name] = sha
        self.publish(refs)

    def write_meta(self, meta: dict) -> None:
        self.store.write(self.folder / "meta.json", json.dumps(meta).encode())
