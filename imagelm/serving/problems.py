"""Errors as RFC 9457 problems: one JSON object that says what was found, where, and what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from imagelm.utils.errors import InputError
from imagelm.utils.text import NUM_LISTED, printable, shorten

PROBLEM_JSON = "application/problem+json"
MAX_DETAIL = 2000  # characters
MODELS = ("TokenInput", "ImageInput")  # which pydantic names in the place of an error


class Problem(Exception):
    """An answer that isn't the one that was asked for.

    Args:
        status: HTTP status.
        detail: What was found, where, and what to do.
        errors: Where the request breaks its schema: `pointer` (a JSON pointer) and `detail`.
        headers: Further headers.
    """

    def __init__(
        self, status: int, detail: str, errors: Sequence[dict] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, list(errors), headers

    def response(self) -> Response:
        """The problem as an answer; its title is the status in words, as RFC 9457 asks for `about:blank`."""
        content: dict[str, Any] = {"type": "about:blank", "title": HTTPStatus(self.status).phrase}
        content |= {"status": self.status, "detail": self.detail, **({"errors": self.errors} if self.errors else {})}
        return Response(orjson.dumps(content), self.status, self.headers, PROBLEM_JSON)


def busy(seconds: float, detail: str, status: int = 429) -> Problem:
    """A refusal for now; `seconds` from now a further try makes sense."""
    return Problem(status, detail, headers={"Retry-After": str(max(1, min(60, round(seconds + 0.5))))})


def refused(error: InputError) -> Problem:
    """An error of the library, which names options as on the command line."""
    text = printable(re.sub(r"--(?=[a-z])", "", str(error)), keep="\n")
    return Problem(422, shorten(text, MAX_DETAIL))


def invalid(error: ValidationError) -> Problem:
    """A request that breaks its schema; what it holds isn't repeated."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    errors = [{"pointer": _pointer(one["loc"]), "detail": shorten(printable(one["msg"]), 200)} for one in found]
    first = errors[0]
    detail = f"{first['pointer'] or 'the body'}: {first['detail']}; /openapi.json describes the request"
    return Problem(400, detail, errors[:NUM_LISTED])


async def not_found(request: Request, error: Exception) -> Response:
    """The answer to an unknown path or method."""
    assert isinstance(error, HTTPException)
    detail = "there is no such path" if error.status_code == 404 else f"{error.detail}; see the header Allow"
    return Problem(error.status_code, f"{detail}; /openapi.json lists all", headers=error.headers).response()


def _pointer(place: tuple[int | str, ...]) -> str:
    parts = (str(part).replace("~", "~0").replace("/", "~1") for part in place if part not in MODELS)
    return shorten(printable("".join(f"/{part}" for part in parts)), 200)
