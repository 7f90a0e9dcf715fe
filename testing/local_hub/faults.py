"""Faults on demand (cut connections, lost answers, error statuses, delays), and a log of all requests.

A wrapper around the application. A cut acts on the socket itself (TCP reset), so the client sees what it would see
of a broken network, in the middle of its upload or in place of an answer it waits for.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass
class Request:
    """One request as the server saw it. `status` is None while it runs and if its connection was cut before."""

    method: str
    path: str
    query: str
    authorization: str | None
    body_bytes: int = 0
    status: int | None = None
    response_bytes: int = 0
    cut: bool = False


@dataclass
class Rule:
    """One fault: for requests whose method and path match, at the `at`-th of them, `times` times (None: always)."""

    path: str
    method: str | None
    at: int
    times: int | None
    status: int | None = None
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0
    before: Callable[[], object] | None = None
    lose_answer: bool = False
    answer_bytes: int | None = None
    seen: int = 0
    fired: int = 0

    def fires(self, request: Request) -> bool:
        if (self.method and self.method != request.method) or not re.search(self.path, request.path):
            return False
        self.seen += 1
        if self.seen < self.at or (self.times is not None and self.fired >= self.times):
            return False
        self.fired += 1
        return True


class Cut(Exception):
    """The connection is gone: reset, or closed after what was already sent."""

    def __init__(self, reset: bool = True) -> None:
        super().__init__()
        self.reset = reset


class Faults:
    """The faults of the server; every method may be called from any thread, `clear` ends them all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        with self._lock:
            self.rules: list[Rule] = []
            self._budget: int | None = None
            self._for_ever = False
            self.down = False

    def answer(
        self,
        status: int,
        path: str = "",
        method: str | None = None,
        *,
        at: int = 1,
        times: int | None = 1,
        message: str = "ordered by the test",
        headers: dict[str, str] | None = None,
    ) -> Rule:
        """Answers with `status` instead of serving: 429 (headers={"Retry-After": "1"}), 500, 401, 507, …"""
        return self._add(Rule(path, method, at, times, status=status, message=message, headers=headers or {}))

    def delay(
        self, seconds: float, path: str = "", method: str | None = None, *, at: int = 1, times: int | None = None
    ) -> Rule:
        """Waits before serving."""
        return self._add(Rule(path, method, at, times, delay=seconds))

    def before(
        self,
        action: Callable[[], object],
        path: str = "",
        method: str | None = None,
        *,
        at: int = 1,
        times: int | None = 1,
    ) -> Rule:
        """Runs `action` before the request is served, such as a commit by someone else."""
        return self._add(Rule(path, method, at, times, before=action))

    def lose_answer(self, path: str = "", method: str | None = None, *, at: int = 1, times: int | None = 1) -> Rule:
        """Serves the request in full and then cuts the connection instead of answering."""
        return self._add(Rule(path, method, at, times, lose_answer=True))

    def cut_answer(
        self, after: int, path: str = "", method: str | None = "GET", *, at: int = 1, times: int | None = 1
    ) -> Rule:
        """Closes the connection after so many bytes of the answer's body."""
        return self._add(Rule(path, method, at, times, answer_bytes=after))

    def cut_upload(self, after: int, *, for_ever: bool = True, then: Callable[[], object] = lambda: None) -> None:
        """Cuts the connection when `after` bytes of request bodies have come in, over all requests from now on.

        With `for_ever` the network stays down until `clear`: every later request is cut too. `then` runs after the
        cut, such as one that kills the client.
        """
        with self._lock:
            self._budget, self._for_ever, self._then = after, for_ever, then

    def _add(self, rule: Rule) -> Rule:
        with self._lock:
            self.rules.append(rule)
        return rule

    def matching(self, request: Request) -> list[Rule]:
        with self._lock:
            return [rule for rule in self.rules if rule.fires(request)]

    def let_in(self, size: int) -> tuple[int, bool]:
        """How many of `size` bytes of a body come through, and whether the connection is cut then."""
        with self._lock:
            if self.down:
                return 0, True
            if self._budget is None or size < self._budget:
                self._budget = None if self._budget is None else self._budget - size
                return size, False
            let_in, self._budget = self._budget, None
            self.down = self._for_ever
        self._then()
        return let_in, True


class WatchedApp:
    """The application with its faults and its log."""

    def __init__(self, app: Callable, faults: Faults, log: list[Request]) -> None:
        self.app, self.faults, self.log = app, faults, log
        self.connections: dict[tuple[str, int], asyncio.Transport] = {}

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        request = Request(
            scope["method"],
            scope["path"],
            scope["query_string"].decode(),
            next((value.decode() for key, value in scope["headers"] if key == b"authorization"), None),
        )
        self.log.append(request)
        try:
            await self._serve(request, scope, receive, send)
        except ClientDisconnect:
            request.cut = True
        except Cut as cut:
            request.cut = True
            close(self.connections[scope["client"]], cut.reset)
            await asyncio.sleep(0.01)  # until the protocol has noticed; else it would answer 500

    async def _serve(self, request: Request, scope: dict, receive: Callable, send: Callable) -> None:
        if self.faults.down:
            raise Cut
        rules = self.faults.matching(request)
        for rule in rules:
            await asyncio.sleep(rule.delay)
            if rule.before:
                rule.before()
        exchange = Exchange(request, self.faults, receive, send)
        refusal = next((rule for rule in rules if rule.status), None)
        if refusal:
            await exchange.drain()
            await refuse(refusal, exchange.send)
            return
        exchange.silent = any(rule.lose_answer for rule in rules)
        exchange.answer_bytes = next((rule.answer_bytes for rule in rules if rule.answer_bytes is not None), None)
        await self.app(scope, exchange.receive, exchange.send)
        if exchange.cut or exchange.silent:
            raise Cut


class Exchange:
    """The two directions of one request, counted, and cut if a fault asks for it."""

    def __init__(self, request: Request, faults: Faults, receive: Callable, send: Callable) -> None:
        self.request, self.faults = request, faults
        self._receive, self._send = receive, send
        self.silent, self.cut, self.answer_bytes = False, False, None

    async def receive(self) -> dict:
        if self.cut:
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.request":
            body = message.get("body", b"")
            let_in, self.cut = self.faults.let_in(len(body)) if body else (0, False)
            self.request.body_bytes += let_in
            if self.cut:
                raise Cut
        return message

    async def drain(self) -> None:
        while (message := await self.receive())["type"] == "http.request" and message.get("more_body"):
            pass

    async def send(self, message: dict) -> None:
        if self.silent or self.cut:
            return
        if message["type"] == "http.response.start":
            self.request.status = message["status"]
        else:
            body = message.get("body", b"")
            if self.answer_bytes is not None and self.request.response_bytes + len(body) > self.answer_bytes:
                rest = body[: self.answer_bytes - self.request.response_bytes]
                self.request.response_bytes += len(rest)
                await self._send({"type": "http.response.body", "body": rest, "more_body": True})
                self.cut = True
                raise Cut(reset=False)
            self.request.response_bytes += len(body)
        await self._send(message)


async def refuse(rule: Rule, send: Callable) -> None:
    body = json.dumps({"error": rule.message}).encode()
    headers: Iterable = {"content-type": "application/json", "content-length": str(len(body))} | rule.headers
    encoded = [(key.lower().encode(), headers[key].encode()) for key in headers]
    await send({"type": "http.response.start", "status": rule.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def close(transport: asyncio.Transport, reset: bool) -> None:
    if reset:
        linger = struct.pack("ii", 1, 0)  # at once: what wasn't sent is dropped, the peer gets a TCP reset
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        transport.abort()
    else:
        transport.close()


def watched_protocol(watched: WatchedApp) -> type[H11Protocol]:
    """uvicorn's HTTP protocol, which lets the application reach the socket of a request."""

    class Protocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            # Else a small answer, sent as head and body, waits 40 ms for the client's acknowledgement.
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            watched.connections[self.client] = transport

        def connection_lost(self, exc: Exception | None) -> None:
            watched.connections.pop(self.client, None)
            super().connection_lost(exc)

    return Protocol
