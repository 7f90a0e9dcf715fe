"""What the tests of faults share: runs that something happens to, damage, strange files, and small file systems."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import zstandard
from safetensors.torch import load_file
from transformers import TrainingArguments

from imagelm.training.resume import plan_resume
from tests.conftest import ROOT, TINY, sentence
from tests.forks import Fork

DROPOUT = "num_hidden_layers=2,hidden_size=32,num_attention_heads=2,resid_pdrop=0.1,attn_pdrop=0.1"
RUN = ("--max_steps", 120, "--save_strategy", "steps", "--save_steps", 10, "--eval_strategy", "steps")
RUN = (*RUN, "--eval_steps", 40, "--save_total_limit", 3, "--config_overrides", DROPOUT)
GOOD = json.dumps({"tokens": sentence([1, 2, 3], 1), "label": 1}).encode()
LONG = "1" * 5000  # a number too long to be read


def start(
    prepared: Path,
    output: Path,
    *words: object,
    launcher: tuple = (),
    stderr: int = subprocess.PIPE,
    **environment: str,
) -> subprocess.Popen[str]:
    """Starts `train.py` on a tiny model, in a session of its own."""
    command = [*launcher, "train.py", "--dataset_dir", prepared, "--output_dir", output, *TINY, *words]
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
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


def plan_of(output: Path, identity: dict | None = None, **options):
    """How a run in this folder would go on."""
    named = options.pop("named", None)
    args = TrainingArguments(output_dir=str(output), resume_from_checkpoint=named and str(named), use_cpu=True)
    identity = identity or json.loads((output / "run.json").read_text())["identity"]
    return plan_resume(args, identity, overwrite=False, **options)


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


def changed(output: Path, **changes) -> dict:
    """The identity of the run with changes; None removes a setting, as an older library would not have it."""
    identity = json.loads((output / "run.json").read_text())["identity"] | changes
    return {name: value for name, value in identity.items() if value is not None}


class Payload:
    """Creates a file where it's unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


def strange_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files of rows that can't be used, by name, each with what its message says."""
    (folder / "empty").touch()
    (folder / "blank").write_text("\n \n\t\n")
    (folder / "folder").mkdir()
    (folder / "dangling").symlink_to("nowhere")
    (folder / "circle").symlink_to("circle")
    os.mkfifo(folder / "pipe")
    (folder / "cut.gz").write_bytes(gzip.compress(GOOD * 100)[:-20])
    (folder / "damaged.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\0" + bytes(range(256)))
    (folder / "no.gz").write_bytes(GOOD)
    (folder / "cut.zst").write_bytes(zstandard.compress(GOOD * 100)[:-5])
    (folder / "no.zst").write_bytes(GOOD)
    message = dict.fromkeys(("cut.gz", "no.gz", "damaged.gz", "cut.zst", "no.zst"), "can't be read")
    message |= {"empty": "no usable row", "blank": "no usable row", "folder": "is a folder", "dangling": "No such file"}
    message |= {"circle": "Too many levels", "pipe": "a pipe or a device", "absent": "no such file"}
    return {name: (folder / name, text) for name, text in message.items()} | {"zero": (Path("/dev/zero"), "a device")}
