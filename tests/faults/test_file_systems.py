"""File systems that are full, read-only or limited: a message, and what was there before stays whole."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import pytest

from imagelm.data.arguments import PrepareArguments
from imagelm.data.load import load_prepared
from imagelm.data.prepare import prepare
from imagelm.tokens.tokenizer import load_tokenizer
from imagelm.training.manifest import inspect_checkpoint
from imagelm.utils.errors import StorageError, describe
from tests.conftest import ROOT, TINY, train
from tests.faults.common import RUN, mounted, plan_of, remount, start_fork, steps, wait_for
from tests.training.test_trainer import make_trainer


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
