"""The manifest of a checkpoint: size and SHA-256 of every file, written last.

One idea: a checkpoint counts only if its manifest is intact and every file is what the manifest says. A manifest that
was cut short, a changed byte and a pickle are all found before anything is loaded.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imagelm.utils.artifacts import DATA_STATE_FILE, MANIFEST_FILE
from imagelm.utils.atomic_io import sync_folder, write_text
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
    """What is wrong with a checkpoint.

    Attributes:
        problems: What is missing or damaged, by part; empty if the checkpoint is whole.
    """

    folder: Path
    problems: dict[str, list[str]] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        return not self.problems

    @property
    def is_usable(self) -> bool:
        """Whether weights and step are intact."""
        return WEIGHTS_AND_STEP not in self.problems

    @property
    def why(self) -> str:
        """The problems in one line."""
        return "; ".join(reason for reasons in self.problems.values() for reason in reasons)

    def add(self, part: str, reason: str) -> None:
        """Adds a problem."""
        self.problems.setdefault(part, []).append(reason)


def write_manifest(folder: Path) -> None:
    """Writes the manifest: one line of JSON and the line's own SHA-256, so that a change to either is noticed."""
    sync_folder(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    content = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in files
    }
    line = json.dumps({"files": content})
    write_text(folder / MANIFEST_FILE, f"{line}\n{hashlib.sha256(line.encode()).hexdigest()}\n")


def read_manifest(folder: Path) -> dict[str, dict] | None:
    """The files that the manifest names; None if it is missing or not as it was written."""
    try:
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
        line, digest, rest = text.split("\n")
        intact = not rest and digest == hashlib.sha256(line.encode()).hexdigest()
        files = json.loads(line)["files"] if intact else None
    except (OSError, ValueError, KeyError):
        return None
    # This program never writes a manifest that leads out of its folder.
    inside = files is not None and not any(Path(name).is_absolute() or ".." in Path(name).parts for name in files)
    return files if inside else None


def inspect_checkpoint(folder: Path) -> CheckpointReport:
    """Compares a checkpoint with its manifest, and checks that its states can be read without running a pickle."""
    report = CheckpointReport(folder)
    files = read_manifest(folder)
    if files is None:
        report.add(WEIGHTS_AND_STEP, f"no valid {MANIFEST_FILE}: it was not written completely, or by another program")
        return report
    for name, expected in files.items():
        part = next((part for start, part in PARTS.items() if name.startswith(start)), WEIGHTS_AND_STEP)
        file = folder / name
        if not file.is_file():
            report.add(part, f"{name} is missing")
        elif (size := file.stat().st_size) != expected["bytes"]:
            report.add(part, f"{name} has {size:,} bytes instead of {expected['bytes']:,}")
        elif _sha256(file) != expected["sha256"]:
            report.add(part, f"{name} isn't what was written (its SHA-256 differs)")
        elif file.suffix in STATE_SUFFIXES and (reason := _why_unreadable(file)):
            report.add(part, f"{name} can't be read: {reason}")
    return report


def _why_unreadable(file: Path) -> str | None:
    """Why torch.load refuses a file; no code of a pickle is run, and no tensor is read."""
    try:
        with torch.serialization.safe_globals(SAFE_GLOBALS):
            torch.load(file, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError, AttributeError) as error:
        return first_line(error)
    return None


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
