"""The Xet transfer: tokens, xorbs and shards up, reconstructions down.

A file is registered only when all its chunks are there and their content has the SHA-256 that was announced.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
import uuid
from dataclasses import asdict
from pathlib import Path

from starlette.responses import JSONResponse, Response

from testing.local_hub.app import Call
from testing.local_hub.storage import Storage
from testing.local_hub.store import HubError, Repo
from testing.local_hub.xet_format import (
    Chunk,
    ShardFile,
    Term,
    chunk_content,
    deduplication_shard,
    parse_shard,
    xorb_chunks,
)

HASH = re.compile(r"[0-9a-f]{64}")


class Xet:
    """The storage service. Its tokens live as long as the server."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.tokens: dict[str, tuple[Repo, bool]] = {}

    async def write_token(self, call: Call) -> Response:
        return self._token(call, call.open_to_upload(call.params["revision"]), writes=True)

    async def read_token(self, call: Call) -> Response:
        return self._token(call, call.repo(), writes=False)

    def _token(self, call: Call, repo: Repo, writes: bool) -> Response:
        token, expires, url = secrets.token_hex(16), int(time.time()) + 3600, f"{self.storage.url}/xet"
        self.tokens[token] = (repo, writes)
        headers = {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
        return JSONResponse({"casUrl": url, "accessToken": token, "exp": expires}, headers=headers)

    async def put_xorb(self, call: Call) -> Response:
        self._repo(call, writes=True)
        target = self._folder(call) / "xorbs" / _checked(call.params["hash"])
        if target.exists():
            return JSONResponse({"was_inserted": False})
        body = await call.request.body()
        try:
            for chunk in xorb_chunks(body):
                chunk_content(body, chunk)
        except ValueError as error:
            raise HubError(400, f"Malformed xorb: {error}") from error
        call.store.write(target, body)
        return JSONResponse({"was_inserted": True})

    async def put_shard(self, call: Call) -> Response:
        repo = self._repo(call, writes=True)
        try:
            files, xorbs = parse_shard(await call.request.body())
            for file in files:
                self._register(call, repo, file)
        except ValueError as error:
            raise HubError(400, f"Malformed shard: {error}") from error
        for xorb in xorbs:
            call.store.write(self._folder(call) / "records" / xorb.hash, xorb.record)
            for chunk in xorb.findable:
                call.store.write(self._folder(call) / "chunks" / chunk, xorb.hash.encode())
        return JSONResponse({"result": 1})

    def _register(self, call: Call, repo: Repo, file: ShardFile) -> None:
        whole = call.store.folder / "partial" / uuid.uuid4().hex
        digest = hashlib.sha256()
        try:
            with whole.open("wb") as target:
                for term in file.terms:
                    xorb = self._xorb(call, term.xorb).read_bytes()
                    chunks = xorb_chunks(xorb)[term.start : term.end]
                    content = b"".join(chunk_content(xorb, chunk) for chunk in chunks)
                    if len(content) != term.length:
                        raise ValueError(f"a term has {len(content)} bytes, announced were {term.length}")
                    digest.update(content)
                    target.write(content)
            sha256 = digest.hexdigest()
            if file.sha256 not in (None, sha256):
                raise ValueError(f"the content has the SHA-256 {sha256}, announced was {file.sha256}")
            call.store.keep_object(whole, sha256)
        finally:
            whole.unlink(missing_ok=True)
        terms = json.dumps([asdict(term) for term in file.terms])
        call.store.write(self._folder(call) / "files" / file.hash, terms.encode())
        repo.own(sha256, file.hash)

    async def find_chunk(self, call: Call) -> Response:
        """The xorb that holds a chunk, as a shard, so that the client need not send it again."""
        self._repo(call, writes=False)
        found = self._folder(call) / "chunks" / _checked(call.params["hash"])
        if not found.is_file():
            raise HubError(404, "Chunk not found")
        record = self._folder(call) / "records" / found.read_text()
        return Response(deduplication_shard(record.read_bytes()), media_type="application/octet-stream")

    async def reconstruction(self, call: Call) -> Response:
        """Which chunks of which xorbs make the asked part of a file, and where to get them."""
        self._repo(call, writes=False)
        record = self._folder(call) / "files" / _checked(call.params["hash"])
        if not record.is_file():
            raise HubError(404, "File not found")
        terms = [Term(**term) for term in json.loads(record.read_bytes())]
        first, last = _asked(call.request.headers.get("range"), sum(term.length for term in terms))
        kept, offset, fetch, at = [], 0, {}, 0
        for term in terms:
            chunks = xorb_chunks(self._xorb(call, term.xorb).read_bytes())
            inside = []
            for index in range(term.start, term.end):
                end = at + chunks[index].length
                if at <= last and end > first:
                    offset = first - at if not kept and not inside else offset
                    inside.append(index)
                at = end
            if inside:
                kept.append(_term(term.xorb, chunks, inside))
                fetch.setdefault(term.xorb, []).append(self._fetch(term.xorb, chunks, inside))
        return JSONResponse({"offset_into_first_range": max(offset, 0), "terms": kept, "fetch_info": fetch})

    def _repo(self, call: Call, writes: bool) -> Repo:
        token = call.request.headers.get("authorization", "").removeprefix("Bearer ")
        if token not in self.tokens:
            raise HubError(401, "Unknown or expired Xet token")
        repo, may_write = self.tokens[token]
        if writes and not may_write:
            raise HubError(403, "This Xet token may read only")
        return repo

    def _xorb(self, call: Call, name: str) -> Path:
        file = self._folder(call) / "xorbs" / name
        if not file.is_file():
            raise HubError(400, f"Xorb {name} was not uploaded")
        return file

    def _fetch(self, xorb: str, chunks: list[Chunk], inside: list[int]) -> dict:
        return {
            "range": {"start": inside[0], "end": inside[-1] + 1},
            "url": self.storage.signed(f"/xet/xorbs/{xorb}"),
            "url_range": {"start": chunks[inside[0]].start, "end": chunks[inside[-1]].end - 1},
        }

    def _folder(self, call: Call) -> Path:
        return call.store.folder / "xet"


def _term(xorb: str, chunks: list[Chunk], inside: list[int]) -> dict:
    length = sum(chunks[index].length for index in inside)
    return {"hash": xorb, "unpacked_length": length, "range": {"start": inside[0], "end": inside[-1] + 1}}


def _asked(header: str | None, size: int) -> tuple[int, int]:
    """First and last byte of a Range header."""
    if header is None:
        return 0, size - 1
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", header)
    if not match or int(match[1]) >= size:
        raise HubError(416, "Range not satisfiable")
    return int(match[1]), min(int(match[2] or size - 1), size - 1)


def _checked(name: str) -> str:
    if not HASH.fullmatch(name):
        raise HubError(400, f"No hash: {name!r}")
    return name
