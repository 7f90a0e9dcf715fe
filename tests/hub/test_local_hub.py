"""The server is what its client takes it for: the unmodified client finds on it what it put there."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import httpx2
import numpy as np
import pytest
from huggingface_hub import CommitOperationAdd as Add
from huggingface_hub import CommitOperationCopy as Copy
from huggingface_hub import CommitOperationDelete as Delete
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub import ALICE, ALICE_ALONE, ALICE_READS, BOB, LocalHub

THING = "alice/thing"
WEIGHTS = np.random.default_rng(0).bytes(300_000) + bytes(range(256)) * 400
SMALL = {
    "README.md": b"---\nlicense: mit\n---\n# A thing\n",
    "empty.txt": b"",
    "ein ordner/stück 1.txt": "Größe".encode(),
}
CONTENT = SMALL | {"model.safetensors": WEIGHTS, "plots/curve": b"\x89PNG\0\xff"}


def push(api: HfApi, content: dict[str, bytes], repo_id: str = THING, **options):
    operations = [Add(path, data) for path, data in content.items()]
    return api.create_commit(repo_id, operations, **{"commit_message": "Push"} | options)


def download(api: HfApi, path: str, home: Path, repo_id: str = THING, **options) -> bytes:
    token = options.pop("token", api.token)
    file = hf_hub_download(repo_id, path, endpoint=api.endpoint, token=token, cache_dir=home, **options)
    return Path(file).read_bytes()


@pytest.fixture
def thing(api: HfApi) -> str:
    """The commit of a model repository with `CONTENT`."""
    api.create_repo(THING)
    return push(api, CONTENT).oid


def status(error: pytest.ExceptionInfo) -> int:
    return error.value.response.status_code


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_what_is_pushed_comes_back(hub: LocalHub, either_api: HfApi, tmp_path: Path, kind: str):
    api = either_api
    url = api.create_repo(THING, repo_type=kind, space_sdk="gradio" if kind == "space" else None)
    assert (url.repo_id, url.repo_type) == (THING, kind)
    before = {path: hub.repo(THING, kind).read(path) for path in api.list_repo_files(THING, repo_type=kind)}
    content = CONTENT | ({"README.md": b"---\nsdk: gradio\n---\n"} if kind == "space" else {})
    commit = push(api, content, repo_type=kind)
    for path, data in content.items():
        assert download(api, path, tmp_path, repo_type=kind, revision=commit.oid) == data
    assert hub.repo(THING, kind).files() == before | content
    assert api.repo_info(THING, repo_type=kind).sha == commit.oid
    assert set(api.list_repo_files(THING, repo_type=kind)) == {*before, *content}


def test_the_tree_tells_sizes_and_ids_as_git_and_lfs_have_them(api: HfApi, thing: str, tmp_path: Path):
    found = {entry.path: entry for entry in api.list_repo_tree(THING, recursive=True, expand=True)}
    assert set(found) == {".gitattributes", "ein ordner", "plots", *CONTENT}
    (tmp_path / "file").write_bytes(SMALL["README.md"])
    git = subprocess.run(["git", "hash-object", tmp_path / "file"], capture_output=True, text=True, check=True)
    assert found["README.md"].blob_id == git.stdout.strip()
    weights = found["model.safetensors"]
    assert (weights.size, weights.lfs.sha256) == (len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    assert (weights.last_commit.oid, weights.last_commit.title) == (thing, "Push")
    assert found[".gitattributes"].last_commit.title == "initial commit"
    raw = httpx2.get(f"{api.endpoint}/{THING}/raw/main/model.safetensors")
    assert f"oid sha256:{weights.lfs.sha256}\nsize {weights.size}\n" in raw.text
    assert weights.lfs.pointer_size == len(raw.content)
    one, two = api.get_paths_info(THING, ["plots", "ein ordner/stück 1.txt", "none"])
    assert (one.path, two.size) == ("plots", len(SMALL["ein ordner/stück 1.txt"]))
    assert [entry.path for entry in api.list_repo_tree(THING, "plots")] == ["plots/curve"]


def test_binary_and_large_files_go_by_lfs_and_text_in_the_commit(hub: LocalHub, api: HfApi, thing: str):
    files = hub.repo(THING).commit().files
    assert {path for path, entry in files.items() if entry.lfs} == {"model.safetensors", "plots/curve"}
    assert hub.uploaded_bytes() == len(WEIGHTS) + len(CONTENT["plots/curve"])


def test_a_large_file_goes_in_parts(online: None, lfs: None, tmp_path: Path):
    with LocalHub(tmp_path / "hub", part_bytes=100_000) as hub:
        api = HfApi(endpoint=hub.endpoint, token=ALICE.secret)
        api.create_repo(THING)
        push(api, CONTENT)
        parts = [one.body_bytes for one in hub.uploads() if one.body_bytes > 1000]
        assert parts == [100_000] * 4 + [len(WEIGHTS) - 400_000] or parts == [100_000] * 4 + [2_400]
        assert hub.repo(THING).read("model.safetensors") == WEIGHTS
        assert not list((tmp_path / "hub" / "partial").iterdir())


def test_what_is_there_is_not_sent_again(hub: LocalHub, either_api: HfApi):
    api = either_api
    api.create_repo(THING)
    first, sent = push(api, CONTENT).oid, hub.uploaded_bytes()
    assert push(api, CONTENT).oid == first
    push(api, CONTENT | {"README.md": b"# Other\n"})
    push(api, {"copy.safetensors": WEIGHTS})
    assert hub.uploaded_bytes() == sent >= len(WEIGHTS) - 102_400  # Xet compresses the part that repeats
    assert len(hub.repo(THING).history()) == 4


def test_a_cold_client_finds_chunks_that_are_there_by_xet(hub: LocalHub, tmp_path: Path):
    code = "import sys, huggingface_hub as h; a = h.HfApi(); a.create_repo('alice/thing', exist_ok=True);"
    code += "a.upload_file(path_or_fileobj=sys.argv[1], path_in_repo=sys.argv[2], repo_id='alice/thing')"
    (tmp_path / "weights").write_bytes(WEIGHTS)
    sent = []
    for name in ("a.bin", "b.bin"):
        done = hub.client(code, tmp_path / "weights", name, home=tmp_path / name)
        assert done.returncode == 0, done.stderr
        sent.append(hub.uploaded_bytes())
    assert sent[0] == sent[1] > 0
    assert hub.repo(THING).read("b.bin") == WEIGHTS


def test_ranges_are_served(api: HfApi, thing: str):
    for path, data in (("README.md", SMALL["README.md"]), ("model.safetensors", WEIGHTS)):
        url = f"{api.endpoint}/{THING}/resolve/main/{path}"
        for words, part in (("3-9", slice(3, 10)), ("20-", slice(20, None)), ("-5", slice(-5, None))):
            answer = httpx2.get(url, headers={"Range": f"bytes={words}"}, follow_redirects=True)
            assert (answer.status_code, answer.content) == (206, data[part])
        answer = httpx2.get(url, headers={"Range": f"bytes={len(data)}-"}, follow_redirects=True)
        assert answer.status_code == 416


def test_a_large_file_lies_elsewhere_behind_a_signed_link(hub: LocalHub, api: HfApi, thing: str):
    head = httpx2.head(f"{api.endpoint}/{THING}/resolve/main/model.safetensors")
    assert head.status_code == 302 and head.headers["X-Repo-Commit"] == thing
    assert head.headers["X-Linked-Etag"] == f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    assert head.headers["X-Linked-Size"] == str(len(WEIGHTS))
    link = head.headers["Location"]
    assert not link.startswith(hub.endpoint) and httpx2.get(link).content == WEIGHTS
    assert httpx2.get(link[:-1] + ("0" if link[-1] != "0" else "1")).status_code == 403


def test_versions_are_found_by_branch_tag_and_commit(hub: LocalHub, api: HfApi, thing: str, tmp_path: Path):
    api.create_tag(THING, tag="v1.0", tag_message="first")
    api.create_branch(THING, branch="try/this", revision=thing)
    second = push(api, {"README.md": b"second"}, revision="try/this").oid
    third = push(api, {"README.md": b"third"}).oid
    expected = {"v1.0": SMALL["README.md"], thing: SMALL["README.md"], "try/this": b"second", second[:8]: b"second"}
    for revision, data in (expected | {"main": b"third", third: b"third"}).items():
        assert download(api, "README.md", tmp_path, revision=revision) == data
    refs = api.list_repo_refs(THING)
    assert {branch.name: branch.target_commit for branch in refs.branches} == {"main": third, "try/this": second}
    assert [(tag.ref, tag.target_commit) for tag in refs.tags] == [("refs/tags/v1.0", thing)]
    titles = [commit.title for commit in api.list_repo_commits(THING)]
    assert titles == ["Push", "Push", "initial commit"]
    with pytest.raises(HfHubHTTPError) as error:
        api.create_tag(THING, tag="v1.0")
    assert status(error) == 409
    api.create_tag(THING, tag="v1.0", exist_ok=True)
    api.delete_tag(THING, tag="v1.0")
    api.delete_branch(THING, branch="try/this")
    for revision in ("v1.0", "try/this", "f" * 40):
        with pytest.raises(RevisionNotFoundError):
            api.repo_info(THING, revision=revision)
    with pytest.raises(EntryNotFoundError):
        download(api, "none.txt", tmp_path)
    api.super_squash_history(THING, commit_message="One")
    assert [commit.title for commit in api.list_repo_commits(THING)] == ["One"]


def test_a_pull_request_waits_beside_main_until_it_is_merged(hub: LocalHub, either_api: HfApi, tmp_path: Path):
    api, bob = either_api, HfApi(endpoint=hub.endpoint, token=BOB.secret)
    api.create_repo(THING)
    push(api, SMALL)
    opened = push(bob, {"model.safetensors": WEIGHTS, "README.md": b"better"}, create_pr=True)
    assert opened.pr_revision == "refs/pr/1"
    assert "model.safetensors" not in api.list_repo_files(THING)
    assert download(api, "model.safetensors", tmp_path, revision="refs/pr/1") == WEIGHTS
    push(bob, {"more.txt": b"more"}, revision="refs/pr/1")
    hub.commit(THING, {"meanwhile.txt": b"x"})
    assert [ref.name for ref in api.list_repo_refs(THING, include_pull_requests=True).pull_requests] == ["1"]
    api.comment_discussion(THING, 1, "Thanks")
    details = api.get_discussion_details(THING, 1)
    assert (details.author, details.status, details.target_branch) == ("bob", "open", "refs/heads/main")
    assert [event.type for event in details.events] == ["comment", "commit", "commit", "comment"]
    with pytest.raises(HfHubHTTPError) as error:
        bob.merge_pull_request(THING, 1)
    assert status(error) == 403
    api.merge_pull_request(THING, 1)
    assert api.get_discussion_details(THING, 1).status == "merged"
    files = hub.repo(THING).files()
    assert files.keys() >= {"meanwhile.txt", "more.txt"} and files["README.md"] == b"better"
    draft = api.create_pull_request(THING, title="Draft")
    assert (draft.num, draft.status, draft.git_reference) == (2, "draft", "refs/pr/2")
    assert api.change_discussion_status(THING, 2, "closed").new_status == "closed"
    assert [one.num for one in api.get_repo_discussions(THING)] == [2, 1]


def test_files_are_deleted_and_copied_in_one_commit(hub: LocalHub, either_api: HfApi):
    api = either_api
    for repo_id in (THING, "acme/copy"):
        api.create_repo(repo_id)
    push(api, CONTENT)
    sent = hub.uploaded_bytes()
    changes = [
        Delete("empty.txt"),
        Delete("plots/"),
        Copy("model.safetensors", "old/model.safetensors"),
        Copy("README.md", "old/README.md"),
    ]
    api.create_commit(THING, changes, commit_message="Rearranged")
    files = hub.repo(THING).files()
    assert set(files) == {".gitattributes", *CONTENT, "old/model.safetensors", "old/README.md"} - {
        "empty.txt",
        "plots/curve",
    }
    assert files["old/model.safetensors"] == WEIGHTS and files["old/README.md"] == SMALL["README.md"]
    if hub.repo(THING).commit().files["model.safetensors"].xet:
        taken = Copy("model.safetensors", "model.safetensors", src_repo_id=THING, src_repo_type="model")
        api.create_commit("acme/copy", [taken], commit_message="Taken over")
        assert hub.repo("acme/copy").read("model.safetensors") == WEIGHTS
    assert hub.uploaded_bytes() == sent
    with pytest.raises(EntryNotFoundError, match="doesn't exist"):
        api.create_commit(THING, [Delete("none.txt")], commit_message="No")


def test_a_commit_on_a_stale_parent_is_refused(hub: LocalHub, api: HfApi, thing: str):
    newer = hub.commit(THING, {"bob.txt": b"first"})
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        push(api, {"a.txt": b"late"}, parent_commit=thing)
    assert status(error) == 412 and hub.repo(THING).sha() == newer
    push(api, {"a.txt": b"in time"}, parent_commit=newer)


def test_long_lists_come_in_pages(hub: LocalHub, api: HfApi, thing: str):
    for number in range(60):
        hub.commit(THING, {"n.txt": b"%d" % number})
    hub.commit(THING, {f"many/{number:04}.txt": b"x" for number in range(1100)})
    assert len(list(api.list_repo_tree(THING, "many"))) == 1100
    assert len(api.list_repo_commits(THING)) == 63
    assert len(hub.asked("/tree/")) == 2 and len(hub.asked("/commits/")) == 2


def test_what_git_ignores_is_not_sent(hub: LocalHub, api: HfApi):
    api.create_repo(THING)
    push(api, {".gitignore": b"# no logs\n*.log\nscratch/\n", "a.log": b"x", "scratch/b.txt": b"x", "kept.txt": b"x"})
    assert set(hub.repo(THING).files()) == {".gitattributes", ".gitignore", "kept.txt"}


def test_every_token_may_do_what_it_says_and_no_more(hub: LocalHub, api: HfApi, thing: str):
    def client(token) -> HfApi:
        return HfApi(endpoint=hub.endpoint, token=token if isinstance(token, str | bool) else token.secret)

    assert [org["name"] for org in api.whoami()["orgs"]] == ["acme"]
    assert api.whoami()["auth"]["accessToken"]["role"] == "write"
    assert client(ALICE_READS).whoami()["auth"]["accessToken"]["role"] == "read"
    for token, expected in ((ALICE_READS, 403), (BOB, 403), (False, 401), ("hf_unknown", 401)):
        with pytest.raises(HfHubHTTPError) as error:
            push(client(token), {"a.txt": b"no"})
        assert status(error) == expected
        with pytest.raises(HfHubHTTPError) as error:
            client(token).create_repo("alice/other")
        assert status(error) == expected
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        client("hf_unknown").whoami()
    api.create_repo("acme/ours")
    push(client(ALICE_ALONE), {"a.txt": b"yes"})
    with pytest.raises(HfHubHTTPError) as error:
        push(client(ALICE_ALONE), {"a.txt": b"no"}, "acme/ours")
    assert status(error) == 403
    api.auth_check(THING, write=True)
    with pytest.raises(HfHubHTTPError):
        client(BOB).auth_check(THING, write=True)


def test_a_private_repository_is_hidden_from_others(hub: LocalHub, api: HfApi, tmp_path: Path):
    api.create_repo(THING, private=True)
    push(api, CONTENT)
    assert download(api, "model.safetensors", tmp_path / "alice") == WEIGHTS
    assert api.repo_info(THING).private
    others = [HfApi(endpoint=hub.endpoint, token=token) for token in (BOB.secret, False)]
    for other in others:
        for call in (other.repo_info, other.list_repo_files, other.list_repo_refs):
            with pytest.raises(RepositoryNotFoundError):
                call(THING)
        with pytest.raises(RepositoryNotFoundError):
            download(other, "README.md", tmp_path / "others")
        assert not list(other.list_models(author="alice"))
    api.update_repo_settings(THING, private=False, gated="manual")
    for other in others:
        assert other.repo_info(THING).gated == "manual"
        with pytest.raises(GatedRepoError):
            download(other, "README.md", tmp_path / "others")
    api.update_repo_settings(THING, gated=False)
    assert download(others[1], "README.md", tmp_path / "others") == SMALL["README.md"]
    assert [model.id for model in others[1].list_models(author="alice")] == [THING]


def test_repositories_are_made_once_moved_and_deleted(hub: LocalHub, api: HfApi, thing: str, tmp_path: Path):
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(THING)
    assert status(error) == 409
    assert api.create_repo(THING, exist_ok=True).repo_id == THING
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo("nobody/thing")
    assert status(error) == 403
    api.move_repo(THING, "acme/thing")
    assert api.repo_info("acme/thing").sha == api.repo_info(THING).sha == thing
    assert download(api, "model.safetensors", tmp_path) == WEIGHTS
    api.delete_repo("acme/thing")
    for repo_id in ("acme/thing", THING):
        with pytest.raises(RepositoryNotFoundError):
            api.repo_info(repo_id)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("acme/thing")
    api.delete_repo("acme/thing", missing_ok=True)


def test_the_card_is_checked_and_read(hub: LocalHub, api: HfApi, thing: str):
    results = [
        {"task": {"type": "t"}, "dataset": {"type": "d", "name": "D"}, "metrics": [{"type": "acc", "value": 0.5}]}
    ]
    card = "---\nlicense: mit\ntags: [one]\npipeline_tag: text-generation\nmodel-index: %s\n---\n"
    index = [{"name": "m", "results": results}]
    evaluated = b"- dataset: {id: cais/hle, task_id: default}\n  value: 20.9\n"
    push(api, {"README.md": (card % index).encode(), ".eval_results/hle.yaml": evaluated})
    info = api.model_info(THING)
    assert (info.card_data.license, info.tags, info.pipeline_tag) == ("mit", ["one", "license:mit"], "text-generation")
    assert info.card_data.eval_results[0].metric_value == 0.5
    assert info.eval_results[0].value == 20.9
    for bad in ("---\n: [\n---\n", "---\ntags: [1]\n---\n", card % [{"name": "m", "results": [{}]}]):
        with pytest.raises(ValueError, match="Invalid metadata"):
            push(api, {"README.md": bad.encode()})
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        push(api, {"README.md": b"# no metadata\n"})


def test_a_space_keeps_its_settings(api: HfApi):
    api.create_repo(THING, repo_type="space", space_sdk="gradio")
    assert api.get_space_runtime(THING).stage == "NO_APP_FILE"
    push(api, {"app.py": b"print()\n"}, repo_type="space")
    assert api.get_space_runtime(THING).stage == "BUILDING"
    api.add_space_variable(THING, "A", "1")
    api.add_space_secret(THING, "S", "hidden")
    assert api.get_space_variables(THING)["A"].value == "1"
    assert set(api.get_space_secrets(THING)) == {"S"}
    api.delete_space_secret(THING, "S")
    assert not api.get_space_secrets(THING)
    assert api.pause_space(THING).stage == "PAUSED"


def test_contents_that_are_not_what_was_announced_are_refused(hub: LocalHub, api: HfApi, thing: str):
    headers = {"Authorization": f"Bearer {ALICE.secret}"}
    right = {"oid": hashlib.sha256(b"right").hexdigest(), "size": 5}

    def post(path: str, body: dict | bytes) -> httpx2.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx2.post(f"{api.endpoint}{path}", content=content, headers=headers)

    def commit(key: str, value: dict, repo_id: str = THING) -> httpx2.Response:
        lines = ({"key": "header", "value": {"summary": "s"}}, {"key": key, "value": value})
        return post(f"/api/models/{repo_id}/commit/main", "\n".join(map(json.dumps, lines)).encode())

    batch = post(f"/{THING}.git/info/lfs/objects/batch", {"operation": "upload", "objects": [right]}).json()
    link = batch["objects"][0]["actions"]["upload"]["href"]
    for wrong in (b"wrong", b"righ", b"right!"):
        assert httpx2.put(link, content=wrong).status_code == 400
    assert post(f"/{THING}.git/info/lfs/objects/verify", right).status_code == 404
    large = {"path": "a.bin", "algo": "sha256"} | right
    for key, value in (
        ("lfsFile", large),
        ("file", {"path": "../a.txt", "content": "eA==", "encoding": "base64"}),
        ("file", {"path": "README.md/a.txt", "content": "eA==", "encoding": "base64"}),
        ("file", {"path": "a.txt", "content": "no base64", "encoding": "base64"}),
        ("file", {"path": "a.txt", "content": "A" * 14_000_000, "encoding": "base64"}),
        ("unknown", {"path": "a.txt"}),
    ):
        assert commit(key, value).status_code == 400
    assert hub.repo(THING).sha() == thing
    assert httpx2.put(link, content=b"right").status_code == 200
    assert commit("lfsFile", large | {"size": 6}).status_code == 400
    assert commit("lfsFile", large).status_code == 200
    api.create_repo("acme/other")
    assert "does not exist" in commit("lfsFile", large, "acme/other").json()["error"]


def test_a_server_started_again_has_all_that_was_committed(online: None, lfs: None, tmp_path: Path):
    with LocalHub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.endpoint, token=ALICE.secret)
        api.create_repo(THING)
        oid = push(api, CONTENT).oid
    with LocalHub(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.endpoint, token=ALICE.secret)
        assert api.repo_info(THING).sha == oid
        assert download(api, "model.safetensors", tmp_path / "home") == WEIGHTS
        push(api, CONTENT)
        assert not hub.uploads()
