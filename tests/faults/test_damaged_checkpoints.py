"""Damaged, incomplete and foreign checkpoints are found and named; the run goes on from a whole one."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from imagelm.training.manifest import inspect_checkpoint
from imagelm.utils.artifacts import MANIFEST_FILE
from imagelm.utils.errors import InputError
from imagelm.utils.manifest import write_manifest
from tests.conftest import train
from tests.faults.common import RUN, Payload, delete, empty, flip_a_byte, plan_of, truncate


@pytest.mark.parametrize("damage", [delete, truncate, empty, flip_a_byte])
def test_each_damaged_file_of_the_newest_checkpoint_is_found_and_the_one_before_is_taken(cut, damage):
    files = sorted(file.name for file in (cut / "checkpoint-120").iterdir())
    assert len(files) >= 10
    for name in files:
        shutil.copytree(cut / "checkpoint-120", cut / "kept")
        damage(cut / "checkpoint-120" / name)
        plan = plan_of(cut)
        assert plan.checkpoint == str(cut / "checkpoint-110"), name
        assert plan.notes[0].startswith(f"skipped {cut / 'checkpoint-120'}: ")
        assert name in plan.notes[0]
        shutil.rmtree(cut / "checkpoint-120")
        (cut / "kept").rename(cut / "checkpoint-120")
    assert plan_of(cut).checkpoint == str(cut / "checkpoint-120")


PARTS = {"optimizer.pt": "optimizer", "scheduler.pt": "scheduler", "rng_state.pth": "random numbers"}
PARTS |= {"data_state.json": "data state"}


@pytest.mark.parametrize("name", [*PARTS, "model.safetensors", "trainer_state.json"])
def test_a_missing_state_is_an_error_unless_it_is_allowed_and_weights_and_step_always_are(cut, name):
    for folder in cut.glob("checkpoint-*"):
        (folder / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing") as error:
        plan_of(cut)
    assert ("--allow_partial_resume" in str(error.value)) == (name in PARTS)
    if name not in PARTS:
        with pytest.raises(InputError, match="none of its checkpoints is complete"):
            plan_of(cut, allow_partial=True)
        return
    plan = plan_of(cut, allow_partial=True)
    assert plan.missing == [PARTS[name]]
    assert plan.notes[-1] == f"{cut / 'checkpoint-120'} is resumed without its {PARTS[name]}"
    given = {file.name for file in Path(plan.checkpoint).iterdir()}
    assert given == {file.name for file in (cut / "checkpoint-120").iterdir()} - {MANIFEST_FILE}


def test_a_named_checkpoint_is_taken_if_it_is_whole(cut):
    assert plan_of(cut, named=cut / "checkpoint-100").checkpoint == str(cut / "checkpoint-100")
    truncate(cut / "checkpoint-100/optimizer.pt")
    with pytest.raises(InputError, match=r"optimizer\.pt has .* bytes instead of"):
        plan_of(cut, named=cut / "checkpoint-100")
    truncate(cut / "checkpoint-100/config.json")
    with pytest.raises(InputError, match="can't be resumed"):
        plan_of(cut, named=cut / "checkpoint-100", allow_partial=True)


def test_a_run_goes_on_without_its_optimizer_at_the_learning_rate_of_its_step(prepared, cut):
    for folder in cut.glob("checkpoint-*"):
        (folder / "optimizer.pt").unlink()
        (folder / "scheduler.pt").unlink()
        if folder.name != "checkpoint-100":
            shutil.rmtree(folder)
    done = train(prepared, cut, *RUN, "--allow_partial_resume")
    assert done.returncode == 0, done.stderr
    assert "is resumed without its optimizer, scheduler" in done.stdout
    history = json.loads((cut / "checkpoint-120/trainer_state.json").read_text())["log_history"]
    rates = {log["step"]: log["learning_rate"] for log in history if "learning_rate" in log}
    assert rates[110] == pytest.approx(3e-3 * (1 - 109 / 120))  # linear to 0, no new start
    assert not list(cut.glob(".*"))


@pytest.mark.parametrize("field", ["data", "vocabulary", "model.n_embd", "seed", "world_size"])
def test_a_checkpoint_of_other_data_vocabulary_or_model_is_refused_with_the_difference(cut, field):
    """A checkpoint of another run that was copied into the folder."""
    state = json.loads((cut / "checkpoint-120/data_state.json").read_text())
    mine = state["identity"][field]
    state["identity"][field] = "another"
    (cut / "checkpoint-120/data_state.json").write_text(json.dumps(state))
    write_manifest(cut / "checkpoint-120")
    with pytest.raises(InputError) as error:
        plan_of(cut)
    differing = f"belongs to a run with other settings:\n  {field}: another there, {mine} now"
    assert f"{cut / 'checkpoint-120'} {differing}" in str(error.value)


def test_what_killed_writers_left_is_removed_and_a_folder_that_was_moved_aside_is_restored(cut):
    for name in (
        ".checkpoint-130.partial-save",
        ".best_model.partial-x1x1x1x1",
        ".checkpoint-120.old-y2y2y2y2/checkpoint-120",
    ):
        (cut / name).mkdir(parents=True)
    (cut / ".best_model.old-z3z3z3z3").mkdir()
    (cut / "best_model").rename(cut / ".best_model.old-z3z3z3z3/best_model")
    (cut / ".run.json.partial-99").write_text("{")
    (cut / ".theirs.partial-1").mkdir()
    plan_of(cut)
    assert [file.name for file in cut.glob(".*")] == [".theirs.partial-1"]
    assert (cut / "best_model/model.safetensors").is_file()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_in_a_checkpoint_is_never_run_even_under_a_valid_manifest(cut, name, tmp_path):
    ran = tmp_path / "ran"
    for old in ("legacy", "zip"):
        if old == "legacy":
            (cut / "checkpoint-120" / name).write_bytes(pickle.dumps(Payload(ran)))
        else:
            torch.save({"state": Payload(ran)}, cut / "checkpoint-120" / name)
        write_manifest(cut / "checkpoint-120")
        plan = plan_of(cut)
        assert plan.checkpoint == str(cut / "checkpoint-110")
        assert f"{name} can't be read" in plan.notes[0]
        assert not ran.exists()
    pickle.loads(pickle.dumps(Payload(ran)))
    assert ran.exists()  # so the payload does work


def test_a_manifest_that_leads_out_of_its_folder_is_invalid(cut):
    folder = cut / "checkpoint-120"
    content = json.loads((folder / MANIFEST_FILE).read_text().split("\n")[0])
    (cut / "outside").write_text("x")
    content["files"]["../outside"] = {"bytes": 1, "sha256": "0"}
    line = json.dumps(content)
    (folder / MANIFEST_FILE).write_text(f"{line}\n{hashlib.sha256(line.encode()).hexdigest()}\n")
    assert "no valid complete.json" in inspect_checkpoint(folder).why
