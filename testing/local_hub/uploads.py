"""Uploads: the transfer mode of each file, and the commit."""

from __future__ import annotations

import base64
import re

from starlette.responses import JSONResponse, Response

from testing.local_hub import access, commits
from testing.local_hub.app import Call
from testing.local_hub.store import LARGE_SUFFIXES, LARGEST_REGULAR, HubError, Repo


async def preupload(call: Call) -> Response:
    """The transfer mode of each file, and the id of its present version, so that the client can skip equal files."""
    repo, body = call.open_to_upload(call.params["revision"]), await call.json()
    files = repo.commit(call.params["revision"]).files
    answers = []
    for file in body["files"]:
        mode = "lfs" if _is_large(file["path"], base64.b64decode(file["sample"]), file["size"]) else "regular"
        answer = {
            "path": file["path"],
            "uploadMode": mode,
            "shouldIgnore": _ignored(file["path"], body.get("gitIgnore", "")),
        }
        if entry := files.get(file["path"]):
            answer["oid"] = entry.lfs or entry.oid
        answers.append(answer)
    return JSONResponse({"files": answers})


def _is_large(path: str, sample: bytes, size: int) -> bool:
    """By suffix, by size, or binary: git itself takes text only."""
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        binary = error.start < len(sample) - 3  # a character may be cut at the sample's end
    else:
        binary = b"\0" in sample
    return binary or size > LARGEST_REGULAR or any(path.endswith(f".{suffix}") for suffix in LARGE_SUFFIXES)


def _ignored(path: str, gitignore: str) -> bool:
    """By the lines of a .gitignore: names, paths and `*`."""
    lines = [line.strip() for line in gitignore.splitlines()]
    names = [re.escape(line.strip("/")).replace("\\*", "[^/]*") for line in lines if line and line[0] != "#"]
    return any(re.search(f"(^|/){name}($|/)", path) for name in names)


async def commit(call: Call) -> Response:
    """POST commit/{branch or refs/pr/N}, with ?create_pr=1 onto a new pull request."""
    repo, revision = call.repo(), call.params["revision"]
    proposed = bool(call.request.query_params.get("create_pr"))
    group, name = ("pulls", None) if proposed else _target(repo, revision)
    if group == "branches":
        call.writable()
    author = access.check_signed_in(call.token).user
    # All of the body first: nothing may come between reading the parent and replacing the refs.
    body = await call.request.body()
    base = repo.commit(revision)
    answer = {"success": True, "hookOutput": ""}
    if proposed:
        new, number = commits.propose(repo, body, author, base)
        answer["pullRequestUrl"] = f"{call.url(repo)}/discussions/{number}"
    else:
        new = commits.commit(repo, group, name, body, author, base)
    return JSONResponse(answer | {"commitOid": new.id, "commitUrl": f"{call.url(repo)}/commit/{new.id}"})


def _target(repo: Repo, revision: str) -> tuple[str, str]:
    refs = repo.refs
    if revision.startswith("refs/pr/") and revision.removeprefix("refs/pr/") in refs["pulls"]:
        return "pulls", revision.removeprefix("refs/pr/")
    name = revision.removeprefix("refs/heads/")
    if name not in refs["branches"]:
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return "branches", name
