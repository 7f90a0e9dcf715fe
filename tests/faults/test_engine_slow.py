"""Shards that datatrove prepares: whatever is killed, the same command finishes with the result of one process."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from imagelm.data.arguments import PrepareArguments
from imagelm.data.load import load_prepared, load_stats
from imagelm.data.prepare import prepare
from tests.conftest import ROOT, random_rows, write_jsonl

pytestmark = pytest.mark.slow
pytest.importorskip("datatrove", reason="needs datatrove: pip install imagelm[shards]")


def engine(home: Path) -> subprocess.Popen[str]:
    words = ["--shards", "3", "--workers", "2", "--work", str(home / "work"), "--output_dir", str(home / "many")]
    words += ["--", "--data_files", str(home / "rows.jsonl"), "--vocab_file", str(home / "vocab.json")]
    command = [sys.executable, "-m", "examples.prepare_shards", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def a_shard(engine: subprocess.Popen) -> psutil.Process:
    """The process of a shard that is being prepared."""
    while engine.poll() is None:
        for process in psutil.Process(engine.pid).children(recursive=True):
            if process.is_running() and "--shard_index" in process.cmdline():
                return process
        time.sleep(0.05)
    raise AssertionError(engine.communicate()[0])


def test_a_killed_worker_and_a_killed_engine_leave_nothing_running_and_the_next_start_finishes(tmp_path, grammar):
    (tmp_path / "vocab.json").write_text(json.dumps(grammar.vocabulary))
    words = {"data_files": [str(write_jsonl(tmp_path / "rows.jsonl", random_rows(300, seed=5)))]}
    words |= {"vocab_file": str(tmp_path / "vocab.json"), "output_dir": str(tmp_path / "one")}
    prepare(PrepareArguments(**words), command="test")

    running = engine(tmp_path)
    shard = a_shard(running)
    second = engine(tmp_path)
    assert "another engine is using this folder" in second.communicate()[0] and second.returncode == 2
    running.kill()
    running.communicate()
    shard.wait(60)

    running = engine(tmp_path)
    shard = a_shard(running)
    shard.parent().send_signal(signal.SIGKILL)
    shard.wait(60)
    assert "a worker was killed" in running.communicate()[0] and running.returncode == 1
    assert not (tmp_path / "many").exists()

    for _ in range(2):  # what was removed is made again
        last = engine(tmp_path)
        output = last.communicate()[0]
        assert last.returncode == 0, output
        assert load_stats(tmp_path / "many")["digests"] == load_stats(tmp_path / "one")["digests"]
        load_prepared(tmp_path / "many")
        shutil.rmtree(tmp_path / "many")
        shutil.rmtree(tmp_path / "work/rows/1")
