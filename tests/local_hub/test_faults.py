"""Every fault happens as requested, and none leaves an incomplete version."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx2
import numpy as np
import pytest
from huggingface_hub import CommitInfo, HfApi, constants, hf_hub_download
from huggingface_hub import CommitOperationAdd as Add
from huggingface_hub.errors import HfHubHTTPError

from testing.local_hub import ALICE, LocalHub

THING = "alice/thing"
FAILURES = (HfHubHTTPError, httpx2.TransportError, RuntimeError, OSError)


def content_of(version: int) -> dict[str, bytes]:
    rng = np.random.default_rng(version)
    return {"model.safetensors": rng.bytes(200_000), "other.bin": rng.bytes(30_000), "config.json": b"%d" % version}


def push(api: HfApi, version: int, repo_id: str = THING, **options) -> CommitInfo:
    operations = [Add(path, data) for path, data in content_of(version).items()]
    return api.create_commit(repo_id, operations, **{"commit_message": f"Version {version}"} | options)


def version(hub: LocalHub, repo_id: str = THING) -> int:
    """Which version main holds; all its files must be of this one."""
    files = hub.repo(repo_id).files()
    found = int(files["config.json"])
    assert {path: files[path] for path in content_of(found)} == content_of(found)
    return found


@pytest.fixture
def first(either_api: HfApi) -> HfApi:
    """A client by LFS and by Xet, and a repository that holds version 0."""
    either_api.create_repo(THING)
    push(either_api, 0)
    return either_api


def test_an_upload_cut_anywhere_leaves_the_old_version_and_is_completed_by_the_next(hub: LocalHub, first: HfApi):
    before = sum(one.body_bytes for one in hub.requests)
    push(first, 1)
    total = sum(one.body_bytes for one in hub.requests) - before
    for number, after in enumerate(np.linspace(0, total - 1, 10).astype(int), start=2):
        start = len(hub.requests)
        hub.faults.cut_upload(int(after))
        with pytest.raises(FAILURES):
            push(first, number)
        assert sum(one.body_bytes for one in hub.requests[start:]) == after
        assert any(one.cut for one in hub.requests[start:])
        assert version(hub) == number - 1
        hub.faults.clear()
        push(first, number)
        assert version(hub) == number
        assert not hub.sent_twice()
    assert not list((hub.store.folder / "partial").iterdir())


def test_the_client_recovers_from_a_single_cut(hub: LocalHub, first: HfApi):
    hub.faults.cut_upload(after=50_000, for_ever=False)
    push(first, 1)
    assert version(hub) == 1
    assert [one.cut for one in hub.uploads()].count(True) == 1


def test_a_commit_whose_answer_is_lost_is_there(hub: LocalHub, first: HfApi):
    hub.faults.lose_answer("/commit/")
    with pytest.raises(httpx2.TransportError):
        push(first, 1)
    assert version(hub) == 1
    sent, commits = hub.uploaded_bytes(), len(hub.repo(THING).history())
    push(first, 1)
    assert (hub.uploaded_bytes(), len(hub.repo(THING).history())) == (sent, commits)


def test_a_server_that_fails_within_a_commit_keeps_the_old_version(hub: LocalHub, first: HfApi):
    hub.crash_in_commit()
    with pytest.raises(httpx2.TransportError):
        push(first, 1)
    assert version(hub) == 0
    push(first, 1)
    assert version(hub) == 1


def test_a_full_disk_is_reported_and_leaves_the_old_version(hub: LocalHub, first: HfApi):
    for free in (0, 100_000, 200_100):
        hub.store.free_bytes = free
        with pytest.raises(FAILURES):
            push(first, 1)
        assert hub.requests[-1].status == 507 or any(one.status == 507 for one in hub.requests[-8:])
        assert version(hub) == 0
    hub.store.free_bytes = None
    push(first, 1)
    assert version(hub) == 1


def test_a_client_may_be_killed_in_the_middle(hub: LocalHub, tmp_path: Path):
    code = "import os, huggingface_hub as h; a = h.HfApi(); a.create_repo('alice/thing');"
    code += "a.upload_file(path_or_fileobj=os.urandom(500_000), path_in_repo='a.bin', repo_id='alice/thing')"
    process = subprocess.Popen([sys.executable, "-c", code], env=hub.environment(tmp_path, xet=False))
    hub.faults.cut_upload(after=100_000, then=process.kill)
    assert process.wait(timeout=60) < 0
    assert list(hub.repo(THING).files()) == [".gitattributes"]


def test_a_status_is_answered_at_the_requested_time_and_as_often_as_requested(hub: LocalHub, api: HfApi):
    api.create_repo(THING)
    hub.faults.answer(429, "/preupload/", headers={"Retry-After": "1"})
    push(api, 0)
    assert [one.status for one in hub.asked("/preupload/")] == [429, 200]
    hub.faults.answer(503, "^/lfs/", at=2, times=2)
    push(api, 1)
    assert sorted(one.status for one in hub.asked("/lfs/", "PUT")[2:]) == [200, 200, 503, 503]
    rule = hub.faults.answer(500, "/commit/", times=None, message="out of order")
    for _ in range(2):
        with pytest.raises(HfHubHTTPError, match="out of order"):
            push(api, 2)
    assert (rule.fired, version(hub)) == (2, 1)
    hub.faults.clear()
    for status in (401, 403):
        hub.faults.answer(status, "/create", "POST")
        with pytest.raises(HfHubHTTPError) as error:
            api.create_repo("alice/more")
        assert error.value.response.status_code == status
    push(api, 2)
    assert version(hub) == 2


def test_someone_else_may_commit_between(hub: LocalHub, first: HfApi):
    parent = hub.repo(THING).sha()
    hub.faults.before(lambda: hub.commit(THING, {"bob.txt": b"first"}), "/commit/")
    with pytest.raises(HfHubHTTPError, match="412"):
        push(first, 1, parent_commit=parent)
    assert version(hub) == 0 and hub.repo(THING).read("bob.txt") == b"first"
    push(first, 1, parent_commit=hub.repo(THING).sha())
    assert version(hub) == 1 and hub.repo(THING).read("bob.txt") == b"first"


def test_an_answer_may_be_delayed(hub: LocalHub, api: HfApi):
    delayed = hub.faults.delay(1, "/whoami", times=1)
    headers = {"Authorization": f"Bearer {ALICE.secret}"}
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.get(f"{hub.endpoint}/api/whoami-v2", headers=headers, timeout=httpx2.Timeout(60, read=0.1))
    assert delayed.fired == 1
    assert api.whoami()["name"] == "alice"


def test_a_broken_download_resumes(hub: LocalHub, api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 20_000)  # the client goes on from whole chunks only
    api.create_repo(THING)
    push(api, 0)
    hub.faults.cut_answer(60_000, "/objects/")
    file = hf_hub_download(THING, "model.safetensors", endpoint=hub.endpoint, cache_dir=tmp_path, token=False)
    assert Path(file).read_bytes() == content_of(0)["model.safetensors"]
    assert [(one.status, one.cut, one.response_bytes) for one in hub.asked("/objects/", "GET")] == [
        (200, True, 60_000),
        (206, False, 140_000),
    ]
