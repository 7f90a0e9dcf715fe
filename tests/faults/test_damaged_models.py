"""Damaged models of a run are found and written again; only what a run wrote is deleted."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file
from transformers import TrainingArguments

from imagelm.training.evaluate import evaluate_folder
from imagelm.training.resume import plan_resume
from imagelm.utils.artifacts import MANIFEST_FILE
from imagelm.utils.errors import InputError
from tests.conftest import train
from tests.faults.common import RUN, delete, empty, flip_a_byte, plan_of


@pytest.mark.parametrize(("name", "damage"), [("model.safetensors", flip_a_byte), ("selection.json", empty)])
def test_a_damaged_best_model_is_chosen_again_from_the_checkpoints(cut, prepared, name, damage):
    damage(cut / "best_model" / name)
    done = train(prepared, cut, *RUN)
    assert done.returncode == 0, done.stderr
    assert f"{cut / 'best_model'} is damaged: {name}" in done.stderr
    assert "chosen again from the evaluated checkpoints (steps: 120)" in done.stderr
    best = load_file(cut / "best_model/model.safetensors")
    assert all(best[key].equal(value) for key, value in load_file(cut / "checkpoint-120/model.safetensors").items())
    assert json.loads((cut / "best_model/selection.json").read_text())["step"] == 120
    assert json.loads((cut / "best_model/eval_results.json").read_text())["step"] == 120


def test_a_run_is_finished_only_with_everything_that_a_push_needs(uninterrupted, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(uninterrupted, output)
    assert plan_of(output).finished
    names = ("eval_results.json", "run.json", "stats.json", "log_history.json", "model.safetensors", "config.json")
    for file in [output / folder / name for folder in ("best_model", "final_model") for name in names]:
        for damage in (delete, flip_a_byte):
            content = file.read_bytes()
            damage(file)
            plan = plan_of(output)
            assert not plan.finished and plan.checkpoint == str(output / "checkpoint-120"), file
            assert file.name in plan.notes[0] and str(file.parent) in plan.notes[0]
            file.write_bytes(content)
    assert plan_of(output).finished


def test_a_damaged_folder_is_not_evaluated(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted / "best_model", tmp_path / "model")
    flip_a_byte(tmp_path / "model/config.json")
    with pytest.raises(InputError, match=r"is damaged: config.json isn't what was written"):
        evaluate_folder(tmp_path / "model", None, None, None, None)


@pytest.mark.parametrize("folder", ["best_model", "final_model", "checkpoint-120"])
def test_the_folder_of_a_model_is_no_place_for_a_run(uninterrupted, folder):
    before = {file.name: file.read_bytes() for file in (uninterrupted / folder).iterdir()}
    identity = json.loads((uninterrupted / "run.json").read_text())["identity"]
    with pytest.raises(InputError, match="is the folder of a model or checkpoint"):
        plan_of(uninterrupted / folder, identity)
    assert {file.name: file.read_bytes() for file in (uninterrupted / folder).iterdir()} == before


@pytest.mark.parametrize("with_manifest", [True, False])
def test_overwriting_a_run_deletes_only_what_a_run_wrote(uninterrupted, tmp_path, with_manifest):
    output = tmp_path / "out"
    shutil.copytree(uninterrupted, output)
    mine = [output / name for name in ("notes.md", "best_model/notes.txt", "report/mine.png", "checkpoint-110/a/b")]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    if not with_manifest:  # as versions before 0.2 left the models
        for folder in ("best_model", "final_model", "report"):
            (output / folder / MANIFEST_FILE).unlink()
    args = TrainingArguments(output_dir=str(output), use_cpu=True)
    plan_resume(args, {}, overwrite=True)
    assert sorted(file for file in output.rglob("*") if file.is_file()) == sorted(mine)
