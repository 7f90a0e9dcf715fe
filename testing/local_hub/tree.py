"""The contents of a revision: history, tree, paths."""

from __future__ import annotations

import hashlib
import itertools

from starlette.responses import JSONResponse, Response

from testing.local_hub.app import Call
from testing.local_hub.store import Commit, Entry, HubError, Repo, lfs_pointer

PAGE = 1000


async def history(call: Call) -> Response:
    """The commits of a revision, in pages of 50."""
    found = call.repo().history(call.params["revision"])
    items = [
        {
            "id": commit.id,
            "title": commit.title,
            "message": commit.message,
            "authors": [{"user": commit.author}],
            "date": commit.date,
            "formatted": {"title": commit.title, "message": commit.message},
        }
        for commit in found
    ]
    return _page(call, items, 50)


def _page(call: Call, items: list[dict], size: int) -> Response:
    """One page, with a link to the next one."""
    start = int(call.request.query_params.get("cursor", 0))
    headers = {}
    if start + size < len(items):
        following = call.request.url.include_query_params(cursor=start + size)
        headers["Link"] = f'<{following}>; rel="next"'
    return JSONResponse(items[start : start + size], headers=headers)


async def tree(call: Call) -> Response:
    repo, query = call.repo(), call.request.query_params
    commit, path = repo.commit(call.params["revision"]), call.params.get("path", "").strip("/")
    expand = query.get("expand", "").lower() in ("true", "1")
    recursive = query.get("recursive", "").lower() in ("true", "1")
    folders = _folders(commit)
    if path and path not in folders:
        raise HubError(404, f"{path} does not exist on {call.params['revision']!r}", "EntryNotFound")
    inside = [name for name in sorted([*folders, *commit.files]) if not path or name.startswith(path + "/")]
    if not recursive:
        inside = [name for name in inside if "/" not in name.removeprefix(path + "/" if path else "")]
    return _page(call, [_described(repo, commit, name, expand) for name in inside], 50 if expand else PAGE)


async def paths_info(call: Call) -> Response:
    repo, form = call.repo(), await call.form()
    commit = repo.commit(call.params["revision"])
    expand = str(form.get("expand", ["false"])[0]).lower() in ("true", "1")
    known = {*_folders(commit), *commit.files}
    wanted = [path.strip("/") for path in form.get("paths", [])]
    return JSONResponse([_described(repo, commit, path, expand) for path in wanted if path in known])


def _folders(commit: Commit) -> set[str]:
    return {path[:at] for path in commit.files for at in range(len(path)) if path[at] == "/"}


def _described(repo: Repo, commit: Commit, path: str, expand: bool) -> dict:
    entry = commit.files.get(path)
    inside = {name: item.oid for name, item in commit.files.items() if name.startswith(path + "/")}
    if entry is None:
        item: dict = {"type": "directory", "oid": hashlib.sha1(repr(inside).encode()).hexdigest(), "size": 0}
    else:
        item = {"type": "file", "oid": entry.oid, "size": entry.size}
        item |= {"lfs": _lfs(entry)} if entry.lfs else {}
        item |= {"xetHash": entry.xet} if entry.xet else {}
    if expand:
        last = _last_change(repo, commit, path)
        item["lastCommit"] = {"id": last.id, "title": last.title, "date": last.date}
    return item | {"path": path}


def _last_change(repo: Repo, commit: Commit, path: str) -> Commit:
    def content(at: Commit) -> dict:
        return {name: entry for name, entry in at.files.items() if name == path or name.startswith(path + "/")}

    found = repo.history(commit.id)
    for newer, older in itertools.pairwise(found):
        if content(newer) != content(older):
            return newer
    return found[-1]


def _lfs(entry: Entry) -> dict:
    return {"oid": entry.lfs, "size": entry.size, "pointerSize": len(lfs_pointer(entry.lfs, entry.size))}
