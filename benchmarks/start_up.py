#!/usr/bin/env python
"""Seconds from the start of a command to its first step of training, or to its answer, and what imports alone take.

    make demo
    python -m benchmarks.start_up --dataset_dir data/digits/prepared --model outputs/digits/best_model

Each command runs until it prints a certain line and is then killed. The imports that any such program needs (PyTorch,
the model's class, the tokenizer's, for training the Trainer's, and a launcher with nothing to do) bound what this
package can save. `--before` names a checkout of another version, which is measured in the same rounds. Linux only.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import ROOT, environment, median, parser, rounds, save

TICKS = os.sysconf("SC_CLK_TCK")
CONFIG = ("--config_file", "accelerate_config.yaml")
LAUNCH = ("-m", "accelerate.commands.accelerate_cli", "launch", *CONFIG)
CLASSES = "from transformers import AutoTokenizer, GPT2LMHeadModel"
FLOORS = {
    "import torch": ("-c", "import torch; print('ready')"),
    "imports for inference": ("-c", f"{CLASSES}; print('ready')"),
    "imports for training": ("-c", f"{CLASSES}, Trainer; print('ready')"),
    "accelerate launch echo": (*LAUNCH, "--no_python", "echo", "ready"),
    "accelerate-launch echo": ("-m", "accelerate.commands.launch", *CONFIG, "--no_python", "echo", "ready"),
}


def main() -> None:
    made = parser(__doc__.split("\n")[0])
    made.add_argument("--model", required=True, help="trained folder")
    made.add_argument("--dataset_dir", required=True, help="its data")
    made.add_argument("--before", type=Path, help="checkout of another version")
    arguments = made.parse_args()
    data = ["--dataset_dir", str(Path(arguments.dataset_dir).resolve())]
    answer = ["inference.py", "--model", str(Path(arguments.model).resolve()), "--mode", "classify", "--num_rows", "1"]
    with tempfile.TemporaryDirectory() as home:
        # Only what is printed differs from the recipe.
        train = ["train.py", "--config", "recipes/digits/config.yaml", *data, "--output_dir", f"{home}/run"]
        train += ["--overwrite", "--logging_steps", "1", "--eval_strategy", "no", "--save_strategy", "no"]
        contestants: dict[str, Callable[[], dict]] = {}
        for suffix, checkout in {"": ROOT, " before": arguments.before}.items():
            if checkout:
                at = (checkout, arguments.threads)
                contestants |= {
                    f"inference.py{suffix}": until(r"row +class", [*answer, *data], *at),
                    f"accelerate launch train.py{suffix}": until(r"step 1/", [*LAUNCH, *train], *at),
                    f"train.py{suffix}": until(r"step 1/", train, *at),
                }
        contestants |= {name: until("ready", [*words], ROOT, arguments.threads) for name, words in FLOORS.items()}
        results = rounds(contestants, arguments.rounds)
    found = {
        name: {key: round(median(values, key), 2) for key in ("wall_seconds", "cpu_seconds")}
        | {f"least_{key}": round(min(value[key] for value in values), 2) for key in ("wall_seconds", "cpu_seconds")}
        for name, values in results.items()
    }
    save("start_up", {"threads": arguments.threads, "rounds": arguments.rounds, "start": found}, arguments.output)


def until(pattern: str, words: list[str], checkout: Path, threads: int) -> Callable[[], dict]:
    """A contestant: Python with these words, in a checkout, until a line of its output starts with the pattern."""

    def go() -> dict:
        started = time.perf_counter()
        process = subprocess.Popen(
            ["taskset", "-c", f"0-{threads - 1}", sys.executable, *words],
            cwd=checkout,
            env=environment(threads) | {"PYTHONPATH": str(checkout), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # whose processes are counted and killed together
        )
        lines = []
        for line in process.stdout:
            lines.append(line)
            if re.match(pattern, line):
                wall, cpu = time.perf_counter() - started, cpu_seconds(process.pid)
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                return {"wall_seconds": wall, "cpu_seconds": cpu}
        sys.exit(f"{words} printed no line {pattern!r}:\n{''.join(lines)[-3000:]}")

    return go


def cpu_seconds(session: int) -> float:
    """CPU seconds of all processes of a session so far."""
    ticks = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(") ")[2].split()  # from the third one, the state, on
        except OSError:  # it has ended
            continue
        if int(fields[3]) == session:
            ticks += sum(map(int, fields[11:15]))  # user and system time, its own and of children that have ended
    return ticks / TICKS


if __name__ == "__main__":
    main()
