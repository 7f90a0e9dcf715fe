"""What the service reads and answers, as types that pydantic checks and describes.

One idea: the fields of a request are the options of `imagelm infer`, made from the same dataclasses, and the answers
are the records of its tasks. Names, defaults and meanings are written once.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, create_model
from typing_extensions import TypedDict

from imagelm.inference.arguments import AnswerArguments
from imagelm.inference.generation_arguments import ClassArguments, GenerationArguments
from imagelm.utils.command_line import MAX_SEED, options_of

MAX_TOKEN = 64  # characters
MAX_TOKENS, MAX_INPUTS = 1 << 16, 1024  # of any service; a service's own limits are lower
FORBID = ConfigDict(extra="forbid", allow_inf_nan=False)
SAMPLES_OPTIONS = tuple(entry.name for entry in options_of(GenerationArguments) if entry.name != "keep_percent")
DRAWING_OPTIONS = tuple(name for name in SAMPLES_OPTIONS if name not in ("num_return_sequences", "seed"))


def _as_integer(value: Any) -> Any:
    """5.0 is an integer in JSON Schema, but not for pydantic's strict mode."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _integer(minimum: int | None = None, maximum: int | None = None) -> Any:
    return Annotated[int, Field(ge=minimum, le=maximum), BeforeValidator(_as_integer)]


def _decoded(text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("isn't base64; encode the bytes of the image file") from None
    return text


class TokenInput(BaseModel):
    """A row of tokens, whole or cut, in one string or as a list."""

    model_config = FORBID
    tokens: (
        str | Annotated[list[Annotated[str, Field(max_length=MAX_TOKEN)]], Field(max_length=MAX_TOKENS, fail_fast=True)]
    ) = Field(description="such as `<IMG> <Z_012> … </IMG>`; a class token is not read")


class ImageInput(BaseModel):
    """An image file of any usual format."""

    model_config = FORBID
    image: Annotated[str, AfterValidator(_decoded)] = Field(
        description="the file's bytes in base64",
        json_schema_extra={
            "contentEncoding": "base64",
            "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}(==|[A-Za-z0-9+/]=))?$",
        },
    )


class Request(BaseModel):
    """What all requests for rows share."""

    model_config = FORBID
    inputs: list[TokenInput | ImageInput] = Field(
        min_length=1, max_length=MAX_INPUTS, fail_fast=True, description="one row or image, or several"
    )


def _fields(cls: type, *names: str) -> dict[str, Any]:
    """The options of a dataclass as fields of a request."""
    fields: dict[str, Any] = {}
    for entry in options_of(cls):
        if names and entry.name not in names:
            continue
        limits = entry.field.metadata
        kind: Any = Literal[entry.choices] if entry.choices else entry.type
        if entry.type is int:
            kind = _integer(limits.get("minimum"), limits.get("maximum"))
        flag = entry.flag.removeprefix("--")
        fields[entry.name] = (
            kind | None if entry.default is None else kind,
            Field(
                entry.default,
                alias=None if flag == entry.name else flag,
                description=re.sub(r"--(\w+)", r"`\1`", limits["help"]),
            ),
        )
    return fields


# `seed` differs from the command's: without one, a request may share a batch, and each answer is another one.
SEED: dict[str, Any] = {
    "seed": (
        _integer(0, MAX_SEED) | None,
        Field(None, description="computes the request alone, with the same result as `imagelm infer` with this seed"),
    )
}
PICTURES: dict[str, Any] = {
    "images": (bool, Field(False, description="add each complete image as a PNG in base64; the model needs its codec"))
}

Classify: Any = create_model("Classify", __base__=Request, **_fields(AnswerArguments))
Score: Any = create_model("Score", __base__=Request)
Generate: Any = create_model(
    "Generate",
    __config__=FORBID,
    **_fields(ClassArguments),
    **_fields(GenerationArguments, *DRAWING_OPTIONS),
    **SEED,
    **PICTURES,
)
Complete: Any = create_model(
    "Complete",
    __base__=Request,
    **_fields(GenerationArguments, *DRAWING_OPTIONS, "num_return_sequences", "keep_percent"),
    **SEED,
    **PICTURES,
)


class Choice(BaseModel):
    """A question for the class of a row."""

    model_config = FORBID
    type: Literal["choice"]
    criteria: dict[str, Any] = Field(min_length=1, description="the model's classes in their order; values aren't read")
    instructions: Any = Field(None, description="not read")


class SystemOne(BaseModel):
    """A request as transformers' own server answers it."""

    model_config = FORBID
    model: str | None = Field(None, description="comes back in the answer")
    state: str = Field(description="a row of tokens from `<IMG>` to `</IMG>` or `<CLS>`")
    questions: dict[str, Choice] = Field(min_length=1, max_length=64)


LABELLED = {"label": int, "class": str, "probability": float}
GENERATED = {"tokens": str, "label": int | None, "class": str | None, "probability": float | None}
SCORED = {"log_likelihood": float, "bits_per_token": float, "bits_per_dim": NotRequired[float]}
IMAGE = {"image": NotRequired[str]}


def _record(name: str, fields: dict[str, Any]) -> Any:
    typed_dict: Any = TypedDict  # made from parts, which a checker of types can't follow
    made = typed_dict(name, fields)
    made.__pydantic_config__ = FORBID
    return made


Likely = _record("Likely", LABELLED)
Classified = _record(
    "Classified",
    {"place": str, "tokens": str, "label": int | None, "prediction": int, "class": str, "probability": float}
    | {"top": list[Likely]}  # type: ignore[valid-type]
    | {name: NotRequired[float] for name in SCORED},
)
Scored = _record("Scored", {"place": str, "tokens": str} | SCORED)
Generated = _record("Generated", {"sample": int} | GENERATED | IMAGE)
Completed = _record(
    "Completed",
    {"place": str, "sample": int, "prompt": str, "completion": str, "true_label": int | None}
    | GENERATED
    | {"true_remainder": NotRequired[str]}
    | {name: NotRequired[float] for name in ("token_accuracy", "rouge1", "rouge2", "rougeL")}
    | IMAGE,
)
Decision = _record(
    "Decision", {"type": Literal["choice"], "choice": str, "confidence": float, "probabilities": dict[str, float]}
)
Usage = _record("Usage", {"input_tokens": int, "output_tokens": int})
SystemOneAnswer = _record(
    "SystemOneAnswer",
    {"model": str, "answers": dict[str, Decision], "usage": Usage},  # type: ignore[valid-type]
)
Detail = _record("Detail", {"pointer": str, "detail": str})
Problem = _record(
    "Problem",
    {"type": str, "title": str, "status": int, "detail": str, "errors": NotRequired[list[Detail]]},  # type: ignore[valid-type]
)
Health = _record("Health", {"status": str})


@dataclass(frozen=True)
class Endpoint:
    """A task of the service."""

    request: Any
    record: Any
    text: str
    reads: bool = True  # whether it has inputs, which may be sent as files, too

    @property
    def answer(self) -> Any:
        """The whole answer: a record for each row, in the order of the request."""
        if self.request is SystemOne:
            return self.record
        return _record(f"{self.request.__name__}Answer", {"results": list[self.record]})  # type: ignore[name-defined]


ENDPOINTS = {
    "classify": Endpoint(Classify, Classified, "The class of each row or image, with probabilities."),
    "score": Endpoint(Score, Scored, "The log-likelihood of each row or image."),
    "generate": Endpoint(Generate, Generated, "New images, of one class if asked.", reads=False),
    "complete": Endpoint(Complete, Completed, "Completes rows or images."),
    "systemone": Endpoint(SystemOne, SystemOneAnswer, "The class of a row, as a typed decision.", reads=False),
}
ADAPTERS = {"Problem": TypeAdapter(Problem), "Health": TypeAdapter(Health)}
