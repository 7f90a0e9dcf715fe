"""Contents: `resolve` and `raw` with ranges, and git LFS uploads in one piece or in parts."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import AsyncIterator
from math import ceil
from pathlib import Path
from urllib.parse import quote

from starlette.responses import FileResponse, JSONResponse, Response

from tests.hub.app import Call
from tests.hub.store import HubError, Repo, lfs_pointer

SHA256 = re.compile(r"[0-9a-f]{64}")


async def resolve(call: Call) -> Response:
    """HEAD and GET of a file. Large ones have their SHA-256 as ETag, those that came by Xet tell their Xet hash."""
    repo = call.repo()
    commit, path = repo.commit(call.params["revision"]), call.params["path"]
    headers = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
    entry = commit.files.get(path)
    if entry is None:
        error = HubError(404, f"Entry not found: {path}", "EntryNotFound")
        return JSONResponse(
            {"error": error.message},
            404,
            headers | {"X-Error-Code": "EntryNotFound", "X-Error-Message": quote(error.message, safe=" :/")},
        )
    headers["ETag"] = f'"{entry.lfs or entry.oid}"'
    if entry.lfs:
        headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(entry.size)}
    if entry.xet:
        refresh = f"{call.endpoint}/api/{repo.kind}s/{repo.id}/xet-read-token/{commit.id}"
        headers |= {"X-Xet-Hash": entry.xet, "X-Xet-Refresh-Route": refresh, "Link": f'<{refresh}>; rel="xet-auth"'}
    return FileResponse(repo.content(entry), headers=headers, media_type="application/octet-stream")


async def raw(call: Call) -> Response:
    """A file as git holds it: of a large one the pointer."""
    repo = call.repo()
    entry = repo.commit(call.params["revision"]).files.get(call.params["path"])
    if entry is None:
        raise HubError(404, f"Entry not found: {call.params['path']}", "EntryNotFound")
    if entry.lfs:
        return Response(lfs_pointer(entry.lfs, entry.size), media_type="text/plain")
    return FileResponse(repo.content(entry), media_type="text/plain")


class LargeFiles:
    """Git LFS: what is missing gets an address to send it to, in parts of `part_bytes` if it is larger than one."""

    def __init__(self, part_bytes: int) -> None:
        self.part_bytes = part_bytes
        self.open: dict[str, tuple[Repo, str, int]] = {}

    async def batch(self, call: Call) -> Response:
        body = await call.json()
        if body.get("operation") != "upload":
            raise HubError(422, "Only uploads are served; a download goes by resolve")
        repo, multipart = call.writable(), "multipart" in body.get("transfers", [])
        objects = [self._upload(call, repo, one, multipart) for one in body["objects"]]
        return JSONResponse({"transfer": "basic", "objects": objects}, media_type="application/vnd.git-lfs+json")

    def _upload(self, call: Call, repo: Repo, one: dict, multipart: bool) -> dict:
        oid, size = one["oid"], one["size"]
        if not SHA256.fullmatch(oid) or size < 0:
            return {"oid": oid, "size": size, "error": {"code": 422, "message": "Invalid object"}}
        if repo.owned(oid):
            return {"oid": oid, "size": size}
        key = secrets.token_hex(16)
        self.open[key] = (repo, oid, size)
        action: dict = {"href": f"{call.endpoint}/lfs/{oid}/{key}"}
        if multipart and size > self.part_bytes:
            parts = {
                f"{number:05}": f"{action['href']}/{number}" for number in range(1, ceil(size / self.part_bytes) + 1)
            }
            action["header"] = {"chunk_size": str(self.part_bytes)} | parts
        verify = {"href": f"{call.url(repo)}.git/info/lfs/objects/verify"}
        return {"oid": oid, "size": size, "actions": {"upload": action, "verify": verify}}

    async def put(self, call: Call) -> Response:
        repo, oid, size = self._opened(call)
        await self._store(call, repo, oid, size, call.request.stream())
        return Response(headers={"ETag": f'"{oid}"'})

    async def put_part(self, call: Call) -> Response:
        _, _, size = self._opened(call)
        number = int(call.params["part"])
        expected = min(self.part_bytes, size - (number - 1) * self.part_bytes)
        target = self._parts(call) / str(number)
        await call.store.receive(call.request.stream(), target, expected)
        return Response(headers={"ETag": f'"{_md5(target)}"'})

    async def complete(self, call: Call) -> Response:
        """Joins the parts, whose ETags must be those of the parts received."""
        body = await call.json()
        repo, oid, size = self._opened(call)
        files = []
        for part in body["parts"]:
            file = self._parts(call) / str(part["partNumber"])
            if not file.is_file() or part["etag"].strip('"') != _md5(file):
                raise HubError(400, f"Part {part['partNumber']} is missing or differs")
            files.append(file)

        async def joined() -> AsyncIterator[bytes]:
            for file in files:
                yield file.read_bytes()

        await self._store(call, repo, oid, size, joined())
        for file in files:
            file.unlink()
        return JSONResponse({"success": True})

    async def _store(self, call: Call, repo: Repo, oid: str, size: int, stream: AsyncIterator[bytes]) -> None:
        target = call.store.folder / "partial" / f"{call.params['key']}.whole"
        try:
            digest = await call.store.receive(stream, target, size)
            if digest != oid:
                raise HubError(400, f"The content has the SHA-256 {digest}, announced was {oid}")
            call.store.keep_object(target, oid)
        finally:
            target.unlink(missing_ok=True)
        repo.own(oid)

    async def verify(self, call: Call) -> Response:
        repo, body = call.writable(), await call.json()
        entry = repo.owned(body["oid"])
        if entry is None or entry.size != body["size"]:
            raise HubError(404, f"Object {body['oid']} was not uploaded")
        return JSONResponse({"success": True})

    def _opened(self, call: Call) -> tuple[Repo, str, int]:
        upload = self.open.get(call.params["key"])
        if upload is None or upload[1] != call.params["oid"]:
            raise HubError(403, "Request has expired")
        return upload

    def _parts(self, call: Call) -> Path:
        return call.store.folder / "partial" / f"{call.params['key']}.parts"


def _md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
