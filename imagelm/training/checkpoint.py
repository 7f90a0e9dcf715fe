"""Checkpoints that are whole or absent.

One idea: while a run trains, Trainer's `output_dir` is a staging folder. When Trainer has written a checkpoint there,
`data_state.json` (which run it is, and its position in the data) and the manifest are added, everything is brought to
the disk, and a rename makes it a checkpoint. Nothing else is ever resumed.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback

from imagelm.training.manifest import PARTS
from imagelm.utils.artifacts import DATA_STATE_FILE, MANIFEST_FILE
from imagelm.utils.atomic_io import WRITE_ERRORS, read_json, why_not_written, write_json
from imagelm.utils.errors import DivergedError, StorageError
from imagelm.utils.manifest import read_manifest, write_manifest
from imagelm.utils.output_folder import place_folder, remove_folder

STATE_FILE = "trainer_state.json"  # Trainer's own
CHECKPOINT_PATTERN = re.compile(r"checkpoint-(\d+)")
STAGING_FOLDER = ".checkpoint-0.partial-save"  # a name that `remove_leftovers` knows, should a kill leave it there


class CheckpointWriter(TrainerCallback):
    """Makes Trainer write its checkpoints into a staging folder, and renames each one when it is whole.

    `Trainer.save_model` must call `begin`: it is what Trainer calls first when it writes a checkpoint. Every checkpoint
    keeps `identity`, what determines the weights of this run.

    Attributes:
        output: The run's output folder.
        saving: Whether a checkpoint is being written.
        unconfirmed: The newest checkpoint, until another step was finite: only then older ones are deleted.
    """

    def __init__(self, trainer: Trainer, identity: dict) -> None:
        self.trainer, self.identity = trainer, identity
        self.output = Path(str(trainer.args.output_dir))
        self.staging = self.output / STAGING_FOLDER
        self.saving = False
        self.unconfirmed: Path | None = None

    @contextmanager
    def staged(self) -> Iterator[None]:
        """Wraps a training; afterwards `output_dir` is the run's own again and the staging folder is gone.

        Raises:
            StorageError: A checkpoint can't be written; the earlier ones are unchanged. In every process.
        """
        try:
            yield
        except WRITE_ERRORS as error:
            if not self.saving:
                raise
            self._raise_in_all(why_not_written(error, self.output))
        finally:
            self.saving = False
            self.trainer.args.output_dir = str(self.output)
            if self.trainer.is_world_process_zero():
                shutil.rmtree(self.staging, ignore_errors=True)

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Sends checkpoints to the staging folder; reporters such as TensorBoard have their folders by now."""
        args.output_dir = str(self.staging)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """There is no further step: the weights of the last one are checked when they are saved."""
        self.confirm()

    def begin(self) -> None:
        """Prepares the checkpoint of the current step; every process must call it.

        Raises:
            DivergedError: The weights aren't finite; nothing was written.
            StorageError: In all processes but the one that can't write; `staged` raises it there.
        """
        check_weights(self.trainer.model, self.trainer.state.global_step)
        self.confirm()
        # Otherwise processes wait for each other inside Trainer, where one that fails to write never arrives.
        self.trainer.state.best_global_step = None
        self.saving = True
        if self.trainer.is_world_process_zero():
            if self.staging.exists():  # a removal that fails must be reported, as a read-only file system is
                shutil.rmtree(self.staging)
            self.staging.mkdir(parents=True)
        self._raise_in_all(None)

    def on_save(self, args, state, control, **kwargs) -> None:
        """Completes the checkpoint that Trainer has written."""
        self._raise_in_all(None)
        checkpoint = self._final_folder()
        if state.is_world_process_zero:
            written = self.staging / checkpoint.name
            # A pickle that nothing reads, with the user's tokens in clear.
            (written / "training_args.bin").unlink(missing_ok=True)
            content = {
                "identity": self.identity,
                "step": state.global_step,
                "epoch": state.epoch,
                "data_seed": args.seed if args.data_seed is None else args.data_seed,
                "rows_per_step": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
            }
            write_json(written / DATA_STATE_FILE, content)
            write_manifest(written)
            place_folder(written, checkpoint)
            shutil.rmtree(self.staging, ignore_errors=True)
        self._raise_in_all(None)
        self.saving, self.unconfirmed = False, checkpoint

    def confirm(self) -> None:
        """Call it when the newest checkpoint proved good: older ones beyond `save_total_limit` are deleted."""
        if self.unconfirmed is None:
            return
        limit, newest = self.trainer.args.save_total_limit, self.unconfirmed
        self.unconfirmed = None
        if limit and self.trainer.is_world_process_zero():
            older = [folder for folder in checkpoints(self.output) if step_of(folder) < step_of(newest)]
            for folder in older[: max(0, len(older) - limit + 1)]:
                remove_folder(folder)

    def withdraw(self) -> Path | None:
        """Removes the newest checkpoint if the very next step wasn't finite, and returns it."""
        checkpoint, self.unconfirmed = self.unconfirmed, None
        if checkpoint is not None and self.trainer.is_world_process_zero():
            remove_folder(checkpoint)
        return checkpoint

    def _final_folder(self) -> Path:
        return self.output / f"checkpoint-{self.trainer.state.global_step}"

    def _raise_in_all(self, reason: str | None) -> None:
        """Fails in all processes if one of them has a reason; each must call it as often as the others."""
        reasons = gather_object([reason]) if self.trainer.args.world_size > 1 else [reason]
        if reason := next(filter(None, reasons), None):
            checkpoint = self._final_folder()
            kept = ", ".join(folder.name for folder in checkpoints(self.output)) or "none yet"
            raise StorageError(
                f"{checkpoint} can't be written: {reason}. The run stopped at step {step_of(checkpoint)}; what "
                f"{self.output} held before is unchanged (checkpoints: {kept}). Run the same command again to continue"
            )


def checkpoints(output: Path) -> list[Path]:
    """The folders of checkpoints, whole or not, the newest last; not those in which only the user's files are left."""
    named = [folder for folder in output.iterdir() if CHECKPOINT_PATTERN.fullmatch(folder.name)]
    found = [folder for folder in named if any((folder / name).exists() for name in (MANIFEST_FILE, STATE_FILE))]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def checkpoint_identity(checkpoint: Path) -> dict | None:
    """What determines the weights of a checkpoint's run; None if its data state is missing."""
    with suppress(OSError, ValueError, KeyError):
        return read_json(checkpoint / DATA_STATE_FILE)["identity"]
    return None


def copy_intact_files(checkpoint: Path, missing: list[str]) -> Path:
    """Copies the files of a damaged checkpoint, without the missing parts, into a folder beside it for Trainer."""
    folder = checkpoint.with_name(f".{checkpoint.name}.partial-resume")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    omitted = tuple(start for start, part in PARTS.items() if part in missing)
    for name in read_manifest(checkpoint) or {}:
        if not name.startswith(omitted):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint / name, folder / name)
    return folder


class PartialResume(TrainerCallback):
    """Restores what is left in `folder` if optimizer or scheduler is missing: Trainer alone would reset both."""

    def __init__(self, folder: str | None, missing: list[str]) -> None:
        self.folder, self.missing = Path(folder or "."), missing

    def on_train_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs) -> None:
        """Brings the scheduler to the current step in any case: a second warm-up would make it another run."""
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
        if self.missing and state.is_world_process_zero:
            shutil.rmtree(self.folder, ignore_errors=True)


def check_weights(model: torch.nn.Module | None, step: int) -> None:
    """Raises `DivergedError` if a weight isn't finite."""
    for name, weight in model.named_parameters() if model else ():
        if not (weight.to_local() if isinstance(weight, DTensor) else weight).isfinite().all():
            raise DivergedError(f"weight {name} isn't finite at step {step}: the run diverged; nothing was saved of it")
