"""What the tests of faults share: runs that go on while something happens to them, and small file systems."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, TINY
from tests.forks import Fork

DROPOUT = "num_hidden_layers=2,hidden_size=32,num_attention_heads=2,resid_pdrop=0.1,attn_pdrop=0.1"


def start(
    prepared: Path, output: Path, *words: object, launcher: tuple = (), **environment: str
) -> subprocess.Popen[str]:
    """Starts `train.py` on a tiny model, in a session of its own."""
    command = [*launcher, "train.py", "--dataset_dir", prepared, "--output_dir", output, *TINY, *words]
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def start_fork(prepared: Path, output: Path, *words: object) -> Fork:
    """The same, in a fork."""
    command = ["train.py", "--dataset_dir", prepared, "--output_dir", output, *TINY, *words]
    return Fork(list(map(str, command)), ROOT, dict(os.environ))


def wait_for(condition, process: subprocess.Popen | Fork, seconds: float = 120) -> None:
    """Waits until something is the case while a process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "final_model/model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    """Whether two runs ended in bitwise the same weights."""
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def steps(output: Path) -> list[int]:
    """The checkpoints in an output folder."""
    return sorted(int(folder.name.split("-")[1]) for folder in output.glob("checkpoint-*"))


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A tmpfs; skips the test where this user may not mount one."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
