"""What the tests of the service share: pictures, requests, and an application without a network."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import numpy as np
from PIL import Image
from starlette.applications import Starlette

from tests.conftest import sentence


def png(image: np.ndarray) -> bytes:
    """A grey image, uint8 of shape (height, width, 1), as a file."""
    stream = io.BytesIO()
    Image.fromarray(image[..., 0]).save(stream, "PNG")
    return stream.getvalue()


def in_base64(data: bytes) -> dict[str, str]:
    return {"image": base64.b64encode(data).decode()}


def row(*codes: int) -> dict[str, str]:
    """An input of tokens; it ends with `</IMG>` if it is a whole image."""
    return {"tokens": " ".join(sentence(codes, 0).split()[: len(codes) + 1 + (len(codes) == 4)])}


def clients(app: Starlette) -> httpx2.AsyncClient:
    """A client that calls the application in the event loop that it is used in."""
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://service")


@contextmanager
def held(app: Starlette) -> Iterator[list[int]]:
    """The model computes nothing inside the context; gives the number of jobs in each batch."""
    batcher, leave, sizes = app.state.gate.batcher, threading.Event(), []
    compute = batcher.compute

    def wait(jobs):
        leave.wait()
        sizes.append(len(jobs))
        return compute(jobs)

    batcher.compute = wait
    try:
        yield sizes
    finally:
        batcher.compute = compute
        leave.set()


def problem(response: httpx2.Response, status: int) -> str:
    """Checks that an answer is a problem as RFC 9457 has it; gives its detail."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    content = response.json()
    assert content["status"] == status and content["type"] == "about:blank" and content["title"]
    return content["detail"]
