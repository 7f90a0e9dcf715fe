"""Trains as `imagelm train` does, and notes which rows count in each step of each process: NOTES.RANK, a line a row."""

from __future__ import annotations

import json
import sys

import imagelm.training.trainer as module
from imagelm.commands import train
from imagelm.utils.errors import run_script

NOTES = sys.argv.pop(1)


class NotingTrainer(module.ImageTrainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.checkpoints.identity:  # none in the rehearsal
            with open(f"{NOTES}.{self.args.process_index}", "a") as file:
                for ids, labels in zip(inputs["input_ids"], inputs["labels"], strict=True):
                    if row := ids[labels != -100].tolist():
                        file.write(json.dumps([self.state.global_step, row]) + "\n")
        return super().training_step(model, inputs, num_items_in_batch)


if __name__ == "__main__":
    module.ImageTrainer = NotingTrainer
    run_script(train.main)
