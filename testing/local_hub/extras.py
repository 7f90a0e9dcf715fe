"""Rarely used API: running Spaces, squashed histories, files copied from another repository."""

from __future__ import annotations

from starlette.responses import JSONResponse, Response

from testing.local_hub import access
from testing.local_hub.app import Call
from testing.local_hub.store import HubError, Repo, now


async def squash(call: Call) -> Response:
    """Makes a branch's history one commit."""
    repo, branch, body = call.writable(), call.params["branch"], await call.json()
    if branch not in repo.refs["branches"]:
        raise HubError(404, f"No such branch: {branch}", "RevisionNotFound")
    old = repo.commit(branch)
    new = repo.add_commit([], body.get("message", "Squashed"), "", call.token.user, old.files)
    repo.set_ref("branches", branch, new.id)
    return Response("OK")


async def take_over(call: Call) -> Response:
    """POST on the source: its large files are added to the target without an upload."""
    source, body = call.repo(), await call.json()
    target = _repo(call, body["target"]["type"], body["target"]["name"])
    failed = []
    for file in body["files"]:
        if source.owned(file["sha256"]):
            target.own(file["sha256"], file["xetHash"])
        else:
            failed.append({"sha256": file["sha256"], "error": "not found"})
    return JSONResponse({"failed": failed})


def _repo(call: Call, kind: str, repo_id: str) -> Repo:
    repo = call.store.repo(kind, repo_id)
    if repo is None or not access.may_read(repo, call.token):
        raise access.not_found(call.token)
    access.check_write(repo_id.split("/")[0], call.token)
    return repo


async def runtime(call: Call) -> Response:
    repo = call.repo()
    return JSONResponse(_runtime(repo))


def _runtime(repo: Repo) -> dict:
    """A Space is never built here: it waits for its first file, or for its machine."""
    meta = repo.meta
    stage = meta.get("stage") or ("BUILDING" if "app.py" in repo.commit().files else "NO_APP_FILE")
    hardware = {"current": None, "requested": meta.get("hardware", "cpu-basic")}
    return {"stage": stage, "hardware": hardware, "gcTimeout": 172800, "replicas": {"requested": 1}}


async def set_runtime(call: Call) -> Response:
    """POST hardware {"flavor"}, pause, restart."""
    repo, body = call.writable(), await call.json()
    change = {"hardware": {"hardware": body.get("flavor")}, "pause": {"stage": "PAUSED"}, "restart": {"stage": None}}
    repo.write_meta(repo.meta | change[call.last])
    return JSONResponse(_runtime(repo))


async def variables(call: Call) -> Response:
    """GET, POST and DELETE of a Space's variables and secrets; a secret's value never comes back."""
    repo, name = call.writable(), call.last
    meta = repo.meta
    known = meta.setdefault(name, {})
    if call.request.method != "GET":
        body = await call.json()
        known.pop(body["key"], None)
        if call.request.method == "POST":
            shown = {"value": body["value"]} if name == "variables" else {}
            known[body["key"]] = shown | {"description": body.get("description"), "updatedAt": now()}
        repo.write_meta(meta)
    return JSONResponse({key: value | {"key": key} for key, value in known.items()})
