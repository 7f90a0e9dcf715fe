"""Signals, and a second run in the same folder."""

from __future__ import annotations

import json
import multiprocessing
import signal
import subprocess
import time
from pathlib import Path

import pytest

from imagelm.training.manifest import inspect_checkpoint
from imagelm.training.resume import lock_output
from imagelm.utils.errors import InputError, StorageError
from tests.conftest import train
from tests.faults.common import RUN, same_weights, start_fork, steps, wait_for


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
