"""Pushes that break: the old version stays as it was, and the same command completes the new one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi

from imagelm.hub.arguments import PushArguments
from imagelm.hub.push import push
from imagelm.hub.staged import Staged
from imagelm.hub.upload import look_at, send
from imagelm.utils.errors import HubError, InputError
from testing.local_hub import LocalHub
from tests.hub.common import MODEL, ROWS, content, stored


def test_an_upload_cut_at_ten_points_leaves_the_old_version_and_the_next_run_completes_it(
    hub: LocalHub, either_api: HfApi, staged: Staged, options: PushArguments, tmp_path: Path
):
    send(either_api, staged, look_at(either_api, "model", MODEL, options), options)
    old = content(staged)
    total = None
    for number in range(11):
        new = Staged("model", MODEL, tmp_path / str(number))
        shutil.copytree(staged.folder, new.folder)
        (new.folder / "model.safetensors").write_bytes(np.random.default_rng(number).bytes(150_000))
        (new.folder / "README.md").write_text(f"version {number}")
        if total is not None:
            hub.faults.cut_upload(after=int(total * number / 11))
            with pytest.raises(HubError, match="run the same command again"):
                send(either_api, new, look_at(either_api, "model", MODEL, options), options)
            assert stored(hub) == old
            hub.faults.clear()
        before = sum(one.body_bytes for one in hub.requests)
        send(either_api, new, look_at(either_api, "model", MODEL, options), options)
        assert stored(hub) == content(new)
        old = content(new)
        total = total or sum(one.body_bytes for one in hub.requests) - before


def test_large_files_that_arrived_before_a_cut_are_not_sent_twice(
    hub: LocalHub, either_api: HfApi, staged: Staged, options: PushArguments
):
    hub.faults.answer(500, "/commit/")
    with pytest.raises(HubError, match="500"):
        send(either_api, staged, look_at(either_api, "model", MODEL, options), options)
    hub.faults.clear()
    sent = hub.uploaded_bytes()
    assert sent > 100_000 and set(hub.repo(MODEL).files()) == {".gitattributes"}
    send(either_api, staged, look_at(either_api, "model", MODEL, options), options)
    assert hub.uploaded_bytes() == sent
    assert stored(hub) == content(staged)


def test_a_commit_whose_answer_is_lost_counts_as_made(here: LocalHub, staged: Staged, options: PushArguments, api):
    here.faults.lose_answer("/commit/")
    sent = send(api, staged, look_at(api, "model", MODEL, options), options)
    assert sent.num_sent == len(staged.files)
    assert stored(here) == content(staged) and len(here.repo(MODEL).history()) == 2


def test_a_crash_of_the_hub_in_the_commit_leaves_the_old_version(here: LocalHub, staged, options, api):
    api.create_repo(MODEL)
    here.crash_in_commit()
    with pytest.raises(HubError):
        send(api, staged, look_at(api, "model", MODEL, options), options)
    assert stored(here) == {}
    send(api, staged, look_at(api, "model", MODEL, options), options)
    assert stored(here) == content(staged)


def test_someone_elses_commit_in_between_is_not_overwritten(here: LocalHub, staged, options, api):
    api.create_repo(MODEL)
    here.faults.before(lambda: here.commit(MODEL, {"LICENSE": b"theirs"}), "/commit/")
    with pytest.raises(HubError, match="someone else committed meanwhile"):
        send(api, staged, look_at(api, "model", MODEL, options), options)
    assert stored(here) == {"LICENSE": b"theirs"}
    here.faults.clear()
    send(api, staged, look_at(api, "model", MODEL, options), options)
    assert stored(here) == content(staged) | {"LICENSE": b"theirs"}


@pytest.mark.parametrize(
    ("status", "path", "kind", "words"),
    [
        (401, "/whoami", InputError, "hf auth login"),
        (403, "/commit/", InputError, "may not write there"),
        (409, "/commit/", HubError, "in conflict"),
        (429, "/preupload/", HubError, "too many requests"),
        (503, "/preupload/", HubError, "the Hub failed again after retries"),
        (507, "/commit/", HubError, "no room"),
    ],
)
def test_a_refusal_names_the_remedy(here: LocalHub, options, status: int, path: str, kind: type, words: str):
    here.faults.answer(status, path, times=None)
    with pytest.raises(kind, match=words) as refused:
        push(options)
    assert str(status) in str(refused.value)


def test_a_busy_hub_is_asked_again(here: LocalHub, staged: Staged, options: PushArguments, api):
    here.faults.answer(429, "/preupload/", times=1, headers={"Retry-After": "1"})
    send(api, staged, look_at(api, "model", MODEL, options), options)
    assert [one.status for one in here.asked("/preupload/")][:2] == [429, 200]
    assert stored(here) == content(staged)


def test_the_same_command_completes_a_push_with_a_tag_that_broke_between_two_repositories(
    here, options, pictured: Path
):
    both = replace(options, dataset_dir=str(pictured / "data"), dataset_repo_id=ROWS, tag="v1")
    here.faults.answer(500, f"/api/models/{MODEL}/commit/", times=None)
    with pytest.raises(HubError, match=f"model {MODEL}: the Hub failed"):
        push(both)
    here.faults.clear()
    assert "v1" in here.repo(ROWS, "dataset").refs["tags"] and "v1" not in here.repo(MODEL).refs["tags"]
    for _ in range(2):
        push(both)
    assert here.repo(MODEL).files("v1") == here.repo(MODEL).files("main")
    assert len(here.repo(ROWS, "dataset").history()) == 2


def test_a_tag_that_the_hub_refused_is_created_by_the_next_run(here: LocalHub, options: PushArguments):
    here.faults.answer(500, "/tag/", times=None)
    with pytest.raises(HubError):
        push(replace(options, tag="v1"))
    here.faults.clear()
    push(replace(options, tag="v1"))
    assert here.repo(MODEL).files("v1") == here.repo(MODEL).files("main") and len(here.repo(MODEL).history()) == 2
