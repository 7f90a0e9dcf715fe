"""Reading a request: its body in pieces under a limit, then JSON or a form, checked against the task's schema."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from imagelm.serving.problems import Problem, invalid
from imagelm.serving.schemas import MAX_INPUTS, Endpoint

JSON, FORM = "application/json", "multipart/form-data"
MAX_FIELDS = 50
IMAGE_FIELD = "image"


class Budget:
    """Bytes of all request bodies that are held at once."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0

    def take(self, count: int) -> bool:
        """Whether `count` more bytes fit; they are counted in any case."""
        self.held += count
        return self.held <= self.limit


async def read_body(request: Request, limit: int, held: list[int], budget: Budget, full: Problem) -> bytes:
    """The body; `held` is told its pieces, which the caller gives back to the budget.

    Raises:
        Problem: It has more than `limit` bytes, or no byte fits into the budget (`full`).
    """
    too_large = Problem(413, f"the body has more than {limit / 2**20:g} MiB; send less at once")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large
        held.append(len(chunk))
        if not budget.take(len(chunk)):
            raise full
        chunks.append(chunk)
    return b"".join(chunks)


def content_type(request: Request, endpoint: Endpoint) -> str:
    """JSON or a form; a Problem for anything else."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    allowed = (JSON, FORM) if endpoint.reads else (JSON,)
    if kind not in allowed:
        raise Problem(415, f"the content type is {kind[:100]!r}; send {' or '.join(allowed)}")
    return kind


def parse_json(body: bytes, endpoint: Endpoint) -> Any:
    """The request in a JSON body; a Problem if it breaks the schema."""
    try:
        return endpoint.request.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise invalid(error) from None


async def parse_form(body: bytes, request: Request, endpoint: Endpoint) -> Any:
    """The request in a form: files named `image`, and options as fields; a Problem if it breaks the schema."""

    async def stream() -> AsyncIterator[bytes]:
        yield body

    try:
        parser = MultiPartParser(request.headers, stream(), max_files=MAX_INPUTS, max_fields=MAX_FIELDS)  # type: ignore[arg-type]
        form = await parser.parse()
    except MultiPartException as error:
        raise Problem(400, f"the form can't be read: {error.message}") from None
    except (KeyError, ValueError) as error:  # such as a header without a boundary
        raise Problem(400, f"the form can't be read: {type(error).__name__}") from None
    values: dict[str, Any] = {"inputs": []}
    names = {field.alias or name for name, field in endpoint.request.model_fields.items()} - {"inputs"}
    try:
        for name, value in form.multi_items():
            if name == IMAGE_FIELD and isinstance(value, UploadFile):
                values["inputs"].append({"image": base64.b64encode(await value.read()).decode()})
            elif name in names and isinstance(value, str):
                values[name] = value
            else:
                raise Problem(
                    400, f"the form has a field {name[:100]!r}; send files named {IMAGE_FIELD!r}, and options"
                )
    finally:
        await form.close()
    try:
        return endpoint.request.model_validate(values)
    except ValidationError as error:
        raise invalid(error) from None
