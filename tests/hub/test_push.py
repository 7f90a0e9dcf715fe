"""Pushing once and again: what is loaded, sent, deleted and kept, and what is refused before anything is sent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from transformers import AutoModelForCausalLM

from imagelm.hub.arguments import PushArguments
from imagelm.hub.push import push
from imagelm.utils.errors import InputError
from testing.local_hub import ALICE_ALONE, ALICE_READS, BOB, LocalHub
from tests.conftest import run
from tests.hub.common import MODEL, push_words, stored


def test_a_push_loads_the_weights_once_and_from_the_staged_folder(options: PushArguments, tmp_path, monkeypatch):
    loads, load = [], AutoModelForCausalLM.from_pretrained

    def counted(folder: Path, **more: object):
        loads.append(sorted(path.name for path in Path(folder).iterdir()))
        return load(folder, **more)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    push(replace(options, num_drawings=2, dry_run=str(tmp_path / "preview")))
    assert (tmp_path / "preview/model/drawings.png").is_file()
    (content_when_loaded,) = loads
    # Everything that is loaded was staged by then, and nothing of the trained folder that isn't published.
    assert {"model.safetensors", "config.json", "tokenizer.json", "codec.json"} <= set(content_when_loaded)
    assert set(content_when_loaded) <= {path.name for path in (tmp_path / "preview/model").iterdir()}


def test_weights_are_not_sent_when_only_the_card_changes(here: LocalHub, options: PushArguments):
    push(options)
    before = here.uploaded_bytes()
    push(replace(options, license="mit"))
    assert here.uploaded_bytes() == before
    newest, older = here.repo(MODEL).history()[:2]
    assert {path for path in newest.files if newest.files[path] != older.files.get(path)} == {"README.md"}


def test_files_of_an_older_push_are_deleted_and_other_peoples_stay(here: LocalHub, options: PushArguments, caplog):
    push(options)
    theirs = {"LICENSE": b"ours", "notes/more.md": b"ours", ".eval_results/mmlu.yaml": b"[]"}
    here.commit(MODEL, {"model-00001-of-00002.safetensors": b"old weights"} | theirs)
    push(options)
    files = here.repo(MODEL).files()
    assert theirs.items() <= files.items()
    assert "model-00001-of-00002.safetensors" not in files and files["LICENSE"] == b"ours" and "notes/more.md" in files
    assert "1 old ones deleted" in caplog.text


def test_a_branch_is_made_and_main_stays(here: LocalHub, options: PushArguments):
    push(options)
    main = here.repo(MODEL).refs["branches"]["main"]
    push(replace(options, revision="trial", license="mit"))
    refs = here.repo(MODEL).refs["branches"]
    assert refs["main"] == main != refs["trial"]


def test_a_pull_request_leaves_main_as_it_was(here: LocalHub, options: PushArguments, caplog):
    push(options)
    main = here.repo(MODEL).refs["branches"]["main"]
    push(replace(options, create_pr=True, license="mit"))
    assert here.repo(MODEL).refs["branches"]["main"] == main
    assert "/discussions/1" in caplog.text


def test_a_pull_request_is_opened_once_also_on_someone_elses_repository(here: LocalHub, options, caplog):
    push(options)
    theirs = replace(options, create_pr=True, license="mit", token=BOB.secret)
    for _ in range(2):
        push(theirs)
        assert caplog.messages[-1].endswith("/discussions/1")
    push(replace(theirs, license="apache-2.0"))
    assert caplog.messages[-1].endswith("/discussions/2")
    assert len(here.repo(MODEL).history()) == 2


@pytest.mark.parametrize(("more", "words"), [({}, "needs a repository"), ({"revision": "nope"}, "has no branch nope")])
def test_a_pull_request_needs_something_to_be_opened_on(here: LocalHub, options, api, more: dict, words: str):
    if more:
        api.create_repo(MODEL)
    with pytest.raises(InputError, match=words):
        push(replace(options, create_pr=True, **more))
    assert here.exists(MODEL) == bool(more)


def test_private_repositories_are_hidden_from_strangers(here: LocalHub, options: PushArguments):
    push(replace(options, private=True))
    assert here.repo(MODEL).meta["private"] is True
    with pytest.raises(OSError):
        HfApi(endpoint=here.endpoint, token=False).model_info(MODEL)


def test_a_name_without_namespace_is_a_repository_of_the_user(here: LocalHub, options: PushArguments):
    push(replace(options, repo_id="mine"))
    assert (
        "model: alice/mine" not in stored(here, "alice/mine") and b"# mine" in stored(here, "alice/mine")["README.md"]
    )
    assert b'from_pretrained("alice/mine")' in stored(here, "alice/mine")["README.md"]


# What is refused


def paths_asked(hub: LocalHub) -> set[str]:
    """All but what the client may ask by itself, once a process."""
    return {one.path for one in hub.requests} - {"/api/agent-harnesses"}


def test_without_a_token_nothing_is_asked_but_the_message_is_clear(here: LocalHub, options, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match="no Hub token: log in with `hf auth login`, set HF_TOKEN, or give --token"):
        push(options)
    assert not paths_asked(here)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"token": ALICE_READS.secret}, "may only read"),
        ({"token": BOB.secret}, "bob has no namespace 'alice'"),
        ({"token": "hf_" + "x" * 34}, "the token isn't valid"),
        ({"repo_id": "nobody/thing"}, "alice has no namespace 'nobody', only acme, alice"),
        ({"token": ALICE_ALONE.secret, "repo_id": "acme/x"}, "fine-grained token .* has no right to write there"),
    ],
)
def test_missing_write_access_is_reported_before_anything_is_staged(here, options, caplog, change: dict, words: str):
    with pytest.raises(InputError, match=words):
        push(replace(options, **change))
    assert not caplog.messages and paths_asked(here) == {"/api/whoami-v2"}


def test_private_refuses_a_public_repository(here: LocalHub, options: PushArguments, api):
    api.create_repo(MODEL)
    with pytest.raises(InputError, match="exists and is public"):
        push(replace(options, private=True))
    assert stored(here) == {}


def test_a_tag_never_moves(here: LocalHub, options: PushArguments):
    push(replace(options, tag="v1"))
    with pytest.raises(InputError, match="has a tag v1 already"):
        push(replace(options, tag="v1", license="mit"))
    assert len(here.repo(MODEL).history()) == 2


def test_nothing_of_a_folder_with_a_secret_is_sent(
    here: LocalHub, options: PushArguments, pictured: Path, tmp_path: Path
):
    folder = Path(shutil.copytree(pictured / "out/best_model", tmp_path / "best_model"))
    (folder / "complete.json").unlink()  # as for a folder that another program wrote
    (folder / "generation_config.json").write_text(json.dumps({"note": BOB.secret}))
    with pytest.raises(InputError, match="nothing was uploaded"):
        push(replace(options, model_dir=str(folder)))
    assert not here.exists(MODEL)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--model_dir", "nowhere"], "no such folder"),
        (["--repo_id", "a/b/c"], "isn't a repository name"),
        (["--repo_id", "me/na me"], "isn't a repository name"),
        (["--repo_id", "me/x.git"], "isn't a repository name"),
        (["--revision", "refs/pr/1"], "isn't a valid name in git"),
        (["--tag", "version 1"], "isn't a valid name in git"),
        (["--dataset_repo_id", "me/x"], "needs --dataset_dir"),
        (["--tag", "v1", "--create_pr"], "remove one of the two"),
        (["--license", "My Own!"], "isn't a license identifier"),
        (["--num_drawings", "-1"], "give 0 or more"),
    ],
)
def test_wrong_options_end_with_code_2_and_one_line(pictured: Path, change: list[str], words: str):
    done = run(*push_words(pictured, *change))
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


def test_a_dry_run_never_replaces_other_files(options: PushArguments, tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"holds no uploads\.json, so it wasn't written by this program"):
        push(replace(options, dry_run=str(tmp_path / "photos")))
    assert (tmp_path / "photos/cat.png").read_bytes() == b"mine"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_reported_and_leaves_nothing(pictured: Path, tmp_path: Path):
    (tmp_path / "small").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", tmp_path / "small"], check=False)
    if mounted.returncode:
        pytest.skip("this machine doesn't let a small disk be mounted")
    try:
        done = run(*push_words(pictured), "--dry_run", tmp_path / "small/preview")
        assert done.returncode == 1
        assert "No space left on device" in done.stderr and "Traceback" not in done.stderr
        assert list((tmp_path / "small").iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path / "small"], check=True)
