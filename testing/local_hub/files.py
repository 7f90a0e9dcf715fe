"""Contents of a version: `resolve` with ranges, and `raw` as git holds them."""

from __future__ import annotations

from starlette.responses import FileResponse, Response

from testing.local_hub import access
from testing.local_hub.app import Call
from testing.local_hub.storage import Storage
from testing.local_hub.store import Entry, HubError, Repo, lfs_pointer


class Files:
    """Serves regular files; for a large one `resolve` answers with its metadata and redirects to the storage."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    async def resolve(self, call: Call) -> Response:
        repo, entry, headers = self._found(call)
        headers |= {"Accept-Ranges": "bytes", "ETag": f'"{entry.lfs or entry.oid}"'}
        if not entry.lfs:
            return FileResponse(repo.content(entry), headers=headers, media_type="text/plain")
        headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(entry.size)}
        if entry.xet:
            refresh = f"{call.endpoint}/api/{repo.kind}s/{repo.id}/xet-read-token/{headers['X-Repo-Commit']}"
            headers |= {"X-Xet-Hash": entry.xet, "X-Xet-Refresh-Route": refresh, "Link": f'<{refresh}>; rel="xet-auth"'}
        return Response(status_code=302, headers=headers | {"Location": self.storage.signed(f"/objects/{entry.lfs}")})

    async def raw(self, call: Call) -> Response:
        repo, entry, headers = self._found(call)
        if entry.lfs:
            return Response(lfs_pointer(entry.lfs, entry.size), headers=headers, media_type="text/plain")
        return FileResponse(repo.content(entry), headers=headers, media_type="text/plain")

    def _found(self, call: Call) -> tuple[Repo, Entry, dict[str, str]]:
        repo, path = call.repo(), call.params["path"]
        access.check_gate(repo, call.token)
        commit = repo.commit(call.params["revision"])
        headers = {"X-Repo-Commit": commit.id}
        entry = commit.files.get(path)
        if entry is None:
            # The client notes in its cache that this commit lacks the file: it needs the commit's id here too.
            raise HubError(404, f"Entry not found: {path}", "EntryNotFound", headers)
        return repo, entry, headers
