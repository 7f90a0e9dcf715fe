"""The service's OpenAPI description, made from the types that check the requests."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from imagelm.serving.problems import PROBLEM_JSON
from imagelm.serving.reading import FORM, IMAGE_FIELD, JSON
from imagelm.serving.schemas import ENDPOINTS, MAX_INPUTS, Endpoint, Health, Problem

VERSION = "1"  # of the paths under /v1
REFUSALS = {
    400: "The request breaks its schema.",
    408: "The body didn't arrive in time.",
    413: "The body is too large.",
    415: "Neither JSON nor a form.",
    422: "The model can't use the rows, images or options.",
    429: "Too many requests wait, or come from this address; see Retry-After.",
    500: "An error of the service.",
    503: "The service ends, or the answer took too long; see Retry-After.",
}


def describe(needs_key: bool) -> dict[str, Any]:
    """The description, as JSON; `needs_key` says whether clients must send an API key."""
    types = {"Problem": Problem, "Health": Health}
    for endpoint in ENDPOINTS.values():
        types |= {endpoint.request.__name__: endpoint.request, _answer_name(endpoint): endpoint.answer}
    _, found = TypeAdapter.json_schemas(
        [(name, "validation", TypeAdapter(kind)) for name, kind in types.items()],
        ref_template="#/components/schemas/{model}",
    )
    schemas = found["$defs"]
    paths = {f"/v1/{name}": {"post": _task(name, endpoint, schemas, needs_key)} for name, endpoint in ENDPOINTS.items()}
    health = {"200": _content(JSON, "Health", "It is."), "503": _content(PROBLEM_JSON, "Problem", "It isn't.")}
    paths |= {
        "/healthz": {"get": {"operationId": "healthz", "summary": "Whether the process answers", "responses": health}},
        "/readyz": {"get": {"operationId": "readyz", "summary": "Whether it takes requests", "responses": health}},
        "/metrics": {"get": _metrics(needs_key)},
    }
    components: dict[str, Any] = {"schemas": schemas}
    if needs_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    info = {"title": "imagelm", "version": VERSION, "description": "Images as sentences of tokens."}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": components}


def _answer_name(endpoint: Endpoint) -> str:
    return f"{endpoint.request.__name__}Answer"


def _task(name: str, endpoint: Endpoint, schemas: dict[str, Any], needs_key: bool) -> dict[str, Any]:
    model = endpoint.request.__name__
    content: dict[str, Any] = {JSON: {"schema": {"$ref": f"#/components/schemas/{model}"}}}
    if endpoint.reads:
        options = {key: _in_form(value) for key, value in schemas[model]["properties"].items() if key != "inputs"}
        files = {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "minItems": 1,
            "maxItems": MAX_INPUTS,
        }
        form = {"type": "object", "properties": {IMAGE_FIELD: files, **options}, "required": [IMAGE_FIELD]}
        content[FORM] = {"schema": form | {"additionalProperties": False}}
    responses = {"200": _content(JSON, _answer_name(endpoint), "A record for each row, in the order of the request.")}
    return {
        "operationId": name,
        "summary": endpoint.text,
        "requestBody": {"required": True, "content": content},
        "responses": responses | _refusals(needs_key, *REFUSALS),
        **_security(needs_key),
    }


def _in_form(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of an option in a form, where nothing stands for null: the field is left out."""
    if "anyOf" not in schema:
        return schema
    (given,) = (one for one in schema["anyOf"] if one != {"type": "null"})
    return {name: value for name, value in schema.items() if name not in ("anyOf", "default")} | given


def _metrics(needs_key: bool) -> dict[str, Any]:
    text = {"description": "Prometheus' text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    responses = {"200": text, **_refusals(needs_key)}
    return {"operationId": "metrics", "summary": "Figures", "responses": responses, **_security(needs_key)}


def _refusals(needs_key: bool, *statuses: int) -> dict[str, Any]:
    texts = {401: "The API key is missing or wrong."} if needs_key else {}
    texts |= {status: REFUSALS[status] for status in statuses}
    return {str(status): _content(PROBLEM_JSON, "Problem", text) for status, text in sorted(texts.items())}


def _content(kind: str, schema: str, text: str) -> dict[str, Any]:
    return {"description": text, "content": {kind: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}


def _security(needs_key: bool) -> dict[str, Any]:
    return {"security": [{"key": []}]} if needs_key else {}
