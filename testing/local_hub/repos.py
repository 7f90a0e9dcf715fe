"""Repositories and their references: create, move, delete, settings, info, branches, tags."""

from __future__ import annotations

import hashlib
import re

from starlette.responses import JSONResponse, Response

from testing.local_hub import access
from testing.local_hub.app import Call, kind_of
from testing.local_hub.cards import card_data, eval_results
from testing.local_hub.store import Commit, Entry, HubError, Repo, lfs_pointer

NAME = re.compile(r"(?!.*(--|\.\.))[\w-][\w.-]{0,94}[\w-]|\w", re.ASCII)


async def whoami(call: Call) -> Response:
    return JSONResponse(access.whoami(call.token))


async def create(call: Call) -> Response:
    body = await call.json()
    if call.token is None:
        raise HubError(401, "Invalid username or password.")
    kind = body.get("type") or "model"
    kind_of(f"{kind}s")
    namespace, name = body.get("organization") or call.token.user, body.get("name") or ""
    access.check_write(namespace, call.token)
    if not NAME.fullmatch(name) or name.endswith(".git"):
        raise HubError(400, f"Invalid name of a repository: {name!r}")
    if kind == "space" and not body.get("sdk"):
        raise HubError(400, '"sdk" is required for a Space')
    repo_id = f"{namespace}/{name}"
    existing = call.store.repo(kind, repo_id)
    if existing is None:
        private = body.get("visibility") == "private" or bool(body.get("private"))
        repo = call.store.create(kind, repo_id, call.token.user, private=private, sdk=body.get("sdk"))
        return JSONResponse({"url": call.url(repo), "name": repo_id, "id": repo_id})
    answer = {"url": call.url(existing), "name": repo_id, "id": repo_id}
    return JSONResponse(answer | {"error": f"You already created this {kind} repo"}, 409)


async def delete(call: Call) -> Response:
    call.store.delete(_named_in_body(call, await call.json()))
    return Response("OK")


async def move(call: Call) -> Response:
    body = await call.json()
    namespace, _, name = body["fromRepo"].partition("/")
    repo = _named_in_body(call, {"type": body.get("type"), "organization": namespace, "name": name})
    access.check_write(body["toRepo"].split("/")[0], call.token)
    if call.store.repo(repo.kind, body["toRepo"]):
        raise HubError(409, f"{body['toRepo']} exists already")
    call.store.move(repo, body["toRepo"])
    return Response("OK")


def _named_in_body(call: Call, body: dict) -> Repo:
    namespace = body.get("organization") or (call.token.user if call.token else "")
    repo = call.store.repo(body.get("type") or "model", f"{namespace}/{body['name']}")
    if repo is None or not access.may_read(repo, call.token):
        raise access.not_found(call.token)
    access.check_write(namespace, call.token)
    return repo


async def settings(call: Call) -> Response:
    repo, body = call.writable(), await call.json()
    meta = repo.meta
    if "visibility" in body or "private" in body:
        meta["private"] = body.get("visibility") == "private" or bool(body.get("private"))
    if "gated" in body:
        meta["gated"] = body["gated"]
    repo.write_meta(meta)
    return JSONResponse({"private": meta["private"], "gated": meta["gated"]})


async def auth_check(call: Call) -> Response:
    access.check_gate(call.repo(), call.token)
    return Response("OK")


async def auth_check_write(call: Call) -> Response:
    call.writable()
    return Response("OK")


async def info(call: Call) -> Response:
    repo = call.repo()
    answer = _info(repo, repo.commit(call.params.get("revision", "main")))
    query = call.request.query_params
    if not query.get("blobs"):
        answer["siblings"] = [{"rfilename": one["rfilename"]} for one in answer["siblings"]]
    if wanted := query.getlist("expand") + query.getlist("expand[]"):
        answer = {key: answer[key] for key in ("_id", "id", *wanted) if key in answer}
    return JSONResponse(answer)


async def listing(call: Call) -> Response:
    query = call.request.query_params
    found = [repo for repo in call.store.repos(call.kind) if access.may_read(repo, call.token)]
    found = [repo for repo in found if query.get("author") in (None, repo.id.split("/")[0])]
    found = [repo for repo in found if query.get("search", "") in repo.id]
    return JSONResponse([_info(repo, repo.commit()) for repo in found])


def _info(repo: Repo, commit: Commit) -> dict:
    meta, card = repo.meta, card_data(repo, commit)
    tags = [*card.get("tags", []), *(f"license:{card['license']}" for _ in range("license" in card))]
    answer = {
        "_id": hashlib.sha1(repo.id.encode()).hexdigest()[:24],
        "id": repo.id,
        "author": repo.id.split("/")[0],
        "sha": commit.id,
        "lastModified": commit.date,
        "createdAt": meta["created"],
        "private": meta["private"],
        "gated": meta["gated"],
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags,
        "cardData": card or None,
        "siblings": [_sibling(path, entry) for path, entry in commit.files.items()],
        "usedStorage": sum(entry.size for entry in commit.files.values()),
    }
    if repo.kind == "model":
        answer |= {"modelId": repo.id} | {key: card[key] for key in ("library_name", "pipeline_tag") if key in card}
        answer |= {"model-index": card["model-index"]} if "model-index" in card else {}
        answer |= {"evalResults": results} if (results := eval_results(repo, commit)) else {}
    if repo.kind == "space":
        answer |= {"sdk": card.get("sdk", meta.get("sdk"))}
    return answer


def _sibling(path: str, entry: Entry) -> dict:
    sibling = {"rfilename": path, "blobId": entry.oid, "size": entry.size}
    pointer = len(lfs_pointer(entry.lfs, entry.size)) if entry.lfs else 0
    return sibling | ({"lfs": {"sha256": entry.lfs, "size": entry.size, "pointerSize": pointer}} if entry.lfs else {})


async def refs(call: Call) -> Response:
    refs = call.repo().refs

    def described(group: str, prefix: str) -> list[dict]:
        return [
            {"name": name, "ref": f"{prefix}{name}", "targetCommit": sha} for name, sha in sorted(refs[group].items())
        ]

    answer = {"branches": described("branches", "refs/heads/"), "tags": described("tags", "refs/tags/"), "converts": []}
    if call.request.query_params.get("include_prs"):
        answer["pullRequests"] = described("pulls", "refs/pr/")
    return JSONResponse(answer)


async def create_ref(call: Call) -> Response:
    """POST branch/{new} {"startingPoint"} and POST tag/{revision} {"tag"}."""
    repo, body = call.writable(), await call.json()
    group = "branches" if "branch" in call.params else "tags"
    name = call.params["branch"] if group == "branches" else body.get("tag", "")
    start = body.get("startingPoint", "main") if group == "branches" else call.params["tagged"]
    if not name or name.startswith("refs/"):
        raise HubError(400, f"Invalid reference name: {name!r}")
    if name in repo.refs[group]:
        raise HubError(409, f"Reference already exists: {name}")
    repo.set_ref(group, name, repo.commit(start).id)
    return Response(status_code=201)


async def delete_ref(call: Call) -> Response:
    repo = call.writable()
    group = "branches" if "branch" in call.params else "tags"
    name = call.params.get("branch") or call.params["tagged"]
    if name not in repo.refs[group]:
        raise HubError(404, f"No such reference: {name}", "RevisionNotFound")
    if group == "branches" and name == "main":
        raise HubError(403, "The branch main can't be deleted")
    repo.set_ref(group, name, None)
    return Response(status_code=204)
