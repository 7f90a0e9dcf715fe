"""The application: every route of the Hub that the client calls, and how errors are answered."""

from __future__ import annotations

import errno
import json
from collections.abc import Awaitable, Callable
from functools import cached_property
from urllib.parse import parse_qs, quote, unquote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router

from testing.local_hub import access
from testing.local_hub.store import KINDS, HubError, Repo, Store


class Call:
    """A request, the store, and the objects named by the path."""

    def __init__(self, request: Request, store: Store) -> None:
        self.request, self.store = request, store
        self.params = {name: unquote(value) for name, value in request.path_params.items()}

    @cached_property
    def token(self) -> access.Token | None:
        return access.token_of(self.request.headers.get("authorization"))

    @property
    def kind(self) -> str:
        return kind_of(self.params.get("kinds", "models"))

    @property
    def repo_id(self) -> str:
        return f"{self.params['namespace']}/{self.params['name']}"

    @property
    def last(self) -> str:
        """The last part of the path."""
        return self.request.scope["path"].rsplit("/", 1)[1]

    @property
    def endpoint(self) -> str:
        return str(self.request.base_url).rstrip("/")

    def repo(self) -> Repo:
        """The repository of the path, if the user may see it."""
        repo = self.store.repo(self.kind, self.repo_id)
        if repo is None and (new := self.store.moved_to(self.kind, self.repo_id)):
            raise Moved(str(self.request.url).replace(self.repo_id, new, 1))
        if repo is None or not access.may_read(repo, self.token):
            raise access.not_found(self.token)
        return repo

    def writable(self) -> Repo:
        """The repository of the path, if the user may write to it."""
        repo = self.repo()
        access.check_write(repo.id.split("/")[0], self.token)
        return repo

    def open_to_upload(self, revision: str | None) -> Repo:
        """The repository of the path, if the user may upload files; for a pull request everyone may."""
        repo = self.repo()
        if revision is None or revision.startswith("refs/pr/") or self.request.query_params.get("create_pr"):
            access.check_signed_in(self.token)
        else:
            access.check_write(repo.id.split("/")[0], self.token)
        return repo

    async def json(self) -> dict:
        try:
            return json.loads(await self.request.body() or b"{}")
        except ValueError as error:
            raise HubError(400, "The body is not JSON") from error

    async def form(self) -> dict[str, list[str]]:
        """A form's fields; the client sends forms and JSON alike."""
        body = await self.request.body()
        if self.request.headers.get("content-type", "").startswith("application/json"):
            return {key: value if isinstance(value, list) else [value] for key, value in json.loads(body).items()}
        return parse_qs(body.decode())

    def url(self, repo: Repo) -> str:
        prefix = "" if repo.kind == "model" else f"{repo.kind}s/"
        return f"{self.endpoint}/{prefix}{repo.id}"


class Moved(Exception):
    """The repository has a new name."""


def kind_of(kinds: str) -> str:
    kind = kinds.removesuffix("s")
    if kind not in KINDS:
        raise HubError(404, f"No such kind of repository: {kinds}")
    return kind


Handler = Callable[[Call], Awaitable[Response]]


def build(store: Store, routes: list[tuple[str, str, Handler]]) -> Callable:
    """The application of "METHOD path" routes in the order in which they are tried."""

    def endpoint(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            try:
                return await handler(Call(request, store))
            except Moved as moved:
                return Response(status_code=307, headers={"Location": str(moved)})
            except HubError as error:
                return error_response(error)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                return error_response(HubError(507, "No space left on device"))

        return answer

    table = [Route(path, endpoint(handler), methods=method.split("|")) for method, path, handler in routes]
    app = Router(table, redirect_slashes=False, default=unknown_path)

    async def undecoded(scope: dict, receive: Callable, send: Callable) -> None:
        # A revision such as refs/pr/1 is one part of the path: its slashes are encoded.
        await app(scope | {"path": scope["raw_path"].decode()}, receive, send)

    return undecoded


async def unknown_path(scope: dict, receive: Callable, send: Callable) -> None:
    await error_response(HubError(404, f"Sorry, we can't find {scope['path']}"))(scope, receive, send)


def error_response(error: HubError) -> Response:
    message = quote(error.message, safe=" !\"#$&'()*+,/:;<=>?@[]^`{|}~")
    headers = {"X-Error-Message": message} | ({"X-Error-Code": error.code} if error.code else {})
    return JSONResponse({"error": error.message}, error.status, headers | error.headers)
