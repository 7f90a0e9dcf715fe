"""Git LFS uploads, in one piece or in parts. A file is kept only if it has the announced size and SHA-256."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import AsyncIterator
from math import ceil
from pathlib import Path

from starlette.responses import JSONResponse, Response

from testing.local_hub.app import Call
from testing.local_hub.storage import Storage
from testing.local_hub.store import HubError, Repo

SHA256 = re.compile(r"[0-9a-f]{64}")


class LargeFiles:
    """Returns upload links for missing files: one, or one per part above `part_bytes`."""

    def __init__(self, storage: Storage, part_bytes: int) -> None:
        self.storage, self.part_bytes = storage, part_bytes
        self.open: dict[str, tuple[Repo, str, int]] = {}

    async def batch(self, call: Call) -> Response:
        body = await call.json()
        if body.get("operation") != "upload":
            raise HubError(422, "Only uploads are served; a download goes by resolve")
        repo = call.open_to_upload(body.get("ref", {}).get("name"))
        multipart = "multipart" in body.get("transfers", [])
        objects = [self._upload(call, repo, one["oid"], one["size"], multipart) for one in body["objects"]]
        return JSONResponse({"transfer": "basic", "objects": objects}, media_type="application/vnd.git-lfs+json")

    def _upload(self, call: Call, repo: Repo, oid: str, size: int, multipart: bool) -> dict:
        answer = {"oid": oid, "size": size}
        if not SHA256.fullmatch(oid) or size < 0:
            return answer | {"error": {"code": 422, "message": "Invalid object"}}
        if repo.owned(oid):
            return answer
        key = secrets.token_hex(8)
        self.open[key] = (repo, oid, size)
        path = f"/lfs/{oid}/{key}"
        action: dict = {"href": self.storage.signed(path)}
        if multipart and size > self.part_bytes:
            links = {f"{part:05}": self.storage.signed(f"{path}/{part}") for part in self._numbers(size)}
            action["header"] = {"chunk_size": str(self.part_bytes)} | links
        verify = {"href": f"{call.url(repo)}.git/info/lfs/objects/verify"}
        return answer | {"actions": {"upload": action, "verify": verify}}

    async def put(self, call: Call) -> Response:
        repo, oid, size = self._opened(call)
        await self._keep(call, repo, oid, size, call.request.stream())
        return Response(headers={"ETag": f'"{oid}"'})

    async def put_part(self, call: Call) -> Response:
        _, _, size = self._opened(call)
        part = int(call.params["part"])
        expected = min(self.part_bytes, size - (part - 1) * self.part_bytes)
        await call.store.receive(call.request.stream(), self._part(call, part), expected)
        return Response(headers={"ETag": f'"{_md5(self._part(call, part))}"'})

    async def complete(self, call: Call) -> Response:
        """Joins the parts, whose ETags must be those of the parts received."""
        body = await call.json()
        repo, oid, size = self._opened(call)
        files = [self._part(call, part) for part in self._numbers(size)]
        named = {part["partNumber"]: part["etag"].strip('"') for part in body["parts"]}
        for part, file in enumerate(files, start=1):
            if not file.is_file() or named.get(part) != _md5(file):
                raise HubError(400, f"Part {part} is missing or differs")

        async def joined() -> AsyncIterator[bytes]:
            for file in files:
                yield file.read_bytes()

        await self._keep(call, repo, oid, size, joined())
        for file in files:
            file.unlink()
        return JSONResponse({"success": True})

    async def _keep(self, call: Call, repo: Repo, oid: str, size: int, stream: AsyncIterator[bytes]) -> None:
        whole = call.store.folder / "partial" / f"{call.params['key']}.whole"
        try:
            digest = await call.store.receive(stream, whole, size)
            if digest != oid:
                raise HubError(400, f"The content has the SHA-256 {digest}, announced was {oid}")
            call.store.keep_object(whole, oid)
        finally:
            whole.unlink(missing_ok=True)
        repo.own(oid)

    async def verify(self, call: Call) -> Response:
        repo, body = call.open_to_upload(None), await call.json()
        entry = repo.owned(body["oid"])
        if entry is None or entry.size != body["size"]:
            raise HubError(404, f"Object {body['oid']} was not uploaded")
        return JSONResponse({"success": True})

    def _opened(self, call: Call) -> tuple[Repo, str, int]:
        self.storage.check(call)
        return self.open[call.params["key"]]

    def _numbers(self, size: int) -> range:
        return range(1, ceil(size / self.part_bytes) + 1)

    def _part(self, call: Call, part: int) -> Path:
        return call.store.folder / "partial" / f"{call.params['key']}.{part}"


def _md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()
