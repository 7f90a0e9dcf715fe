"""What guards a run: steps that aren't finite, and losses that jump.

One idea: Trainer itself trains on through NaN and logs 0; here loss and gradient norm of every update are checked
before the optimizer sees them, in all processes together.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from transformers import Trainer, TrainerCallback

from imagelm.training.checkpoint import CheckpointWriter
from imagelm.training.streaming import StreamedRows
from imagelm.utils.artifacts import DIVERGED_FILE
from imagelm.utils.atomic_io import write_json
from imagelm.utils.errors import DivergedError

logger = logging.getLogger(__name__)

NUM_SHOWN_ROWS = 20
# A spike is a loss this many robust standard deviations, and this factor, above the median of the last losses.
SPIKE_DEVIATIONS, SPIKE_FACTOR = 10, 1.5
SPIKE_WINDOW, SPIKE_MIN_LOSSES, SPIKE_PAUSE = 64, 16, 20
MAX_KEPT_SPIKES = 100
READ_ROWS = 1024


@dataclass
class Update:
    """An update that the optimizer was given; its figures are on the way to the host."""

    step: int
    learning_rate: float
    batches: list[dict[str, Tensor]]
    figures: Tensor  # on the host: loss, gradient norm, and for each whether it isn't finite in any process
    copied: torch.cuda.Event | None  # when they have arrived; None without a GPU


class FiniteSteps(TrainerCallback):
    """Stops a run before the optimizer's step if loss or gradient isn't finite.

    The trainer calls `begin` for each update and `add` after each backward pass. A finite step confirms the newest
    checkpoint, any other withdraws it.

    Reading figures makes the host wait for the device. With `max_unchecked` above 0 up to so many updates stay unread:
    the device itself skips the update that isn't finite and all after it, by the `found_inf` that torch's fused
    optimizers read. So the weights are the same when the host hears of it. Whatever is logged, evaluated or saved is
    read before.
    """

    def __init__(self, trainer: Trainer, checkpoints: CheckpointWriter, rows: Any, max_unchecked: int = 0) -> None:
        self.trainer, self.checkpoints, self.spikes = trainer, checkpoints, LossSpikes()
        self.rows = rows  # of training, in which those of a batch are looked up
        self.max_unchecked, self.unread = max_unchecked, deque[Update]()
        self.not_finite = torch.zeros(
            (), dtype=torch.bool, device=trainer.args.device
        )  # whether an update so far wasn't
        self.norm = 0.0  # of the gradient, in the newest update that was read
        self.begin([])

    def begin(self, batches: list[dict[str, Tensor]]) -> None:
        self.batches, self.num_added = batches, 0
        self.loss = self.grad_norm = torch.zeros(())
        self.figures: Tensor | None = None

    def add(self, loss: Tensor) -> None:
        """Adds the loss of a batch; after the last one takes the norm of the gradient, which isn't clipped yet.

        In fp16 the gradient is still scaled, which matters to the norm only, not to whether it is finite.
        """
        self.loss, self.num_added = self.loss + loss, self.num_added + 1
        if self.num_added == len(self.batches) and self.trainer.model is not None:
            self.grad_norm = total_norm(self.trainer.model)

    def take(self, figures: Tensor) -> None:
        """Takes the figures of an update that the device has computed and checked (`StepGraph`)."""
        self.figures = figures

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs) -> None:
        """Checks the update; raises `DivergedError` in every process, with step, learning rate and rows."""
        figures = self.figures
        if figures is None:
            figures = finite_figures(self.loss, self.grad_norm.to(args.device))
            if args.world_size > 1:
                figures = self.trainer.accelerator.reduce(figures, reduction="mean")
            if self.max_unchecked:
                self.not_finite.logical_or_(figures[2:].sum() > 0)
                optimizer.optimizer.found_inf = self.not_finite.float()
        self.unread.append(
            Update(state.global_step + 1, learning_rate_of(self.trainer), self.batches, *copy_to_host(figures))
        )
        self.read(self.max_unchecked)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if control.should_log or control.should_evaluate or control.should_save:
            self.read()

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        self.read()

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.read()

    def read(self, max_unchecked: int = 0) -> None:
        """Waits for the figures of the updates until at most `max_unchecked` are unread.

        Raises:
            DivergedError: One of them isn't finite.
        """
        while len(self.unread) > max_unchecked:
            update = self.unread.popleft()
            if update.copied:
                update.copied.synchronize()
            loss, norm, bad_loss, bad_norm = update.figures.tolist()
            self.norm = norm
            # fp16's loss scale explains such a gradient unless it is 1: the step is skipped and the scale reduced.
            scaler = self.trainer.accelerator.scaler
            recovers = scaler is not None and scaler.get_scale() > 1
            if bad_loss or (bad_norm and not recovers):
                self._stop(update, loss, norm)
            self.checkpoints.confirm()
            if self.trainer.is_world_process_zero():
                self.spikes.observe(update.step, loss, update.learning_rate)

    def _stop(self, update: Update, loss: float, norm: float) -> None:
        trainer, step, learning_rate = self.trainer, update.step, update.learning_rate
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
        batches = [batch["input_ids"].cpu().numpy() for batch in update.batches]
        wanted = [row for batch in batches for row in batch]
        streamed = isinstance(self.rows, StreamedRows)  # which can't be searched
        rows = [row.tolist() for row in wanted] if streamed else find_rows(self.rows, wanted)
        rows = gather_object(rows) if trainer.args.world_size > 1 else rows
        withdrawn = self.checkpoints.withdraw()
        if trainer.is_world_process_zero():
            report = {"step": step, "learning_rate": learning_rate, "loss": str(loss), "gradient_norm": str(norm)}
            write_json(self.checkpoints.output / DIVERGED_FILE, report | {"training_rows": rows})
        shown = ", ".join(map(str, rows[:NUM_SHOWN_ROWS])) + (", …" if len(rows) > NUM_SHOWN_ROWS else "")
        held = f"{len(rows)} training rows (their tokens are" if streamed else f"the training rows {shown} (all of them"
        removed = f"{withdrawn.name}, saved one step earlier, was removed; " if withdrawn else ""
        raise DivergedError(
            f"{what} at step {step} (learning rate {learning_rate:.3g}), so this step wasn't taken: the run diverged "
            f"and was stopped. The batch held {held} in {DIVERGED_FILE}). {removed}"
            "best_model and the earlier checkpoints are kept. Try a lower --learning_rate, or no fp16"
        )


def finite_figures(loss: Tensor, norm: Tensor) -> Tensor:
    """Loss, gradient norm, and for each 1 if it isn't finite; float32, shape (4,)."""
    loss, norm = loss.float(), norm.float()
    return torch.stack([loss, norm, (~loss.isfinite()).float(), (~norm.isfinite()).float()])


def copy_to_host(figures: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """The figures on the host, and what to wait for before they are read."""
    if figures.device.type != "cuda":
        return figures, None
    host = torch.empty(figures.shape, dtype=figures.dtype, pin_memory=True)
    host.copy_(figures, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()
    return host, copied


def total_norm(model: torch.nn.Module) -> Tensor:
    """The norm of all gradients, also of those of which each process holds a part, as with FSDP2."""
    norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class LossSpikes:
    """Logs losses that are far above the last ones; `found` keeps the first `MAX_KEPT_SPIKES`, for the run's record."""

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=SPIKE_WINDOW)
        self.found: list[dict] = []
        self.last = -SPIKE_PAUSE

    def observe(self, step: int, loss: float, learning_rate: float) -> None:
        """Adds the loss of one update; logs it if it is a spike, at most once in `SPIKE_PAUSE` steps."""
        if len(self.losses) >= SPIKE_MIN_LOSSES and step - self.last >= SPIKE_PAUSE:
            usual = statistics.median(self.losses)
            deviation = 1.4826 * statistics.median(abs(loss - usual) for loss in self.losses)
            if loss > usual + SPIKE_DEVIATIONS * deviation and loss > SPIKE_FACTOR * usual:
                self.last = step
                logger.info(
                    "loss spike at step %d: %.4g, usually %.4g (learning rate %.3g)", step, loss, usual, learning_rate
                )
                if len(self.found) < MAX_KEPT_SPIKES:
                    self.found.append({"step": step, "loss": loss, "usual": usual})
        self.losses.append(loss)


def find_rows(dataset: Any, wanted: Sequence[np.ndarray]) -> list[int]:
    """The numbers of rows in the training split, by their content; -1 for one that isn't there.

    `wanted` are rows as they were in a batch, padded on the right; each of shape (longest row,).
    """
    found = [-1] * len(wanted)
    for start in range(0, len(dataset), READ_ROWS):
        rows = dataset.__getitems__(list(range(start, min(start + READ_ROWS, len(dataset)))))
        by_length: defaultdict[int, dict[bytes, int]] = defaultdict(dict)
        for offset, row in enumerate(rows):
            ids = np.asarray(row["input_ids"])
            by_length[len(ids)].setdefault(ids.astype(np.int64).tobytes(), start + offset)
        for number, ids in enumerate(wanted):
            if found[number] < 0:
                hits = (rows_of.get(ids[:length].astype(np.int64).tobytes()) for length, rows_of in by_length.items())
                found[number] = next((hit for hit in hits if hit is not None), -1)
    return found


def learning_rate_of(trainer: Trainer) -> float:
    """The learning rate of the current update."""
    assert trainer.lr_scheduler is not None  # while it trains
    return float(trainer.lr_scheduler.get_last_lr()[0])
