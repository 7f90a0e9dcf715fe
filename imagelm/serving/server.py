"""The process: a socket, uvicorn, log lines, and an end that finishes what was taken."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import sys
import traceback
from datetime import UTC, datetime

import orjson
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from imagelm.serving.arguments import API_KEY, ServeArguments
from imagelm.serving.problems import busy
from imagelm.utils.errors import InputError
from imagelm.utils.text import printable

logger = logging.getLogger(__name__)

HEAD_SECONDS = 10.0  # for the head of a request, and of silence between two
MAX_HEAD = 16 << 10  # bytes
BACKLOG = 2048  # connections that the system holds until they are accepted
SPARE_FILES = 200  # that the process opens beside its connections


def serve(app: Starlette, options: ServeArguments, listener: socket.socket) -> None:
    """Answers requests at the socket until SIGTERM or Ctrl-C, then finishes those that were taken."""
    _allow_connections(options.max_connections)
    config = uvicorn.Config(
        app,
        http=_protocol(options),
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=math.ceil(HEAD_SECONDS),
        timeout_graceful_shutdown=math.ceil(options.timeout) + 1,
        h11_max_incomplete_event_size=MAX_HEAD,
    )
    server = uvicorn.Server(config)
    app.state.gate.is_stopping = lambda: server.should_exit
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if app.state.gate.api_key is None and not host.startswith("127.") and host != "::1":
        logger.warning(f"anyone who reaches this address may use the service; set {API_KEY} to ask for a key")
    logger.info("listening", extra={"facts": {"url": url}})
    server.run(sockets=[listener])


def bind(options: ServeArguments) -> socket.socket:
    """A socket at the service's address, which refuses connections until `serve` listens to it.

    Raises:
        InputError: The address can't be used.
    """
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    # asyncio sends small pieces at once (TCP_NODELAY) only where the protocol is named: 40 ms an answer.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((options.host, options.port))
    except OSError as error:  # also a name that isn't known
        bound.close()
        raise InputError(
            f"--host {options.host} --port {options.port} can't be used: {error.strerror or error}; choose another one"
        ) from error
    return bound


def log_json_lines() -> None:
    """Log lines as JSON objects on standard error, and Python's warnings among them."""
    logging.captureWarnings(True)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in (("imagelm", logging.INFO), ("uvicorn", logging.WARNING), ("py.warnings", logging.WARNING)):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(level)


class JsonLines(logging.Formatter):
    """A log record as a JSON object: time, level, event, what `extra={"facts": …}` holds, and a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "event": printable(record.getMessage())}
        line |= getattr(record, "facts", {})
        if record.exc_info:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return orjson.dumps(line).decode()


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection on which no whole head arrives in time, or whose answer isn't read.

    uvicorn itself limits only the silence between two requests: a byte now and then would hold a connection for ever.
    """

    max_connections = 0
    timeout = 0.0
    timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuses a connection beyond the limit."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.write(TOO_MANY)
            transport.close()
        self._close_after(min(HEAD_SECONDS, self.timeout))

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the timer."""
        super().connection_lost(exc)
        if self.timer is not None:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Stops the timer when a request has begun."""
        cycle = self.cycle
        super().data_received(data)
        if self.cycle is not cycle and self.timer is not None:
            self.timer.cancel()

    def on_response_complete(self) -> None:
        """Waits for the answer to be read, and for the next request."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._close_after(HEAD_SECONDS + self.timeout)

    def _close_after(self, seconds: float) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.call_later(seconds, self.transport.abort)


def _too_many() -> bytes:
    response = busy(1, "too many connections are open; try again later", 503).response()
    head = [f"HTTP/1.1 503 {'Service Unavailable'}", "connection: close"]
    head += [f"{name}: {value}" for name, value in response.headers.items()]
    return "\r\n".join([*head, "", ""]).encode() + bytes(response.body)


TOO_MANY = _too_many()


def _protocol(options: ServeArguments) -> type[PatientProtocol]:
    limits = {"max_connections": options.max_connections, "timeout": options.timeout}
    return type("LimitedProtocol", (PatientProtocol,), limits)


def _allow_connections(count: int) -> None:
    """Raises the process' limit of open files, which is often 1,024."""
    try:
        import resource
    except ModuleNotFoundError:  # on Windows there is no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
