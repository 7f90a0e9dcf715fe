"""Whether a checkpoint is whole, and what it lacks otherwise.

One idea: a checkpoint counts only if its manifest is intact and every file is what the manifest says. A manifest that
was cut short, a changed byte and a pickle are all found before anything is loaded.
"""

from __future__ import annotations

import pickle
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imagelm.utils.artifacts import DATA_STATE_FILE, MANIFEST_FILE
from imagelm.utils.manifest import damaged_files, read_manifest
from imagelm.utils.text import first_line

WEIGHTS_AND_STEP = "weights or step"
# The parts that a run can do without if the user allows it, by the start of their files' names.
PARTS = {
    "optimizer": "optimizer",
    "scheduler": "scheduler",
    "rng_state": "random numbers",
    DATA_STATE_FILE: "data state",
}
STATE_SUFFIXES = (".pt", ".pth")  # what Trainer reads with torch.load
# What a state may hold beside tensors: NumPy's generator state. The first is the function that rebuilds an array.
SAFE_GLOBALS: list[Any] = [np.empty(0).__reduce__()[0], np.ndarray, np.dtype, type(np.dtype(np.uint32))]


@dataclass
class CheckpointReport:
    """What is missing or damaged in a checkpoint, by part."""

    folder: Path
    problems: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def is_whole(self) -> bool:
        return not self.problems

    @property
    def is_usable(self) -> bool:
        """Whether weights and step are intact."""
        return WEIGHTS_AND_STEP not in self.problems

    @property
    def why(self) -> str:
        return "; ".join(reason for reasons in self.problems.values() for reason in reasons)


def inspect_checkpoint(folder: Path) -> CheckpointReport:
    """Compares a checkpoint with its manifest, and checks that its states can be read without running a pickle."""
    report = CheckpointReport(folder)
    files = read_manifest(folder)
    if files is None:
        report.problems[WEIGHTS_AND_STEP] = [
            f"no valid {MANIFEST_FILE}: it was not written completely, or by another program"
        ]
        return report
    damaged = dict(damaged_files(folder, files))
    for name in files:
        if reason := damaged.get(name) or _why_unreadable(folder / name):
            part = next((part for start, part in PARTS.items() if name.startswith(start)), WEIGHTS_AND_STEP)
            report.problems[part].append(f"{name} {reason}")
    return report


def _why_unreadable(file: Path) -> str | None:
    """Why torch.load refuses a state; no code of a pickle is run, and no tensor is read."""
    try:
        if file.suffix in STATE_SUFFIXES:
            with torch.serialization.safe_globals(SAFE_GLOBALS):
                torch.load(file, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError, AttributeError) as error:
        return f"can't be read: {first_line(error)}"
    return None
