"""Preparing in disorder: the command, a second one, kills and the user's own files, at random moments."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from imagelm.data.load import load_prepared
from tests.conftest import ROOT, random_rows, write_jsonl

pytestmark = pytest.mark.slow
NUM_TRIALS = 100


def test_a_hundred_random_interleavings_lose_nothing_of_the_users(tmp_path, grammar):
    draw = random.Random(0)
    rows = write_jsonl(tmp_path / "rows.jsonl", random_rows(60, seed=0))
    vocab = tmp_path / "vocab.json"
    vocab.write_text(json.dumps(grammar.vocabulary))

    def start(out: Path, *words: str) -> subprocess.Popen[str]:
        options = ["--data_files", rows, "--vocab_file", vocab, "--output_dir", out, *words]
        command = [sys.executable, "prepare_dataset.py", *map(str, options)]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def texts(home: Path) -> set[str]:
        return {file.read_text() for file in home.rglob("*") if file.is_file() and "mine" in file.name}

    codes = []
    for trial in range(NUM_TRIALS):
        home, mine = tmp_path / str(trial), set()
        out = home / "out"
        home.mkdir()
        if draw.random() < 0.5:
            assert start(out).wait() == 0
        seconds = time.monotonic()
        commands = [start(out, *["--overwrite"][: draw.randrange(2)]) for _ in range(draw.choice([1, 1, 2]))]
        for i in range(draw.randrange(1, 5)):
            # Most of a command's time is its start; something is to happen while it writes, too.
            while not any(home.glob(".out.partial-*")) and time.monotonic() - seconds < draw.uniform(0, 6):
                time.sleep(0.002)
            time.sleep(draw.random() * 0.05)
            file = out / draw.choice(["", "train", "tokenizer", "photos", "a/b"]) / f"mine-{i}"
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(f"{trial}.{i}")
            except FileNotFoundError:
                continue  # its folder was exchanged at this very moment, and the user sees the error
            mine.add(f"{trial}.{i}")
        if draw.random() < 0.5:
            time.sleep(draw.random() * 0.3)
            draw.choice(commands).kill()
        codes += [command.wait() for command in commands]
        assert mine <= texts(home), trial
        last = start(out, "--overwrite")
        output, _ = last.communicate()
        codes.append(last.returncode)
        assert mine <= texts(home), trial
        assert not [entry for entry in os.listdir(home) if ".partial-" in entry], trial
        if last.returncode == 0:
            assert sum(map(len, load_prepared(out).values())) == 60
        else:
            assert last.returncode == 2 and "wasn't written by this program" in output, output
    assert set(codes) == {0, 2, -9} and min(codes.count(code) for code in (0, 2, -9)) >= 10, codes


def test_processes_of_a_killed_command_end_with_it(tmp_path, grammar):
    rows = write_jsonl(tmp_path / "rows.jsonl", random_rows(60, seed=0))
    (tmp_path / "vocab.json").write_text(json.dumps(grammar.vocabulary))
    words = ["--data_files", rows, "--vocab_file", tmp_path / "vocab.json", "--output_dir", tmp_path / "out"]
    command = [sys.executable, "prepare_dataset.py", *map(str, words), "--num_proc", "2"]
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    children = psutil.Process(running.pid).children
    while not (workers := [child for child in children() if "spawn_main" in " ".join(child.cmdline())]):
        time.sleep(0.05)
    running.kill()
    running.wait()
    assert psutil.wait_procs(workers, timeout=120)[1] == []
