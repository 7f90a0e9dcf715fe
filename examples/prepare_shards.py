#!/usr/bin/env python
"""Prepares rows or images in shards with datatrove; the options of `imagelm prepare` follow after `--`.

    python -m examples.prepare_shards --shards 8 --workers 2 --work shards --output_dir data -- \
        --data_files rows.jsonl --vocab_file vocab.json

A shard that a signal kills is started again. If a machine fails, the same command goes on with what is missing.
"""

import argparse
import importlib
import subprocess
import sys
from dataclasses import dataclass

EXECUTORS = {"local": "LocalPipelineExecutor", "slurm": "SlurmPipelineExecutor", "ray": "RayPipelineExecutor"}
TRIES = 3


@dataclass
class Prepare:
    """A task: `imagelm prepare` in its own process, for a shard in a subfolder of the output or for all shards."""

    words: list[str]
    output: str
    is_shard: bool = True

    def __call__(self, data: object, rank: int = 0, world_size: int = 1) -> None:
        words = [sys.executable, "-m", "imagelm", "prepare", *self.words, "--overwrite", "--output_dir"]
        words.append(f"{self.output}/{rank}" if self.is_shard else self.output)
        words += ["--num_shards", str(world_size), "--shard_index", str(rank)] if self.is_shard else []
        for _ in range(TRIES):
            if (done := subprocess.run(words)).returncode >= 0:  # not killed
                break
        done.check_returncode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--executor", choices=EXECUTORS, default="local")
    parser.add_argument("--slurm", nargs=2, metavar=("PARTITION", "TIME"), default=("cpu", "4:00:00"))
    parser.add_argument("--shards", type=int, required=True)
    parser.add_argument("--workers", type=int, default=-1, help="shards at the same time (default: all)")
    parser.add_argument("--work", required=True, help="folder for shards and logs, which all machines share")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("words", nargs="+", help="options of imagelm prepare")
    given = parser.parse_args()
    rows, read, plan = (f"{given.work}/{name}" for name in ("rows", "read", "plan"))
    tasks = [Prepare(given.words, rows)]
    if "--images" in given.words:
        tasks = [Prepare(given.words, read), Prepare(["--merge_shards", read], plan, False)]
        tasks.append(Prepare(["--plan", plan], rows))
    executor, last = getattr(importlib.import_module("datatrove.executor"), EXECUTORS[given.executor]), None
    options = dict(zip(("partition", "time"), given.slurm, strict=True)) if given.executor == "slurm" else {}
    for i, task in enumerate([*tasks, Prepare(["--merge_shards", rows], given.output_dir, False)]):
        options |= {"tasks": given.shards if task.is_shard else 1, "logging_dir": f"{given.work}/logs/{i}"}
        last = executor([task], workers=given.workers, depends=last, **options)
    last.run()


if __name__ == "__main__":
    main()
