"""Discussions and pull requests; a pull request's commits are on `refs/pr/N`."""

from __future__ import annotations

import itertools
import json
import uuid

from starlette.responses import JSONResponse, Response

from testing.local_hub import access
from testing.local_hub.app import Call
from testing.local_hub.store import HubError, Repo, now

STATUSES = ("open", "closed", "draft", "merged")


def reserve(repo: Repo) -> int:
    """The next number."""
    return max((item["num"] for item in _all(repo)), default=0) + 1


def open_new(
    repo: Repo, number: int, author: str, title: str, description: str, *, base: str | None, status: str, at: str
) -> None:
    """A discussion, or a pull request onto the commit `base`."""
    item = {
        "num": number,
        "title": title,
        "author": {"name": author},
        "createdAt": at,
        "status": status,
        "isPullRequest": base is not None,
        "repo": {"name": repo.id, "type": repo.kind},
        "events": [_event("comment", author, _text(description)) | {"createdAt": at}],
    }
    if base is not None:
        item |= {"changes": {"base": "refs/heads/main"}, "filesWithConflicts": [], "baseCommit": base}
    _save(repo, item)


async def create(call: Call) -> Response:
    repo, body = call.repo(), await call.json()
    author = access.check_signed_in(call.token).user
    number, pull = reserve(repo), bool(body.get("pullRequest"))
    base, status = (repo.commit().id, "draft") if pull else (None, "open")
    if pull:
        repo.set_ref("pulls", str(number), base)
    description = body.get("description", "")
    open_new(repo, number, author, body["title"], description, base=base, status=status, at=now())
    return JSONResponse({"num": number, "url": f"{call.url(repo)}/discussions/{number}", "pullRequest": pull})


async def listing(call: Call) -> Response:
    repo, query = call.repo(), call.request.query_params
    found = _all(repo)
    if query.get("type") in ("pull_request", "discussion"):
        found = [item for item in found if item["isPullRequest"] == (query["type"] == "pull_request")]
    if query.get("status") in ("open", "closed"):
        is_open = query["status"] == "open"
        found = [item for item in found if (item["status"] in ("open", "draft")) == is_open]
    if "author" in query:
        found = [item for item in found if item["author"]["name"] == query["author"]]
    start = 50 * int(query.get("p", 0))
    return JSONResponse({"discussions": found[start : start + 50], "count": len(found), "start": start})


async def details(call: Call) -> Response:
    repo = call.repo()
    item = _one(repo, call.params["number"])
    if item["isPullRequest"]:
        commits = itertools.takewhile(lambda one: one.id != item["baseCommit"], repo.history(f"refs/pr/{item['num']}"))
        events = [
            {"id": one.id, "type": "commit", "createdAt": one.date, "author": {"name": one.author}}
            | {"data": {"subject": one.title, "oid": one.id}}
            for one in commits
        ]
        item["events"] = sorted(item["events"] + events, key=lambda event: event["createdAt"])
    return JSONResponse(item)


async def comment(call: Call) -> Response:
    repo, body = call.repo(), await call.json()
    author = access.check_signed_in(call.token).user
    item = _one(repo, call.params["number"])
    return _added(repo, item, _event("comment", author, _text(body["comment"])), "newMessage")


async def status(call: Call) -> Response:
    repo, body = call.writable(), await call.json()
    item = _one(repo, call.params["number"])
    if body.get("status") not in STATUSES[:2]:
        raise HubError(400, f"No such status: {body.get('status')!r}")
    item["status"] = body["status"]
    return _added(repo, item, _event("status-change", call.token.user, {"status": body["status"]}), "newStatus")


async def title(call: Call) -> Response:
    repo, body = call.writable(), await call.json()
    item = _one(repo, call.params["number"])
    event = _event("title-change", call.token.user, {"from": item["title"], "to": body["title"]})
    item["title"] = body["title"]
    return _added(repo, item, event, "newTitle")


async def merge(call: Call) -> Response:
    """Puts the files that the pull request changed onto main, as one commit."""
    repo = call.writable()
    item = _one(repo, call.params["number"])
    if not item["isPullRequest"] or item["status"] not in ("open", "draft"):
        raise HubError(400, f"Discussion {item['num']} can't be merged: it is {item['status']}")
    head, main, base = repo.commit(f"refs/pr/{item['num']}"), repo.commit(), repo.commit(item["baseCommit"])
    files = dict(main.files)
    for path in head.files.keys() | base.files.keys():
        if head.files.get(path) == base.files.get(path):
            continue
        if main.files.get(path) != base.files.get(path):
            raise HubError(409, f"{path} was changed on main too")
        files |= {path: head.files[path]} if path in head.files else {}
        if path not in head.files:
            files.pop(path, None)
    text = f"{item['title']} (#{item['num']})"
    merged = repo.add_commit([main.id, head.id], text, "", call.token.user, files)
    repo.set_ref("branches", "main", merged.id)
    item["status"], item["changes"]["mergeCommitId"] = "merged", merged.id
    return _added(repo, item, _event("status-change", call.token.user, {"status": "merged"}), "newStatus")


def _added(repo: Repo, item: dict, event: dict, name: str) -> Response:
    item["events"].append(event)
    _save(repo, item)
    return JSONResponse({name: event})


def _event(kind: str, author: str, data: dict) -> dict:
    return {"id": uuid.uuid4().hex, "type": kind, "createdAt": now(), "author": {"name": author}, "data": data}


def _text(text: str) -> dict:
    return {"edited": False, "hidden": False, "latest": {"raw": text}}


def _all(repo: Repo) -> list[dict]:
    files = (repo.folder / "discussions").glob("*.json")
    return sorted((json.loads(file.read_bytes()) for file in files), key=lambda item: -item["num"])


def _one(repo: Repo, number: str) -> dict:
    found = [item for item in _all(repo) if str(item["num"]) == number]
    if not found:
        raise HubError(404, f"No such discussion: {number}")
    return found[0]


def _save(repo: Repo, item: dict) -> None:
    repo.store.write(repo.folder / "discussions" / f"{item['num']}.json", json.dumps(item).encode())
