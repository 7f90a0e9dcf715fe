"""Contents: the unmodified client downloads what it uploaded, and false uploads are refused."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationCopy as Copy
from huggingface_hub import CommitOperationDelete as Delete
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError

from testing.local_hub import ALICE, LocalHub
from testing.local_hub.pushing import CONTENT, SMALL, THING, WEIGHTS, download, push
from tests.conftest import ROOT
from tests.docs.documents import read


def test_the_example_of_the_readme_passes(online: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.chdir(ROOT)
    (example,) = read(ROOT / "testing/local_hub/README.md").blocks("python")
    names: dict = {}
    exec(compile(example, "example", "exec"), names)
    names["test_push"](tmp_path)


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_pushed_files_are_downloaded_unchanged(hub: LocalHub, either_api: HfApi, tmp_path: Path, kind: str):
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


def test_the_tree_lists_sizes_and_ids_of_git_and_lfs(api: HfApi, thing: str, tmp_path: Path):
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


def test_existing_content_is_not_sent_again(hub: LocalHub, either_api: HfApi):
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


def test_a_folder_goes_up_and_comes_down(hub: LocalHub, either_api: HfApi, tmp_path: Path):
    api = either_api
    api.create_repo(THING)
    push(api, {"old.bin": b"\0", "README.md": b"old"})
    for path, data in CONTENT.items():
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).write_bytes(data)
    up = {"repo_id": THING, "folder_path": tmp_path / "in", "delete_patterns": "*"}
    assert api.upload_folder(**up, create_pr=True).pr_url == f"{hub.endpoint}/{THING}/discussions/1"
    assert hub.repo(THING).files("refs/pr/1") == CONTENT | {".gitattributes": hub.repo(THING).read(".gitattributes")}
    assert hub.repo(THING).read("README.md") == b"old"
    commit = api.upload_folder(**up)
    api.snapshot_download(THING, revision=commit.oid, local_dir=tmp_path / "out")
    assert {path: (tmp_path / "out" / path).read_bytes() for path in CONTENT} == CONTENT
    assert not (tmp_path / "out" / "old.bin").exists()


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


def test_files_that_git_ignores_are_not_sent(hub: LocalHub, api: HfApi):
    api.create_repo(THING)
    push(api, {".gitignore": b"# no logs\n*.log\nscratch/\n", "a.log": b"x", "scratch/b.txt": b"x", "kept.txt": b"x"})
    assert set(hub.repo(THING).files()) == {".gitattributes", ".gitignore", "kept.txt"}


def test_contents_that_differ_from_the_announced_ones_are_refused(hub: LocalHub, api: HfApi, thing: str):
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
