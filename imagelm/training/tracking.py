"""Trackers of a run (`--report_to`): trackio, TensorBoard, Weights & Biases.

One idea: transformers' own callbacks do the work. Only what they leave open is set here: names, and that everything
stays on this machine, in the run's folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from transformers import TrainingArguments

from imagelm.training.launch import Launch
from imagelm.utils.artifacts import TRACKING_FOLDER

PROJECT = "imagelm"


@contextmanager
def tracking(launch: Launch) -> Iterator[None]:
    """Wraps a run: trackers that are built inside write into its folder, under the name of the folder.

    The user's own options and variables (`WANDB_MODE=online`, `TRACKIO_DIR`, …) win.
    """
    args, folder = launch.args, (launch.output / TRACKING_FOLDER).absolute()
    if not args.report_to:
        yield
        return
    defaults = {
        **{"TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard"), "TRACKIO_DIR": str(folder / "trackio")},
        **{"WANDB_DIR": str(folder), "WANDB_PROJECT": PROJECT, "WANDB_MODE": "offline", "WANDB_SILENT": "true"},
    }
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ |= added
    args.run_name = args.run_name or launch.output.resolve().name
    if args.project == TrainingArguments.project:
        args.project = PROJECT
    launch.notes.append(f"tracked by {', '.join(args.report_to)}, in {launch.output / TRACKING_FOLDER}")
    try:
        yield
    finally:
        if wandb := sys.modules.get("wandb"):
            wandb.finish()  # otherwise the next run of this process continues this one
        for name in added:
            os.environ.pop(name, None)
