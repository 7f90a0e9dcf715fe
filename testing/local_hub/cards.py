"""A card's metadata as the Hub reads and validates it."""

from __future__ import annotations

import re

import yaml
from starlette.responses import JSONResponse, Response

from testing.local_hub.app import Call
from testing.local_hub.store import Commit, Repo


def card_data(repo: Repo, commit: Commit) -> dict:
    """The metadata at the head of the README, {} if there is none that can be read."""
    entry = commit.files.get("README.md")
    try:
        data = _metadata(repo.content(entry).read_text(encoding="utf-8", errors="replace")) if entry else {}
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}


def _metadata(text: str) -> object:
    block = re.match(r"\s*---\r?\n(.*?)\r?\n?---", text, re.DOTALL)
    return yaml.safe_load(block[1]) if block else None


def eval_results(repo: Repo, commit: Commit) -> list[dict]:
    """The entries of `.eval_results/*.yaml`, the Hub's preferred format of results."""
    results = []
    for path, entry in commit.files.items():
        if not re.fullmatch(r"\.eval_results/[^/]+\.ya?ml", path):
            continue
        try:
            items = yaml.safe_load(repo.content(entry).read_text())
            bad = next(
                (item for item in items if not {"id", "task_id"} <= set(item["dataset"]) or "value" not in item), None
            )
        except (yaml.YAMLError, TypeError, KeyError) as error:
            results.append({"filename": path, "error": f"Malformed: {error}"})
            continue
        if bad is not None:
            results.append({"filename": path, "error": f"dataset.id, dataset.task_id and value are required: {bad}"})
        else:
            results += [{"filename": path, "data": item} for item in items]
    return results


async def validate_yaml(call: Call) -> Response:
    body = await call.json()
    errors, warnings = [], []
    try:
        data = _metadata(body["content"])
    except yaml.YAMLError as error:
        errors.append({"message": f"Invalid YAML: {error}"})
    else:
        if not data:
            warnings.append({"message": "empty or missing yaml metadata in repo card"})
        elif not isinstance(data, dict):
            errors.append({"message": "The metadata must be a mapping"})
        else:
            errors += [{"message": text} for text in card_errors(data, body.get("repoType", "model"))]
    return JSONResponse({"errors": errors, "warnings": warnings}, 400 if errors else 200)


def card_errors(data: dict, kind: str) -> list[str]:
    """The errors of a card's metadata (of the fields that this project's cards use)."""
    errors = []
    for key in ("tags", "datasets", "language", "metrics", "task_categories", "size_categories", "base_model"):
        value = data.get(key, [])
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) and item for item in items):
            errors.append(f'"{key}" must be a string or a list of strings')
    for key in ("license", "library_name", "pipeline_tag", "pretty_name", "title", "sdk"):
        if key in data and not isinstance(data[key], str):
            errors.append(f'"{key}" must be a string')
    for model in data.get("model-index") or []:
        if not isinstance(model, dict) or not model.get("name") or not isinstance(model.get("results"), list):
            errors.append('"model-index[].name" and "model-index[].results" are required')
            continue
        for result in model["results"]:
            if not (result.get("task") or {}).get("type"):
                errors.append('"model-index[].results[].task.type" is required')
            if {"type", "name"} - set(result.get("dataset") or {}):
                errors.append('"model-index[].results[].dataset" needs "type" and "name"')
            if any({"type", "value"} - set(metric) for metric in result.get("metrics") or [{}]):
                errors.append('"model-index[].results[].metrics[]" need "type" and "value"')
    if kind == "space":
        if data.get("sdk") not in ("gradio", "docker", "static", "streamlit"):
            errors.append('"sdk" must be one of gradio, docker, static')
        colours = {None, "red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
        errors += [f'"{key}" must be a colour' for key in ("colorFrom", "colorTo") if data.get(key) not in colours]
        if len(data.get("short_description") or "") > 60:
            errors.append('"short_description" may have 60 characters at most')
    return errors
