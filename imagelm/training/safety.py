"""What is watched while training: a step that isn't finite is never taken, a loss that jumps is told.

One idea: Trainer itself trains on through NaN and logs 0; here loss and gradient norm of every update are looked at
before the optimizer sees them, in all processes together.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback

from imagelm.utils.artifacts import DIVERGED_FILE
from imagelm.utils.atomic_io import write_json
from imagelm.utils.errors import DivergedError

NUM_SHOWN_ROWS = 20
# A spike is a loss this many robust standard deviations, and this factor, above the median of the last losses.
SPIKE_DEVIATIONS, SPIKE_FACTOR = 10, 1.5
SPIKE_WINDOW, SPIKE_MIN_LOSSES, SPIKE_PAUSE = 64, 16, 20
MAX_KEPT_SPIKES = 100
READ_ROWS = 1024


class FiniteSteps(TrainerCallback):
    """Stops a run before the optimizer's step where loss or gradient isn't finite.

    Args:
        trainer: The trainer that this is a callback of; gives loss, gradient norm and batches of the update at hand.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.spikes = LossSpikes()

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        """Looks at the update at hand in all processes.

        Raises:
            DivergedError: In every process, with step, learning rate and rows.
        """
        trainer = self.trainer
        loss, norm = trainer.update.loss.float(), torch.as_tensor(trainer.update.grad_norm).float().to(args.device)
        figures = torch.stack([loss, norm, (~loss.isfinite()).float(), (~norm.isfinite()).float()])
        if args.world_size > 1:
            figures = trainer.accelerator.reduce(figures, reduction="mean")
        loss, norm, bad_loss, bad_norm = figures.tolist()
        if bad_loss or (bad_norm and not _scaler_recovers(trainer)):
            self._stop(loss, norm)
        trainer.checkpoint_writer.confirm(trainer)
        if state.is_world_process_zero:
            self.spikes.look(state.global_step + 1, loss, trainer.lr_scheduler.get_last_lr()[0])

    def _stop(self, loss: float, norm: float) -> None:
        trainer = self.trainer
        step, learning_rate = trainer.state.global_step + 1, trainer.lr_scheduler.get_last_lr()[0]
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
        batches = [batch["input_ids"].cpu().numpy() for batch in trainer.update.batches]
        rows = find_rows(trainer.train_dataset, [row for batch in batches for row in batch])
        every = gather_object(rows) if trainer.args.world_size > 1 else rows
        withdrawn = trainer.checkpoint_writer.withdraw(trainer)
        if trainer.is_world_process_zero():
            report = {"step": step, "learning_rate": learning_rate, "loss": str(loss), "gradient_norm": str(norm)}
            write_json(Path(trainer.args.output_dir) / DIVERGED_FILE, report | {"training_rows": every})
        shown = ", ".join(map(str, every[:NUM_SHOWN_ROWS])) + (", …" if len(every) > NUM_SHOWN_ROWS else "")
        removed = f"{withdrawn.name}, of the very step before, was removed; " if withdrawn else ""
        raise DivergedError(
            f"{what} at step {step} (learning rate {learning_rate:.3g}), so this step wasn't taken: the run diverged "
            f"and was stopped. The batch held the training rows {shown} (all of them in {DIVERGED_FILE}). {removed}"
            "best_model and the checkpoints before it stay. Try a lower --learning_rate, or no fp16"
        )


class LossSpikes:
    """Tells losses that are far above the last ones.

    Attributes:
        found: Step, loss and the usual loss of each; the first `MAX_KEPT_SPIKES`.
    """

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=SPIKE_WINDOW)
        self.found: list[dict] = []
        self.last = -SPIKE_PAUSE

    def look(self, step: int, loss: float, learning_rate: float) -> None:
        """Takes note of the loss of one update; prints a line where it's a spike, at most one in `SPIKE_PAUSE`."""
        if len(self.losses) >= SPIKE_MIN_LOSSES and step - self.last >= SPIKE_PAUSE:
            usual = statistics.median(self.losses)
            deviation = 1.4826 * statistics.median(abs(loss - usual) for loss in self.losses)
            if loss > usual + SPIKE_DEVIATIONS * deviation and loss > SPIKE_FACTOR * usual:
                self.last = step
                tqdm.write(
                    f"loss spike at step {step}: {loss:.4g}, usually {usual:.4g} (learning rate {learning_rate:.3g})"
                )
                if len(self.found) < MAX_KEPT_SPIKES:
                    self.found.append({"step": step, "loss": loss, "usual": usual})
        self.losses.append(loss)


def check_loss(loss: float, learning_rate: float, step: int) -> None:
    """Refuses to go on from an evaluation that isn't finite.

    Raises:
        DivergedError: It isn't.
    """
    if not math.isfinite(loss):
        raise DivergedError(
            f"the loss on the test rows is {loss} after step {step} (learning rate {learning_rate:.3g}): the run "
            "diverged and was stopped; best_model and the checkpoints before it stay. Try a lower --learning_rate"
        )


def find_rows(dataset: Sequence, wanted: list[np.ndarray]) -> list[int]:
    """The numbers of rows in the training split, by their content; -1 for one that isn't there.

    Args:
        dataset: Rows with `input_ids`, read by lists of numbers.
        wanted: Rows as they stood in a batch, padded on the right; each of shape (longest row,).
    """
    found = [-1] * len(wanted)
    for start in range(0, len(dataset), READ_ROWS):
        rows = dataset.__getitems__(list(range(start, min(start + READ_ROWS, len(dataset)))))
        ids = [np.asarray(row["input_ids"]) for row in rows]
        by_length = {}
        for offset, row in enumerate(ids):
            by_length.setdefault(len(row), {}).setdefault(row.astype(np.int64).tobytes(), start + offset)
        for number, row in enumerate(wanted):
            if found[number] < 0:
                hits = (rows_of.get(row[:length].astype(np.int64).tobytes()) for length, rows_of in by_length.items())
                found[number] = next((hit for hit in hits if hit is not None), -1)
    return found


def _scaler_recovers(trainer: Trainer) -> bool:
    """In fp16 a gradient that overflows is no divergence: the step is skipped, and the loss scaled down for the next.

    That ends where the scale has come down to 1: then it isn't the scale that makes it overflow.
    """
    scaler = trainer.accelerator.scaler
    return scaler is not None and scaler.get_scale() > 1
