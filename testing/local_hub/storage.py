"""The store of large files: a second address, like the Hub's CDN, that accepts signed links only."""

from __future__ import annotations

import hashlib
import hmac
import secrets

from starlette.responses import FileResponse, Response

from testing.local_hub.app import Call
from testing.local_hub.store import HubError


class Storage:
    """`url` is its address. Links are valid while this server runs."""

    def __init__(self, url: str) -> None:
        self.url, self._secret = url, secrets.token_bytes(16)

    def signed(self, path: str) -> str:
        return f"{self.url}{path}?signature={self._signature(path)}"

    def check(self, call: Call) -> None:
        signature = call.request.query_params.get("signature", "")
        if not hmac.compare_digest(signature, self._signature(call.request.scope["path"])):
            raise HubError(403, "Request has expired, or its signature is wrong")

    async def get_object(self, call: Call) -> Response:
        """A large file's content, with ranges."""
        self.check(call)
        headers = {"ETag": f'"{call.params["oid"]}"', "Accept-Ranges": "bytes"}
        file = call.store.object(call.params["oid"])
        return FileResponse(file, headers=headers, media_type="application/octet-stream")

    async def get_xorb(self, call: Call) -> Response:
        self.check(call)
        file = call.store.folder / "xet" / "xorbs" / call.params["hash"]
        return FileResponse(file, media_type="application/octet-stream")

    def _signature(self, path: str) -> str:
        return hmac.new(self._secret, path.encode(), hashlib.sha256).hexdigest()
