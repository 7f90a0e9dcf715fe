"""Batch, epochs, learning rate and warm-up of a run that doesn't give them, chosen by the number of its rows.

One idea: a model from scratch needs a certain number of updates, whatever the data: few rows are read often in small
batches, many rows a few times in large ones. The constants follow the recipes and a trial on 1,000 rows of digits
(docs/how_to/train.md); the defaults of transformers (5e-5, 3 epochs) are made for fine-tuning.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from imagelm.utils.artifacts import STATS_FILE
from imagelm.utils.atomic_io import read_json
from imagelm.utils.errors import InputError

NUM_UPDATES = 1500
BATCHES, EPOCHS = (8, 128), (3, 30)  # the smallest and the largest
ADAMW_RATE, FULL_BATCH = (
    1e-3,
    64,
)  # the rate of AdamW for this batch and larger ones; smaller with the root of the batch
MUON_RATE = 1e-2  # of AdamW beside Muon
FINE_TUNING = 0.1  # share of the rate, so that what was learnt before is kept
WARMUP = 0.05  # share of the updates


def sized_defaults(num_rows: int, muon: bool, fine_tuning: bool, num_processes: int = 1) -> dict[str, float]:
    """The values by their options' names, for a number of training rows; the batch is that of one process."""
    batch = min(max(2 ** round(math.log2(max(math.sqrt(num_rows) / 2, 1))), BATCHES[0]), BATCHES[1])
    epochs = min(max(math.ceil(NUM_UPDATES * batch / num_rows), EPOCHS[0]), EPOCHS[1])
    rate = MUON_RATE if muon else ADAMW_RATE * math.sqrt(min(batch / FULL_BATCH, 1))
    return {
        "per_device_train_batch_size": max(1, batch // num_processes),
        "num_train_epochs": float(epochs),
        "learning_rate": float(f"{rate * (FINE_TUNING if fine_tuning else 1):.1g}"),
        "warmup_steps": WARMUP,
    }


def choose_by_size(values: dict[str, Any], folder: Path) -> dict[str, float]:
    """Fills in the values that weren't given, by the options' names, and returns them; `folder` holds `stats.json`.

    A warm-up belongs to a chosen rate; a given rate has none by default. Data that can't be read are refused later,
    with the reason.
    """
    try:
        num_rows = max(1, int(read_json(folder / STATS_FILE)["num_rows"]["train"]))
    except (OSError, ValueError, KeyError, TypeError):
        num_rows = 1
    several, tuned = int(os.environ.get("WORLD_SIZE", 1)), values["model_name_or_path"] is not None
    defaults = sized_defaults(num_rows, values["optimizer"] == "muon", tuned, several)
    if values["learning_rate"] is not None:
        defaults["warmup_steps"] = 0.0
    share_global_batch(values, several)
    chosen = {name: value for name, value in defaults.items() if values[name] is None}
    values |= chosen
    return chosen


def share_global_batch(values: dict[str, Any], num_processes: int) -> None:
    """Fills in the rows of a process, or its accumulation steps, that give `--global_batch_size` rows per update.

    Raises:
        InputError: The processes can't share the rows equally.
    """
    whole, rows, steps = (
        values[name] for name in ("global_batch_size", "per_device_train_batch_size", "gradient_accumulation_steps")
    )
    if whole is None:
        return
    parts = f"--global_batch_size {whole}: {num_processes} processes"
    if rows is None:
        rows, rest = divmod(whole, num_processes * max(steps, 1))
        parts += f" x {steps} accumulation steps"
    elif steps == 1:
        steps, rest = divmod(whole, num_processes * max(rows, 1))
        parts += f" x {rows} rows (--per_device_train_batch_size)"
    else:
        rest = whole - num_processes * rows * steps
        parts += f" x {rows} rows x {steps} accumulation steps"
    if rest or not rows or not steps:
        raise InputError(f"{parts} don't give this number of rows; choose a multiple, or other numbers of both")
    values |= {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps}
