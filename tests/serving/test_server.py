"""The service as a process on loopback: start, slow and killed clients, SIGTERM, many connections."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

from tests.conftest import ROOT, run
from tests.forks import Fork
from tests.serving.common import png, row

QUESTION = {"inputs": [row(1, 2, 3, 4)]}
SECONDS = 120  # that something may take on a loaded machine


class Service:
    """`imagelm serve` in a process of its own; `log` gives the lines that it has written."""

    def __init__(self, model: Path, *words: object) -> None:
        command = ["-m", "imagelm", "serve", "--model", model, "--port", 0, *words]
        self.fork = Fork(list(map(str, command)), ROOT, dict(os.environ))
        self.url = wait_for(lambda: next((line["url"] for line in self.log() if line["event"] == "listening"), None))
        wait_for(self.is_ready)

    def log(self) -> list[dict]:
        assert self.fork.poll() is None or self.fork.returncode == 128 + signal.SIGTERM, self.fork.streams
        stream = Path(self.fork.streams[2])
        lines = stream.read_text().splitlines(keepends=True) if stream.exists() else ()  # the process makes it
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def is_ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/readyz").status_code == 200
        except httpx2.TransportError:
            return False

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", int(self.url.rpartition(":")[2])), SECONDS)

    def answers(self) -> bool:
        return httpx2.post(f"{self.url}/v1/classify", json=QUESTION, timeout=SECONDS).status_code == 200

    def stop(self) -> int:
        self.fork.send_signal(signal.SIGTERM)
        self.fork.communicate()
        return self.fork.returncode


def wait_for(found, seconds: float = SECONDS):
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return value


@pytest.fixture(scope="module")
def service(artist) -> Iterator[Service]:
    service = Service(artist, "--timeout", 1, "--max_connections", 20)
    yield service
    assert service.stop() == 128 + signal.SIGTERM


def head(*lines: str) -> bytes:
    return "\r\n".join(
        ["POST /v1/classify HTTP/1.1", "host: x", "content-type: application/json", *lines, "", ""]
    ).encode()


def test_heads_and_bodies_that_never_end_are_cut_off(service):
    with closing(service.connect()) as slow_head, closing(service.connect()) as slow_body:
        slow_head.sendall(b"POST /v1/classify HTTP/1.1\r\nhost: x\r\n")
        slow_body.sendall(head("content-length: 100") + b"{")
        assert slow_head.recv(1000) == b""  # closed
        assert slow_body.recv(1000).startswith(b"HTTP/1.1 408 ")
    assert service.answers()


def test_clients_that_are_killed_and_bytes_that_are_no_request_leave_it_running(service):
    body = json.dumps(QUESTION).encode()
    for sent in (
        b"",
        head("content-length: 100"),
        head(f"content-length: {len(body)}") + body,
        b"\x16\x03\x01\x02\x00" * 99,
    ):
        connection = service.connect()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closes with a reset
        connection.sendall(sent)
        connection.close()
    with closing(service.connect()) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000 + b"\r\n\r\n")
        assert b" 400 " in connection.recv(1000).splitlines()[0]
    assert service.answers()
    assert not [line for line in service.log() if "traceback" in line]


def test_connections_beyond_the_limit_are_refused_in_words(service):
    held = [service.connect() for _ in range(20)]
    with closing(service.connect()) as refused:
        answer = b""
        while part := refused.recv(10_000):
            answer += part
    assert answer.startswith(b"HTTP/1.1 503 ") and b"application/problem+json" in answer
    assert b"too many connections are open" in answer and b"retry-after: " in answer
    for connection in held:
        connection.close()
    wait_for(service.is_ready)


def test_every_request_of_the_guide_is_answered(service, tmp_path, grey_images, monkeypatch):
    if not shutil.which("curl"):
        pytest.skip("there is no curl")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.png").write_bytes(png(grey_images[0]))
    guide = (ROOT / "docs/how_to/serve.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^curl .+", guide, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        command = command.replace("http://127.0.0.1:8000", service.url)
        done = subprocess.run(
            ["bash", "-c", f"{command} --fail --silent"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0 and done.stdout, command


def test_sigterm_finishes_what_was_taken_and_refuses_the_rest(artist):
    service = Service(artist, "--timeout", SECONDS)
    question = {"class": "cat", "num_samples": 8, "condition": "likelihood", "num_candidates": 128}
    body = json.dumps(question).encode()
    with closing(service.connect()) as connection:
        asked = head(f"content-length: {len(body)}").replace(b"classify", b"generate") + body
        connection.sendall(asked)
        wait_for(lambda: "imagelm_waiting_requests 1.0" in httpx2.get(f"{service.url}/metrics").text)
        service.fork.send_signal(signal.SIGTERM)
        answer = b""
        while part := connection.recv(100_000):
            answer += part
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.count(b'"sample":') == 8
    service.fork.communicate()
    assert service.fork.returncode == 128 + signal.SIGTERM
    with pytest.raises(ConnectionRefusedError):
        service.connect()
    assert not [line for line in service.log() if line["level"] == "error"]


def test_an_address_that_is_taken_and_a_short_key_are_one_line(artist):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("-m", "imagelm", "serve", "--model", artist, "--port", port)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == f"error: --host 127.0.0.1 --port {port} can't be used: Address already in use; choose another one\n"
    )
    done = run("-m", "imagelm", "serve", "--model", artist, IMAGELM_API_KEY="short")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "at least 16" in done.stderr


def test_a_missing_library_is_one_line_that_installs_it(artist):
    code = (
        "import sys, importlib.util as util, runpy\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'uvicorn' else find(name, *rest)\n"
        "sys.argv = ['imagelm', 'serve', '--model', 'm']\n"
        "runpy.run_module('imagelm', run_name='__main__')"
    )
    done = run("-c", code)
    said = 'error: serving needs uvicorn, which isn\'t installed: pip install "imagelm[serve]"\n'
    assert done.returncode == 2 and done.stderr.endswith(said)


@pytest.mark.slow
def test_a_thousand_connections_are_answered(artist):
    service = Service(artist)
    body = json.dumps(QUESTION).encode()
    asked = head(f"content-length: {len(body)}") + body
    connections = [service.connect() for _ in range(1000)]
    for connection in connections:
        connection.sendall(asked)
    codes = [connection.recv(10_000)[9:12] for connection in connections]
    for connection in connections:
        connection.close()
    assert set(codes) <= {b"200", b"429"} and codes.count(b"200") >= 256
    assert service.answers()
    assert service.stop() == 128 + signal.SIGTERM
