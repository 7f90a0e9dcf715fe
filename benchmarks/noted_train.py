#!/usr/bin/env python
"""Trains as `imagelm train` does, and notes each row as it enters the model.

    accelerate launch -m benchmarks.noted_train NOTES --dataset_dir … (all options of `imagelm train`)

NOTES.0, NOTES.1, … get an entry of type `NOTE` for each row that the process trains on; NOTES.0.json, … a line for
each launch. Repeated rows that fill the last batch aren't scored and aren't noted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import time
from typing import Any

import numpy as np
import xxhash

NOTE = np.dtype([("step", "<u4"), ("row", "<u8")])  # the update's number, from 0, and `digest` of the row


def digest(ids: np.ndarray) -> int:
    """Of the token ids of a row, whatever their type."""
    return xxhash.xxh3_64_intdigest(ids.astype(np.uint16).tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--stop_at", type=int, help="rows of process 0 after which it sends SIGTERM to the launcher")
    parser.add_argument("notes", metavar="NOTES", help="files to write, without .0, .1, …")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="options of imagelm train")
    arguments = parser.parse_args()
    notes, sys.argv[1:] = arguments.notes, arguments.words
    import imagelm.training.trainer as module
    from imagelm.commands import train
    from imagelm.training.signals import StopOnSignal
    from imagelm.utils.errors import run_script

    class NotingTrainer(module.ImageTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.launch: dict[str, Any] = {}
            self.num_noted = 0

        def get_batch_samples(self, *args: Any) -> Any:
            started = time.perf_counter()
            batches = super().get_batch_samples(*args)
            self.launch = self.launch or {
                "process": self.args.process_index,
                "first_step": self.state.global_step,
                "seconds_to_first_batch": round(time.perf_counter() - started, 2),
                "started": time.perf_counter(),
            }
            return batches

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            if self.checkpoints.identity:  # none in the rehearsal
                scored = (inputs["labels"] != -100).numpy()
                rows = [
                    digest(ids[mask])
                    for ids, mask in zip(inputs["input_ids"].numpy(), scored, strict=True)
                    if mask.any()
                ]
                noted = np.array([(self.state.global_step, row) for row in rows], NOTE)
                with open(f"{notes}.{self.args.process_index}", "ab") as file:
                    file.write(noted.tobytes())
                before, self.num_noted = self.num_noted, self.num_noted + len(rows)
                if self.args.process_index == 0 and before < (arguments.stop_at or 0) <= self.num_noted:
                    os.kill(os.getppid(), signal.SIGTERM)
                    (stop,) = (call for call in self.callback_handler.callbacks if isinstance(call, StopOnSignal))
                    while not stop.received:  # or a short run would end before the launcher has passed it on
                        time.sleep(0.01)
            loss = super().training_step(model, inputs, num_items_in_batch)
            self.launch.setdefault("peak_mib_after_first_step", peak_mib())
            return loss

        def train(self, *args: Any, **kwargs: Any) -> Any:
            done = super().train(*args, **kwargs)
            if self.checkpoints.identity:
                self.launch |= {"last_step": self.state.global_step, "peak_mib": peak_mib()}
                self.launch["seconds"] = round(time.perf_counter() - self.launch.pop("started"), 2)
                with open(f"{notes}.{self.args.process_index}.json", "a") as file:
                    file.write(json.dumps(self.launch) + "\n")
            return done

    module.ImageTrainer = NotingTrainer
    run_script(train.main)


def peak_mib() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
