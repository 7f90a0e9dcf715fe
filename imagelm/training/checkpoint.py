"""Checkpoints that are whole or absent, and which of them a run goes on from.

One idea: Trainer writes into a folder beside; then `data_state.json` (what the run is, where it stands in its data) and
`complete.json` (size and SHA-256 of every file, written last) are added, all is brought to the disk, and a rename makes
it a checkpoint. Resuming believes nothing else.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import safe_globals

from imagelm.utils.atomic_io import (
    WRITE_ERRORS,
    read_json,
    replace_folder,
    sync_folder,
    why_not_written,
    write_json,
    write_text,
)
from imagelm.utils.errors import DivergedError, InputError, StorageError

CHECKPOINT_PATTERN = re.compile(r"checkpoint-(\d+)")
MANIFEST_FILE = "complete.json"
DATA_STATE_FILE = "data_state.json"
WEIGHTS_AND_STEP = "weights or step"
# What a run can go on without, if it's told to; everything else in a checkpoint it can't.
PARTS = {
    "optimizer": "optimizer",
    "scheduler": "scheduler",
    "rng_state": "random numbers",
    DATA_STATE_FILE: "data state",
}
STATE_SUFFIXES = (".pt", ".pth")  # what Trainer reads with torch.load


class CheckpointWriter:
    """Lets Trainer write its checkpoint beside the final place, and makes it one when it's whole.

    Args:
        identity: What determines the weights of this run; kept in every checkpoint.

    Attributes:
        staging: The folder that Trainer is to write `checkpoint-N` into; None while none is written.
        unconfirmed: The newest checkpoint, until another step was finite: only then older ones are deleted.
    """

    def __init__(self, identity: dict) -> None:
        self.identity = identity
        self.staging: Path | None = None
        self.unconfirmed: Path | None = None

    def write(self, trainer: Trainer, save: Callable[[], None]) -> None:
        """Writes the checkpoint of the step at hand; every process must call it.

        Args:
            trainer: The trainer.
            save: Makes Trainer write into `staging`.

        Raises:
            DivergedError: The weights aren't finite; nothing was written.
            StorageError: It can't be written; the checkpoints before it stay.
        """
        step, output = trainer.state.global_step, Path(trainer.args.output_dir)
        check_weights(trainer.model, step)
        self.confirm(trainer)
        checkpoint = output / f"checkpoint-{step}"
        staging = output / f".{checkpoint.name}.partial-save"
        # Else processes would wait for each other inside the library, where one that failed never comes to.
        trainer.state.best_global_step = None
        try:
            _in_all_processes(trainer, checkpoint, lambda: _make_empty(staging), main_alone=True)
            self.staging = staging
            _in_all_processes(trainer, checkpoint, save)
            self.staging = None
            finish = lambda: self._finish(trainer, staging / checkpoint.name, checkpoint)  # noqa: E731
            _in_all_processes(trainer, checkpoint, finish, main_alone=True)
        finally:
            self.staging = None
            if trainer.is_world_process_zero():
                shutil.rmtree(staging, ignore_errors=True)
        self.unconfirmed = checkpoint

    def confirm(self, trainer: Trainer) -> None:
        """The newest checkpoint proved good: older ones than `save_total_limit` go now."""
        if self.unconfirmed is None:
            return
        limit, newest = trainer.args.save_total_limit, self.unconfirmed
        self.unconfirmed = None
        if limit and trainer.is_world_process_zero():
            older = [folder for folder in checkpoints(newest.parent) if _step(folder) < _step(newest)]
            for folder in older[: max(0, len(older) - limit + 1)]:
                shutil.rmtree(folder, ignore_errors=True)

    def withdraw(self, trainer: Trainer) -> Path | None:
        """Removes the newest checkpoint if the very next step wasn't finite, and returns it."""
        checkpoint, self.unconfirmed = self.unconfirmed, None
        if checkpoint is not None and trainer.is_world_process_zero():
            shutil.rmtree(checkpoint, ignore_errors=True)
        return checkpoint

    def _finish(self, trainer: Trainer, written: Path, checkpoint: Path) -> None:
        # A pickle that nobody reads, with the user's tokens in clear.
        (written / "training_args.bin").unlink(missing_ok=True)
        state = {"identity": self.identity, **_position(trainer)}
        write_json(written / DATA_STATE_FILE, state)
        write_manifest(written)
        replace_folder(written, checkpoint)


@dataclass
class CheckpointReport:
    """What is wrong with a checkpoint.

    Attributes:
        problems: What is missing or damaged, by part; empty where the checkpoint is whole.
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

    def note(self, part: str, reason: str) -> None:
        """Adds a problem."""
        self.problems.setdefault(part, []).append(reason)


@dataclass
class CheckpointChoice:
    """The checkpoint that a run goes on from.

    Attributes:
        checkpoint: Its folder; None where there is none to go on from.
        missing: Parts that are left out.
        notes: What was passed over and why, a line each.
    """

    checkpoint: Path | None = None
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write_manifest(folder: Path) -> None:
    """Writes the completeness mark: one line of JSON and its own SHA-256, so that no byte of it can change unseen."""
    sync_folder(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    content = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in files
    }
    line = json.dumps({"files": content})
    write_text(folder / MANIFEST_FILE, f"{line}\n{hashlib.sha256(line.encode()).hexdigest()}\n")


def inspect_checkpoint(folder: Path) -> CheckpointReport:
    """Compares a checkpoint with its completeness mark, and looks whether its states can be read without a pickle."""
    found = CheckpointReport(folder)
    files = _read_manifest(folder)
    if files is None:
        found.note(
            WEIGHTS_AND_STEP, f"no valid {MANIFEST_FILE}, so writing it wasn't finished, or it isn't of this program"
        )
        return found
    for name, expected in files.items():
        part = next((part for start, part in PARTS.items() if name.startswith(start)), WEIGHTS_AND_STEP)
        file = folder / name
        if not file.is_file():
            found.note(part, f"{name} is missing")
        elif (size := file.stat().st_size) != expected["bytes"]:
            found.note(part, f"{name} has {size:,} bytes instead of {expected['bytes']:,}")
        elif _sha256(file) != expected["sha256"]:
            found.note(part, f"{name} isn't what was written (its SHA-256 differs)")
        elif file.suffix in STATE_SUFFIXES and (reason := _unreadable(file)):
            found.note(part, f"{name} can't be read: {reason}")
    return found


def checkpoints(output: Path) -> list[Path]:
    """The folders of checkpoints, whole or not, the newest last."""
    found = [folder for folder in output.iterdir() if CHECKPOINT_PATTERN.fullmatch(folder.name) and folder.is_dir()]
    return sorted(found, key=_step)


def choose_checkpoint(output: Path, named: Path | None, allow_partial: bool) -> CheckpointChoice:
    """The newest whole checkpoint, or the one that the user named.

    Args:
        output: Output folder of the run.
        named: A checkpoint in it; None for the newest.
        allow_partial: Whether one may do that lacks optimizer, scheduler, random numbers or data state.

    Raises:
        InputError: The named one isn't whole, or none is but one could do with `allow_partial`.
    """
    choice, usable = CheckpointChoice(), None
    for folder in [named] if named else reversed(checkpoints(output)):
        found = inspect_checkpoint(folder)
        if found.is_whole:
            choice.checkpoint = folder
            return choice
        choice.notes.append(f"passed over {folder}: {found.why}")
        usable = usable or (found if found.is_usable else None)
    if usable and not allow_partial:
        raise InputError(
            "\n".join(choice.notes) + f"\n{usable.folder} has weights and step, but not all of its state. Going on "
            "from it wouldn't give the run that was begun; --allow_partial_resume does so all the same"
        )
    if named and not usable:
        raise InputError(f"--resume_from_checkpoint {named} can't be resumed: {inspect_checkpoint(named).why}")
    if usable:
        choice.checkpoint, choice.missing = usable.folder, list(usable.problems)
        choice.notes.append(f"{usable.folder} is resumed without its {', '.join(choice.missing)}")
    return choice


class PartialResume(TrainerCallback):
    """Brings back what is left where optimizer or scheduler is missing: Trainer alone would then begin both anew.

    Args:
        folder: The intact files; None where nothing is resumed.
        missing: Parts that aren't among them.
    """

    def __init__(self, folder: str | None, missing: list[str]) -> None:
        self.folder, self.missing = Path(folder or "."), missing

    def on_train_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs) -> None:
        """The scheduler goes to the step at hand in any case: a second warm-up would be another run."""
        if not {"optimizer", "scheduler"} & set(self.missing):
            return
        if "optimizer" not in self.missing:
            optimizer.load_state_dict(torch.load(self.folder / "optimizer.pt", map_location="cpu", weights_only=True))
        if "scheduler" not in self.missing:
            lr_scheduler.load_state_dict(torch.load(self.folder / "scheduler.pt", weights_only=True))
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the optimizer took no step in between
                for _ in range(state.global_step):
                    lr_scheduler.step()
        for group, learning_rate in zip(optimizer.param_groups, lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = learning_rate

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """The folder has served."""
        if self.missing and state.is_world_process_zero:
            shutil.rmtree(self.folder, ignore_errors=True)


def identity_of(checkpoint: Path) -> dict | None:
    """What determines the weights of the run that a checkpoint is of; None where its data state is missing."""
    with suppress(OSError, ValueError, KeyError):
        return read_json(checkpoint / DATA_STATE_FILE)["identity"]
    return None


def copy_intact_files(choice: CheckpointChoice) -> Path:
    """A folder beside a checkpoint with its intact files alone: what Trainer is given where parts are damaged."""
    folder = choice.checkpoint.with_name(f".{choice.checkpoint.name}.partial-resume")
    _make_empty(folder)
    left_out = tuple(start for start, part in PARTS.items() if part in choice.missing)
    for name in _read_manifest(choice.checkpoint) or {}:
        if not name.startswith(left_out):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(choice.checkpoint / name, folder / name)
    return folder


def check_weights(model: torch.nn.Module, step: int) -> None:
    """Refuses weights that nobody could use.

    Raises:
        DivergedError: One isn't finite.
    """
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise DivergedError(f"weight {name} isn't finite at step {step}: the run diverged; nothing was saved of it")


def _in_all_processes(trainer: Trainer, checkpoint: Path, work: Callable[[], None], main_alone: bool = False) -> None:
    """Does a part of the saving in all processes (or the main one), and fails in all where it fails in one."""
    reason = None
    try:
        if not main_alone or trainer.is_world_process_zero():
            work()
    except WRITE_ERRORS as error:
        reason = why_not_written(error, checkpoint.parent)
    reasons = gather_object([reason]) if trainer.args.world_size > 1 else [reason]
    if reason := next(filter(None, reasons), None):
        kept = ", ".join(folder.name for folder in checkpoints(checkpoint.parent)) or "none yet"
        raise StorageError(
            f"{checkpoint} can't be written: {reason}. The run stopped at step {_step(checkpoint)}; what stood in "
            f"{checkpoint.parent} before still does (checkpoints: {kept}). The same command then goes on"
        )


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _position(trainer: Trainer) -> dict:
    args, state = trainer.args, trainer.state
    return {
        "step": state.global_step,
        "epoch": state.epoch,
        "data_seed": args.seed if args.data_seed is None else args.data_seed,
        "rows_per_step": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
    }


def _read_manifest(folder: Path) -> dict | None:
    """The files that the mark names; None where it's missing or not as it was written."""
    try:
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
        line, digest, rest = text.split("\n")
        intact = not rest and digest == hashlib.sha256(line.encode()).hexdigest()
        files = json.loads(line)["files"] if intact else None
    except (OSError, ValueError, KeyError):
        return None
    # A mark that leads out of its folder was made by somebody else.
    inside = files is not None and not any(Path(name).is_absolute() or ".." in Path(name).parts for name in files)
    return files if inside else None


def _unreadable(file: Path) -> str | None:
    """Why torch.load refuses a file; it gets neither a pickle's code run nor its tensors read."""
    try:
        with safe_globals():
            torch.load(file, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError, AttributeError) as error:
        return str(error).strip().split("\n")[0][:200]
    return None


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _step(folder: Path) -> int:
    return int(CHECKPOINT_PATTERN.fullmatch(folder.name)[1])
