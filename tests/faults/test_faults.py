"""Real faults: signals, full and read-only file systems, damaged checkpoints, numbers that aren't finite."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from imagelm.data.arguments import PrepareArguments
from imagelm.data.load import load_prepared
from imagelm.data.prepare import prepare
from imagelm.tokens.tokenizer import load_tokenizer
from imagelm.training.evaluate import evaluate_folder
from imagelm.training.identity import check_same
from imagelm.training.manifest import inspect_checkpoint
from imagelm.training.resume import lock_output, plan_resume
from imagelm.training.run_record import earlier_launches, read_record
from imagelm.utils.artifacts import MANIFEST_FILE
from imagelm.utils.errors import InputError, StorageError, describe
from imagelm.utils.manifest import write_manifest
from tests.conftest import ROOT, TINY, train
from tests.faults.common import DROPOUT, mounted, remount, same_weights, start_fork, steps, wait_for
from tests.training.test_trainer import make_trainer

RUN = ("--max_steps", 120, "--save_strategy", "steps", "--save_steps", 10, "--eval_strategy", "steps")
RUN = (*RUN, "--eval_steps", 40, "--save_total_limit", 3, "--config_overrides", DROPOUT)


@pytest.fixture(scope="module")
def uninterrupted(prepared, tmp_path_factory) -> Path:
    """9 steps an epoch, so that every checkpoint but each ninth stands in the middle of one."""
    output = tmp_path_factory.mktemp("uninterrupted") / "out"
    done = train(prepared, output, *RUN)
    assert done.returncode == 0, done.stderr
    return output


def plan_of(output: Path, identity: dict | None = None, **options):
    named = options.pop("named", None)
    args = TrainingArguments(output_dir=str(output), resume_from_checkpoint=named and str(named), use_cpu=True)
    identity = identity or json.loads((output / "run.json").read_text())["identity"]
    return plan_resume(args, identity, overwrite=False, **options)


@pytest.fixture
def cut(uninterrupted, tmp_path) -> Path:
    """The run as a kill after step 120's checkpoint would have left it."""
    output = tmp_path / "out"
    shutil.copytree(uninterrupted, output)
    shutil.rmtree(output / "final_model")
    return output


# Damaged checkpoints


def delete(file: Path) -> None:
    file.unlink()


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


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


# The same run, a longer one, and one that never began


def changed(output: Path, **changes) -> dict:
    """The identity of the run with changes; None removes a setting, as an older library would not have it."""
    identity = json.loads((output / "run.json").read_text())["identity"] | changes
    return {name: value for name, value in identity.items() if value is not None}


def test_a_longer_run_goes_on_with_a_constant_rate_or_where_it_is_asked_for(uninterrupted, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(uninterrupted, output)
    assert changed(output)["max_steps"] == 120 and changed(output)["lr_scheduler_type"] == "linear"
    with pytest.raises(InputError, match=r"(?s)max_steps: 120 there, 160 now.*--extend_run"):
        plan_of(output, changed(output, max_steps=160))
    plan = plan_of(output, changed(output, max_steps=160), extend=True)
    assert plan.checkpoint == str(output / "checkpoint-120") and "max_steps 120 is now 160" in plan.notes[0]
    for other in ({"max_steps": 80}, {"max_steps": 160, "seed": 1}, {"max_steps": -1, "num_train_epochs": 9.0}):
        with pytest.raises(InputError, match="with other settings") as error:
            plan_of(output, changed(output, **other), extend=True)
        assert "--extend_run" not in str(error.value)
    rates = {"constant": [0, 0.1, 5], "constant_with_warmup": [0, 5]}
    for schedule, warmups in rates.items():
        for warmup in warmups:
            settings = {"lr_scheduler_type": schedule, "warmup_steps": warmup}
            for file in [output / "run.json", *output.glob("checkpoint-*/data_state.json")]:
                content = json.loads(file.read_text())
                file.write_text(json.dumps(content | {"identity": content["identity"] | settings}))
            for folder in output.glob("checkpoint-*"):
                write_manifest(folder)
            assert plan_of(output, changed(output, max_steps=160)).checkpoint == str(output / "checkpoint-120")
    with pytest.raises(InputError, match="--extend_run"):  # this warm-up would be longer, too
        settings = {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 0.1}
        check_same("run", changed(output, **settings), changed(output, **settings, max_steps=160), extend=False)


def test_other_processes_continue_a_run_with_the_same_rows_per_update_where_it_is_asked_for(cut):
    batch = changed(cut)["per_device_train_batch_size"]
    halves = changed(cut, world_size=2, per_device_train_batch_size=batch // 2)
    with pytest.raises(InputError, match=r"(?s)world_size: 1 there, 2 now.*--change_processes"):
        plan_of(cut, halves)
    plan = plan_of(cut, halves, processes=True)
    assert plan.checkpoint and not plan.finished and "world_size 1 is now 2" in plan.notes[0]
    with pytest.raises(InputError, match=f"accumulation steps x processes to {batch}, which is {2 * batch} now"):
        plan_of(cut, changed(cut, world_size=2), processes=True)
    with pytest.raises(InputError, match="with other settings") as error:
        plan_of(cut, halves | {"seed": 1}, processes=True)
    assert "--change_processes" not in str(error.value)


def test_a_setting_that_only_a_newer_library_knows_is_no_difference_at_its_default(cut):
    name = "model.scale_attn_by_inverse_layer_idx"
    now = changed(cut)
    assert now[name] is False
    assert check_same("run", changed(cut, **{name: None}), now, extend=False) is None
    for earlier, later in [
        (changed(cut, **{name: None}), now | {name: True}),  # not at its default
        (now, changed(cut, **{name: None})),  # an older library, which ignores it
        (changed(cut, seed=None), now),  # not of the architecture
    ]:
        with pytest.raises(InputError, match="with other settings"):
            check_same("run", earlier, later, extend=False)


def test_a_run_that_saved_nothing_does_not_block_its_folder(cut):
    for folder in cut.glob("*/"):
        shutil.rmtree(folder)
    (cut / "mine.txt").write_text("mine")
    plan = plan_of(cut, changed(cut, seed=1))
    assert plan.checkpoint is None and not plan.finished and "saved nothing" in plan.notes[0]
    assert [file.name for file in cut.iterdir()] == ["mine.txt"]


# Damaged models and records


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


def test_a_damaged_record_is_no_reason_to_lose_a_run(cut):
    identity = json.loads((cut / "run.json").read_text())["identity"]
    (cut / "run.json").write_text('{"identity": {"da')
    plan = plan_of(cut, identity)
    assert plan.checkpoint == str(cut / "checkpoint-120")
    assert plan.notes == [f"{cut / 'run.json'} is damaged and is written again"]
    with pytest.raises(InputError, match="seed: 42 there, 7 now"):
        plan_of(cut, identity | {"seed": 7})


def test_the_launches_of_a_record_of_an_earlier_version_count_on(tmp_path):
    """It called them legs."""
    (tmp_path / "run.json").write_text('{"legs": [{"train_seconds": 1.0, "seconds": 2.0}]}')
    assert earlier_launches(read_record(tmp_path)) == [{"train_seconds": 1.0, "seconds": 2.0}]


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


class Payload:
    """Creates a file where it's unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


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


# Signals


def stopped(prepared, output: Path, number: signal.Signals, at: int) -> subprocess.CompletedProcess:
    process = start_fork(prepared, output, *RUN)
    wait_for((output / f"checkpoint-{at}").is_dir, process)
    process.send_signal(number)
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def test_sigterm_and_ctrl_c_save_and_end_with_their_code_and_the_run_goes_on_bitwise(prepared, uninterrupted, tmp_path):
    output, stops = tmp_path / "out", []
    for number, code, at in ((signal.SIGTERM, 143, 20), (signal.SIGINT, 130, 60)):
        done = stopped(prepared, output, number, at)
        assert done.returncode == code, done.stderr
        assert f"{number.name}: saving a checkpoint" in done.stderr
        step = steps(output)[-1]
        assert f"stopped by {number.name} at step {step}: checkpoint-{step} is saved" in done.stderr
        assert "Traceback" not in done.stderr
        assert inspect_checkpoint(output / f"checkpoint-{step}").is_whole
        assert not (output / "final_model").exists()
        stops.append(step)
    done = train(prepared, output, *RUN)
    assert done.returncode == 0, done.stderr
    assert f"resuming from {output}/checkpoint-{stops[-1]}" in done.stdout
    assert same_weights(uninterrupted, output)
    for name in ("best_model", "final_model"):
        figures = [json.loads((o / name / "eval_results.json").read_text()) for o in (uninterrupted, output)]
        assert figures[0]["step"] == figures[1]["step"]
        assert figures[0]["eval_loss"] == figures[1]["eval_loss"]
    record = json.loads((output / "run.json").read_text())
    assert [(launch["from_step"], launch["to_step"]) for launch in record["launches"]] == [
        *((0, stops[0]), (stops[0], stops[1]), (stops[1], 120))
    ]
    assert [launch["ended"].split(":")[0] for launch in record["launches"]] == [
        "StoppedError",
        "StoppedError",
        "finished",
    ]
    for clock, name in (("train_seconds", "train"), ("seconds", "total")):
        assert record["durations"][name] == pytest.approx(sum(launch[clock] for launch in record["launches"]))
        assert all(launch[clock] > 0 for launch in record["launches"])


def test_two_runs_cannot_write_into_one_folder(tmp_path):
    refused = pytest.raises(InputError, match="another run is writing into it")
    with lock_output(tmp_path / "out"):
        with refused, lock_output(tmp_path / "out"):
            pass
        with lock_output(tmp_path / "other"):
            pass


def test_a_folder_is_free_again_when_the_run_ends_or_fails_though_a_worker_of_it_lives_on(tmp_path):
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    with pytest.raises(StorageError), lock_output(tmp_path):
        worker.start()
        raise StorageError("the disk is full")
    for _ in range(2):
        with lock_output(tmp_path):
            pass
    worker.kill()
    worker.join()


@pytest.mark.slow
def test_a_second_command_in_the_folder_of_a_run_is_refused(prepared, tmp_path):
    process = start_fork(prepared, tmp_path / "out", *RUN, "--max_steps", 100_000)
    wait_for((tmp_path / "out/checkpoint-10").is_dir, process)
    done = train(prepared, tmp_path / "out", *RUN, "--max_steps", 100_000)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert done.returncode == 2, done.stderr
    assert "another run is writing into it" in done.stderr


# File systems


def test_a_full_disk_ends_the_run_with_a_message_and_leaves_what_was_there(prepared, tmp_path):
    with mounted(tmp_path / "small", "size=2m") as small:
        output = small / "out"
        ballast = small / "ballast"
        process = start_fork(prepared, output, *RUN, "--max_steps", 100_000, "--eval_strategy", "no")
        wait_for((output / "checkpoint-10").is_dir, process)
        with open(ballast, "wb") as file, pytest.raises(OSError, match="No space left"):
            while True:
                os.write(file.fileno(), bytes(4096))
        _, err = process.communicate()
        assert process.returncode == 1
        assert "Traceback" not in err
        assert "can't be written: No space left on device" in err
        assert "free some space" in err
        assert "ame command" in err  # goes on
        kept = steps(output)
        assert kept
        assert all(inspect_checkpoint(output / f"checkpoint-{step}").is_whole for step in kept)
        assert not list(output.glob(".*"))
        assert json.loads((output / "run.json").read_text())["identity"]
        ballast.unlink()
        process = start_fork(prepared, output, *RUN, "--max_steps", 100_000, "--eval_strategy", "no")
        wait_for((output / f"checkpoint-{kept[-1] + 10}").is_dir, process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
        assert process.returncode == 143, err
        assert f"resuming from {output}/checkpoint-{kept[-1]}" in out


def test_a_folder_that_becomes_read_only_ends_the_run(prepared, tmp_path):
    with mounted(tmp_path / "small", "size=8m") as small:
        output = small / "out"
        process = start_fork(prepared, output, *RUN, "--max_steps", 100_000)
        wait_for((output / "checkpoint-10").is_dir, process)
        while subprocess.run(["mount", "-o", "remount,ro", small], capture_output=True).returncode:
            pass  # busy as long as a file is open for writing
        _, err = process.communicate()
        assert process.returncode == 1
        assert "Read-only file system" in err
        assert "choose a writable folder" in err
        assert "Traceback" not in err
        remount(small, "rw")
        assert inspect_checkpoint(output / f"checkpoint-{steps(output)[-1]}").is_whole
        assert plan_of(output).checkpoint == str(output / f"checkpoint-{steps(output)[-1]}")


@pytest.mark.slow
def test_a_folder_that_is_read_only_ends_a_run_at_once(prepared, tmp_path):
    with mounted(tmp_path / "small", "size=8m,ro") as small:
        done = train(prepared, small / "new", *RUN)
        assert done.returncode == 1
        assert "Read-only file system" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_file_size_limit_is_reported_like_a_full_disk(prepared, tmp_path):
    """What `ulimit -f` sets; a quota gives the same kind of error from the same calls."""
    done = subprocess.run(
        [
            sys.executable,
            "train.py",
            "--dataset_dir",
            prepared,
            "--output_dir",
            tmp_path / "out",
            *TINY,
            *map(str, RUN),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stderr
    assert "ulimit -f" in done.stderr
    assert "Traceback" not in done.stderr
    assert steps(tmp_path / "out") == []


def test_preparing_on_a_full_disk_leaves_the_earlier_dataset_as_it_was(prepared, tmp_path, vocab_file):
    options = {"data_files": [str(prepared.parent / "rows.jsonl")], "vocab_file": str(vocab_file)}
    with mounted(tmp_path / "small", "size=1m") as small:
        prepare(PrepareArguments(output_dir=str(small / "data"), **options), command="test")
        before = {file: file.read_bytes() for file in (small / "data").rglob("*") if file.is_file()}
        (small / "ballast").write_bytes(bytes(shutil.disk_usage(small).free - 8192))
        with pytest.raises(OSError, match="No space left on device") as error:
            prepare(PrepareArguments(output_dir=str(small / "data"), overwrite=True, **options), command="test")
        assert "free some space" in describe(error.value)
        assert {file: file.read_bytes() for file in (small / "data").rglob("*") if file.is_file()} == before
        assert sorted(entry.name for entry in small.iterdir()) == ["ballast", "data"]


def test_a_best_model_that_finds_no_space_leaves_the_one_before(prepared, tmp_path):
    tokenizer, data = load_tokenizer(prepared / "tokenizer"), load_prepared(prepared)
    with mounted(tmp_path / "small", "size=1m") as small:
        trainer = make_trainer(tmp_path, tokenizer, data)
        trainer.save_folder(small / "best_model", {"step": 1})
        before = {file.name: file.read_bytes() for file in (small / "best_model").iterdir()}
        (small / "ballast").write_bytes(bytes(shutil.disk_usage(small).free - 65536))
        with pytest.raises(StorageError, match="best_model can't be written: No space left on device") as error:
            trainer.save_folder(small / "best_model", {"step": 2})
        assert "The earlier folder is unchanged" in str(error.value)
        assert {file.name: file.read_bytes() for file in (small / "best_model").iterdir()} == before
        assert sorted(entry.name for entry in small.iterdir()) == ["ballast", "best_model"]
