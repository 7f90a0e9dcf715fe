"""Repositories of other people and tools: nothing of theirs is replaced unless it is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from imagelm.hub.arguments import PushArguments
from imagelm.hub.push import push
from imagelm.hub.upload import check_owner, look_at
from imagelm.utils.errors import InputError
from testing.local_hub import LocalHub
from tests.hub.common import DEMO, MODEL, ROWS, stored

CARDS = {  # which nobody's push wrote
    "text": b"# My model\n",
    "metadata": b"---\nlicense: mit\ntags:\n- gpt2\n- imagelm-like\n---\n",
    "named in the text": b"---\nlicense: mit\n---\ntags: imagelm\n",
    "dataset's": b"---\ndataset_info:\n  features: []\n---\n",
    "not YAML": b"---\ntags: [imagelm\n---\n",
    "not a mapping": b"---\n- imagelm\n---\n",
    "not UTF-8": b"---\nlicense: mit\n---\n\xff\xfe",
    "none": None,
}


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_a_repository_with_another_card_isnt_ours(here: LocalHub, options, api, card: bytes | None):
    api.create_repo(MODEL)
    here.commit(MODEL, {"config.json": b"{}"} | ({} if card is None else {"README.md": card}))
    for asked in (options, replace(options, create_pr=True), replace(options, revision="trial")):
        target = look_at(api, "model", MODEL, asked)
        with pytest.raises(InputError, match=r"replace or delete .*config\.json; choose another name, or give"):
            check_owner(api, target, asked)


def test_a_repository_that_isnt_ours_is_replaced_only_when_asked(here: LocalHub, options: PushArguments, api):
    api.create_repo(MODEL)
    theirs = {"README.md": b"# Theirs\n", "config.json": b"{}", "model.safetensors": b"theirs", "notes.md": b"theirs"}
    here.commit(MODEL, theirs)
    with pytest.raises(InputError, match="isn't the work of an earlier push"):
        push(options)
    assert stored(here) == theirs and not here.asked("/commit/", "POST")
    push(replace(options, replace_foreign_files=True))
    assert stored(here)["notes.md"] == b"theirs" and stored(here)["config.json"] != b"{}"
    push(options)  # it is ours from now on


@pytest.mark.parametrize(("kind", "file"), [("dataset", "data/train-00000-of-00001.parquet"), ("space", "app.py")])
def test_data_and_demos_of_others_are_kept_and_nothing_else_is_sent(here, options, pictured, api, kind: str, file: str):
    names = {"dataset": ROWS, "space": DEMO}
    api.create_repo(names[kind], repo_type=kind, space_sdk="gradio" if kind == "space" else None)
    here.commit(names[kind], {file: b"theirs"}, kind)
    before = stored(here, names[kind], kind)
    both = replace(options, dataset_dir=str(pictured / "data"), dataset_repo_id=ROWS, space_repo_id=DEMO)
    with pytest.raises(InputError, match=f"{kind} {names[kind]} isn't the work of an earlier push: .*{file}"):
        push(both)
    assert stored(here, names[kind], kind) == before and not here.exists(MODEL)
    push(replace(both, replace_foreign_files=True))
    push(both)
    assert stored(here, names[kind], kind)[file] != b"theirs"


def test_repositories_with_only_the_hubs_own_card_count_as_empty(here: LocalHub, options, pictured: Path, api):
    api.create_repo(DEMO, repo_type="space", space_sdk="gradio")
    line = b"Check out the configuration reference at https://huggingface.co/docs/hub/spaces-config-reference\n"
    here.commit(DEMO, {"README.md": b"---\ntitle: Demo\nemoji: x\nsdk: gradio\npinned: false\n---\n\n" + line}, "space")
    api.create_repo(MODEL)
    here.commit(MODEL, {"README.md": b"---\nlicense: mit\n---\n"})
    push(replace(options, space_repo_id=DEMO))
    assert b"# animals" in stored(here)["README.md"] and "app.py" in stored(here, DEMO, "space")


def test_a_demo_that_an_older_version_pushed_is_ours(here: LocalHub, options: PushArguments, api):
    api.create_repo(DEMO, repo_type="space", space_sdk="gradio")
    here.commit(DEMO, {"README.md": b"# Demo\n", "app.py": b"old", "model_id.txt": b"alice/animals\n"}, "space")
    push(replace(options, space_repo_id=DEMO))
    assert stored(here, DEMO, "space")["app.py"] != b"old"
