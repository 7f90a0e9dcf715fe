"""The service as an ASGI application: limits, tasks, health, metrics.

One idea: a request passes one gate after the other (rate, key, size, schema, the model's own checks), each of which
answers with a problem, and only then waits for the model. What it may hold and how long is limited from the first byte.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from imagelm.inference.loading import LoadedModel
from imagelm.serving.arguments import ServeArguments
from imagelm.serving.batching import Batcher, Job
from imagelm.serving.metrics import Metrics
from imagelm.serving.openapi import describe
from imagelm.serving.problems import Problem, busy, not_found, refused
from imagelm.serving.reading import JSON, Budget, content_type, parse_form, parse_json, read_body
from imagelm.serving.schemas import ENDPOINTS, Endpoint
from imagelm.serving.service import Service
from imagelm.utils.errors import InputError

logger = logging.getLogger(__name__)

SMALL_BODY = 16 << 10  # bytes of JSON that are read faster than another thread is asked
RATE_SECONDS = 10  # how long the rate may be used up in advance
MAX_ADDRESSES = 10_000
CLIENT_GONE = 499  # in logs and metrics, as nginx has it


class Gate:
    """A service behind its limits.

    Args:
        loaded: The model.
        options: The limits.
        batch_size: Sequences that are computed at once.
        api_key: What clients must send; None if they needn't.
    """

    def __init__(self, loaded: LoadedModel, options: ServeArguments, batch_size: int, api_key: str | None) -> None:
        self.options, self.api_key = options, api_key
        self.service = Service(loaded, batch_size, options.max_rows, options.max_megapixels * 1e6)
        self.batcher = Batcher(self.service.compute, batch_size, options.batch_wait / 1000)
        # One thread, as Pillow's warnings, by which it tells decompression bombs, belong to the whole process.
        self.decoder = ThreadPoolExecutor(1, "decoder")
        self.budget, self.num_waiting = Budget(options.max_memory_mb << 20), 0
        self.rates = Rates(options.rate)
        self.metrics = Metrics(lambda: self.num_waiting, lambda: self.budget.held)
        self.batcher.on_batch = self.metrics.count_batch
        self.is_stopping: Callable[[], bool] = lambda: False
        self.description = orjson.dumps(describe(api_key is not None))

    def close(self) -> None:
        """Computes what waits, then ends the threads."""
        self.batcher.close()
        self.decoder.shutdown()

    def check_key(self, request: Request) -> None:
        """Raises a Problem unless the request has the key, in a time that doesn't tell how much of it is right."""
        if self.api_key is None:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.api_key.encode()):
            headers = {"WWW-Authenticate": "Bearer"}
            raise Problem(401, "the API key is missing or wrong; send Authorization: Bearer KEY", headers=headers)

    async def answer(self, request: Request, endpoint: Endpoint) -> Response:
        """The records of a task; a Problem if a gate stops the request."""
        if request.client and (seconds := self.rates.seconds_to_wait(request.client.host)):
            raise busy(seconds, f"more than {self.options.rate:g} requests a second from this address; send fewer")
        self.check_key(request)  # after the rate, which limits guesses, too
        kind, late = content_type(request, endpoint), Problem(408, "the body didn't arrive in time; send it again")
        try:
            async with asyncio.timeout(self.options.timeout):
                job = await self._job(request, endpoint, kind)
                late = busy(self.batcher.seconds_to_wait(), "the answer took too long; ask for less at once", 503)
                self.num_waiting += 1
                try:
                    records = await self._wait(request, job)
                finally:
                    self.num_waiting -= 1
        except TimeoutError:
            raise late from None
        request.scope["facts"]["rows"] = job.num_rows
        return Response(
            orjson.dumps(self.service.content(job.request, records), option=orjson.OPT_SERIALIZE_NUMPY), media_type=JSON
        )

    async def _job(self, request: Request, endpoint: Endpoint, kind: str) -> Job:
        held: list[int] = []
        full = busy(self.batcher.seconds_to_wait(), "too many requests wait; try again later")
        try:
            if self.num_waiting >= self.options.max_waiting:
                raise full
            body = await read_body(request, self.options.max_body_mb << 20, held, self.budget, full)
            given = await self._parsed(body, request, endpoint, kind)
            in_thread = len(body) > SMALL_BODY or any(hasattr(one, "image") for one in getattr(given, "inputs", ()))
            key, num_rows, rows = await self._do(in_thread, self.service.read, given)
            if self.num_waiting >= self.options.max_waiting:
                raise full
            return Job(key, num_rows, given, rows)
        finally:
            self.budget.take(-sum(held))

    async def _parsed(self, body: bytes, request: Request, endpoint: Endpoint, kind: str) -> Any:
        if kind == JSON:
            return await self._do(len(body) > SMALL_BODY, parse_json, body, endpoint)
        return await parse_form(body, request, endpoint)

    async def _do(self, in_thread: bool, function: Callable, *arguments: Any) -> Any:
        if not in_thread:
            return function(*arguments)
        return await asyncio.get_running_loop().run_in_executor(self.decoder, function, *arguments)

    async def _wait(self, request: Request, job: Job) -> list[dict[str, Any]]:
        """The records of a job; it's dropped when the client goes away, or the time is over."""
        work, gone = asyncio.ensure_future(self.batcher.run(job)), asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientDisconnect
            return work.result()
        finally:
            work.cancel()
            gone.cancel()


class Rates:
    """How often each address may ask: a bucket of `RATE_SECONDS` × `rate` requests, filled at this rate."""

    def __init__(self, rate: float) -> None:
        self.rate, self.buckets = rate, OrderedDict[str, tuple[float, float]]()

    def seconds_to_wait(self, address: str) -> float:
        """0 if the request is allowed, which is then counted."""
        if not self.rate:
            return 0
        most, now = max(1.0, self.rate * RATE_SECONDS), time.monotonic()
        left, then = self.buckets.pop(address, (most, now))
        left = min(most, left + (now - then) * self.rate)
        allowed = left >= 1
        self.buckets[address] = (left - allowed, now)
        if len(self.buckets) > MAX_ADDRESSES:
            self.buckets.popitem(last=False)
        return 0 if allowed else (1 - left) / self.rate


class Recorder:
    """Logs and counts every request, without what it holds."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self.app, self.metrics = app, gate.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, identity = time.perf_counter(), CLIENT_GONE, uuid.uuid4().hex
        facts = scope["facts"] = {"request": identity}

        async def recorded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", identity.encode())]
            await send(message)

        try:
            await self.app(scope, receive, recorded)
        finally:
            seconds = time.perf_counter() - started
            route = scope["path"] if "endpoint" in scope else "other"
            self.metrics.count_request(route, status, seconds)
            facts |= {"method": scope["method"][:20], "route": route, "status": status}
            logger.info("request", extra={"facts": facts | {"seconds": round(seconds, 4)}})


def make_app(
    loaded: LoadedModel, options: ServeArguments, batch_size: int = 64, api_key: str | None = None
) -> Starlette:
    """The service of a loaded model; `app.state.gate` is its gate."""
    gate = Gate(loaded, options, batch_size, api_key)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(gate.close)

    async def health(_: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type=JSON)

    async def ready(request: Request) -> Response:
        if gate.is_stopping() or not gate.batcher.thread.is_alive():
            raise busy(1, "the service ends; ask another one", 503)
        return await health(request)

    async def metrics(request: Request) -> Response:
        gate.check_key(request)
        return Response(gate.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def description(_: Request) -> Response:
        return Response(gate.description, media_type=JSON)

    routes = [Route(f"/v1/{name}", _task(gate, endpoint), methods=["POST"]) for name, endpoint in ENDPOINTS.items()]
    for path, answer in {
        "/healthz": health,
        "/readyz": ready,
        "/metrics": metrics,
        "/openapi.json": description,
    }.items():
        routes.append(Route(path, answer, methods=["GET"]))
    handlers: dict[Any, Any] = {HTTPException: not_found, Problem: _problem}
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    app.add_middleware(Recorder, gate=gate)
    app.state.gate = gate
    return app


def _task(gate: Gate, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            return await gate.answer(request, endpoint)
        except InputError as error:
            raise refused(error) from error
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        except Problem:
            raise
        except Exception:
            logger.exception("failed", extra={"facts": request.scope["facts"]})
            raise Problem(500, "the service failed; its log says why, under the X-Request-ID of this answer") from None

    return answer


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
