#!/usr/bin/env python
"""Runs a training script unchanged and records the end of each optimizer step with torch's hook.

    python benchmarks/timed.py --steps 20 --times times.json SCRIPT [its arguments …]

Wall time, CPU time of the process and its peak resident memory go into the JSON file; after the last step the process
ends, so that a run of hours can be timed as a user would start it. A GPU is waited for twice only, after the first
`--first` steps and after the last, since waiting in each step would slow down what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import runpy
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, required=True, help="optimizer steps after which to end")
    parser.add_argument("--first", type=int, default=4, help="steps that aren't measured")
    parser.add_argument("--times", type=Path, required=True, help="JSON file to write")
    parser.add_argument("script", help="script to run")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="its arguments")
    arguments = parser.parse_args()
    sys.argv = [arguments.script, *arguments.words]
    sys.path.insert(0, str(Path(arguments.script).resolve().parent))

    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    started, ends = time.perf_counter(), []

    def note(*_: object) -> None:
        if torch.cuda.is_initialized() and len(ends) + 1 in (arguments.first, arguments.steps):
            torch.cuda.synchronize()
        ends.append((time.perf_counter() - started, time.process_time()))
        if len(ends) == arguments.steps:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            arguments.times.write_text(
                json.dumps({"ends": ends, "peak_resident_mib": peak, "on_gpu": torch.cuda.is_initialized()})
            )
            sys.stdout.flush()
            os._exit(0)

    register_optimizer_step_post_hook(note)
    runpy.run_path(arguments.script, run_name="__main__")


if __name__ == "__main__":
    main()
