"""The server in a thread of this process, and the environment of a client."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import TracebackType

import uvicorn

from testing.local_hub import access
from testing.local_hub.app import build
from testing.local_hub.faults import Cut, Faults, Request, WatchedApp, watched_protocol
from testing.local_hub.routes import routes
from testing.local_hub.storage import Storage
from testing.local_hub.store import Repo, Store


class LocalHub:
    """A Hub that keeps its repositories in `folder`, for as long as the `with` block runs.

    LFS uploads above `part_bytes` go in parts.
    """

    def __init__(self, folder: Path | str, part_bytes: int = 16 * 1024 * 1024) -> None:
        self.store, self.faults = Store(Path(folder)), Faults()
        self.requests: list[Request] = []
        self._sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.endpoint, storage = (f"http://127.0.0.1:{one.getsockname()[1]}" for one in self._sockets)
        app = build(self.store, routes(Storage(storage), part_bytes))
        self._watched = WatchedApp(app, self.faults, self.requests)
        config = uvicorn.Config(
            self._watched,
            http=watched_protocol(self._watched),
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_level="warning",
            timeout_keep_alive=600,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": self._sockets}, daemon=True)

    def __enter__(self) -> LocalHub:
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("The local Hub did not start")
            time.sleep(0.01)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.should_exit = True
        self._thread.join()
        for one in self._sockets:
            one.close()

    def repo(self, repo_id: str, kind: str = "model") -> Repo:
        """The repository, whatever the rights: `.files(revision)`, `.read(path)`, `.history()`, `.refs`, `.meta`."""
        repo = self.store.repo(kind, repo_id)
        if repo is None:
            raise KeyError(f"no {kind} {repo_id}")
        return repo

    def exists(self, repo_id: str, kind: str = "model") -> bool:
        return self.store.repo(kind, repo_id) is not None

    def commit(self, repo_id: str, content: dict[str, bytes], kind: str = "model", author: str = "bob") -> str:
        """Commits to main as another user, ignoring all faults; returns the new commit's id."""
        repo = self.repo(repo_id, kind)
        old = repo.commit()
        files = old.files | {path: repo.put_blob(data) for path, data in content.items()}
        new = repo.add_commit([old.id], "Someone else's commit", "", author, files)
        repo.set_ref("branches", "main", new.id)
        return new.id

    def crash_in_commit(self) -> None:
        """Makes the server fail in its next commit, after writing the contents and before changing a ref."""

        def crash() -> None:
            self.store.before_publish = lambda: None
            raise Cut

        self.store.before_publish = crash

    def uploads(self) -> list[Request]:
        """The requests that carried contents of large files."""
        return [
            one
            for one in self.requests
            if (one.method == "PUT" and one.path.startswith("/lfs/")) or "/v1/xorbs/" in one.path
        ]

    def uploaded_bytes(self) -> int:
        """Number of received bytes of large files, complete or not."""
        return sum(one.body_bytes for one in self.uploads())

    def sent_twice(self) -> list[str]:
        """The large files (xorbs by Xet, parts of a multipart upload) that arrived completely more than once."""
        whole = [re.sub("(/lfs/[^/]+)/[^/]+", r"\1", one.path) for one in self.uploads() if one.status == 200]
        return sorted(name for name, count in Counter(whole).items() if count > 1)

    def asked(self, path: str, method: str | None = None) -> list[Request]:
        """The requests whose path has `path` in it."""
        return [one for one in self.requests if path in one.path and method in (None, one.method)]

    def environment(
        self, home: Path | str, token: access.Token | str | None = access.ALICE, *, xet: bool = True
    ) -> dict[str, str]:
        """The environment of a client's process: this Hub, its own home, its token, quick retries, online.

        Give each client a fresh `home` for a cold cache, or the same one for a warm cache.
        """
        secret = token.secret if isinstance(token, access.Token) else token
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        environment = kept | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
            "NO_PROXY": "127.0.0.1",
        }
        environment |= {"HF_TOKEN": secret} if secret else {}
        return environment | ({} if xet else {"HF_HUB_DISABLE_XET": "1"})

    def client(
        self,
        code: str,
        *words: object,
        home: Path | str,
        token: access.Token | str | None = access.ALICE,
        xet: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Runs Python code in a fresh process whose Hub is this one; `words` are its `sys.argv[1:]`."""
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, words)],
            env=self.environment(home, token, xet=xet),
            capture_output=True,
            text=True,
            timeout=300,
        )
