#!/usr/bin/env python
"""Prepares rows or images in shards with datatrove; the options of `imagelm prepare` follow after `--`.

    python -m examples.prepare_shards --shards 8 --workers 2 --work shards --output_dir data -- \
        --data_files rows.jsonl --vocab_file vocab.json

A shard that a signal kills is started again. If a worker or a machine fails, the same command goes on with what is
missing.
"""

import argparse
import ctypes
import importlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dill
from multiprocess import active_children, parent_process

from imagelm.utils.errors import InputError, run_script
from imagelm.utils.folder_lock import locked

EXECUTORS = {"local": "LocalPipelineExecutor", "slurm": "SlurmPipelineExecutor", "ray": "RayPipelineExecutor"}
TRIES = 3
SET_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG
PATIENCE = 30.0  # seconds that a pool's end may take
AGAIN = "the same command goes on with what is missing"


@dataclass
class Prepare:
    """A task: `imagelm prepare` in its own process, for a shard in a subfolder of the output or for all shards."""

    words: list[str]
    output: str
    is_shard: bool = True

    def folder(self, rank: int) -> str:
        return f"{self.output}/{rank}" if self.is_shard else self.output

    def __call__(self, data: object, rank: int = 0, world_size: int = 1) -> None:
        end_with_engine()
        words = [sys.executable, "-m", "imagelm", "prepare", *self.words, "--overwrite"]
        words += ["--output_dir", self.folder(rank)]
        words += ["--num_shards", str(world_size), "--shard_index", str(rank)] if self.is_shard else []
        for _ in range(TRIES):
            if (done := subprocess.run(words, preexec_fn=end_with_parent)).returncode >= 0:  # not killed
                break
        done.check_returncode()


def end_with_parent() -> None:
    """Lets the kernel end this process when its parent is gone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, int(signal.SIGTERM))


def end_with_engine() -> None:
    """Ends this process, if it is a worker, when the engine is gone; the worker's parent is a server that forks it."""
    if engine := parent_process():
        threading.Thread(target=lambda: (engine.join(), os._exit(1)), daemon=True).start()


os.register_at_fork(after_in_child=end_with_parent)  # also what the engine forks for itself


@contextmanager
def lost_workers_named() -> Iterator[None]:
    """Ends the program if a worker of datatrove's pool is gone: the pool would wait for its shard without end."""
    done = threading.Event()

    def watch() -> None:
        workers = set()
        while not done.wait(1):
            workers |= set(active_children())
            if any(worker.exitcode is not None for worker in workers) and not done.wait(PATIENCE):
                for worker in active_children():
                    worker.terminate()  # and with it its shard
                print(f"error: a worker was killed, perhaps for want of memory; {AGAIN}", file=sys.stderr, flush=True)
                os._exit(1)  # an orderly end would wait for what the worker held

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--executor", choices=EXECUTORS, default="local")
    parser.add_argument("--slurm", nargs=2, metavar=("PARTITION", "TIME"), default=("cpu", "4:00:00"))
    parser.add_argument("--shards", type=int, required=True)
    parser.add_argument("--workers", type=int, default=-1, help="shards at the same time (default: all)")
    parser.add_argument("--work", required=True, help="folder for shards and logs, which all machines share")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("words", nargs="+", help="options of imagelm prepare")
    return parser.parse_args()


def tasks_of(given: argparse.Namespace) -> list[Prepare]:
    """The steps of the preparation, in their order."""
    rows, read, plan = (f"{given.work}/{name}" for name in ("rows", "read", "plan"))
    tasks = [Prepare(given.words, rows)]
    if "--images" in given.words:
        tasks = [Prepare(given.words, read), Prepare(["--merge_shards", read], plan, False)]
        tasks.append(Prepare(["--plan", plan], rows))
    return [*tasks, Prepare(["--merge_shards", rows], given.output_dir, False)]


def stages_of(given: argparse.Namespace) -> list[Any]:
    """A datatrove executor for each task, which waits for the one before."""
    executor = getattr(importlib.import_module("datatrove.executor"), EXECUTORS[given.executor])
    options = dict(zip(("partition", "time"), given.slurm, strict=True)) if given.executor == "slurm" else {}
    stages: list[Any] = []
    for i, task in enumerate(tasks_of(given)):
        options |= {"tasks": given.shards if task.is_shard else 1, "logging_dir": f"{given.work}/logs/{i}"}
        for rank in range(options["tasks"]):
            if not Path(task.folder(rank)).exists():  # it was removed since it was done
                Path(options["logging_dir"], "completions", f"{rank:05d}").unlink(missing_ok=True)
        stages.append(executor([task], workers=given.workers, depends=stages[-1] if stages else None, **options))
    return stages


def run_here(stages: list[Any], work: str) -> None:
    """Runs the stages on this machine, one after the other."""
    (logs := Path(work, "logs")).mkdir(parents=True, exist_ok=True)
    with locked(logs) as ours:
        if not ours:
            raise InputError(f"--work {work}: another engine is using this folder; wait for it, or stop it")
        for stage in stages:
            try:
                with lost_workers_named():
                    stage.run()
            except subprocess.CalledProcessError as error:
                advice = f"{AGAIN}; if the input or a shard changed since, remove {work} first"
                print(f"error: imagelm prepare failed, see its message above; {advice}", file=sys.stderr)
                sys.exit(max(error.returncode, 1))


def main() -> None:
    given = parse()
    stages = stages_of(given)
    if given.executor == "local":
        return run_here(stages, given.work)
    dill.settings["recurse"] = True  # the cluster gets this module's functions with the tasks
    return stages[-1].run()  # which starts the others


if __name__ == "__main__":
    run_script(main)
