"""Signals that ask a run to stop.

One idea: a signal only sets a mark, which all processes read together between two steps, so that none saves while
another trains on.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback

from imagelm.training.trainer import ImageTrainer
from imagelm.utils.device import MIXED_PRECISION_VARIABLE
from imagelm.utils.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
REPEAT_SECONDS = 2.0  # a launcher passes on a signal that the terminal sent already; a later one is a person's
SET_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG


class StopOnSignal(TrainerCallback):
    """Ends training after SIGTERM or Ctrl-C, with a checkpoint of the last whole step; also a context manager.

    Signals are caught inside the context; a second one, later than `REPEAT_SECONDS`, ends a lone process at once.
    Trainer's own `enable_jit_checkpoint` waits three seconds, saves in the middle of a step, and then ends as if the
    training were finished.
    """

    def __init__(self, trainer: ImageTrainer) -> None:
        self.trainer = trainer
        self.received = self.signal_number = 0  # by this process; by any, as far as all know of it
        self.stopping = False
        self._caught_at = 0.0
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopOnSignal:
        self._earlier = {number: signal.signal(number, self._catch) for number in SIGNALS}
        # SIGTERM when `accelerate launch` is gone: a signal to it alone would leave the training unattended.
        if MIXED_PRECISION_VARIABLE in os.environ and sys.platform == "linux":
            ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, int(signal.SIGTERM))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Stops if any process was asked to; saves, unless the epoch ends here: then its own evaluation comes first.

        Several processes ask each other only as often as the host waits for the device anyway.
        """
        if args.world_size > 1:
            if state.global_step % (1 + self.trainer.finite_steps.max_unchecked):
                return
            mark = torch.tensor([self.received], device=args.device)  # what arrives from here on is for the next step
            self.signal_number = int(self.trainer.accelerator.gather(mark).max())
        else:
            self.signal_number = self.received
        self.stopping = self.signal_number > 0
        if self.stopping:
            control.should_training_stop = True
            control.should_save = control.should_save or not float(state.epoch).is_integer()

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        """Skips what belongs to the end of an epoch if training stops in the middle of one."""
        if not self.stopping:
            return
        at_end = float(state.epoch).is_integer()
        control.should_save = at_end
        control.should_evaluate, control.should_log = control.should_evaluate and at_end, control.should_log and at_end

    def raise_if_stopped(self) -> None:
        """Raises `StoppedError` in every process if a signal ended the training."""
        if self.stopping:
            step = self.trainer.state.global_step
            raise StoppedError(
                f"stopped by {signal.Signals(self.signal_number).name} at step {step}: checkpoint-{step} is saved in "
                f"{self.trainer.args.output_dir}; run the same command again to continue from it",
                self.signal_number,
            )

    def _catch(self, number: int, frame: FrameType | None) -> None:
        first = not self._caught_at
        if not first and time.monotonic() - self._caught_at > REPEAT_SECONDS and self.trainer.args.world_size == 1:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        if first:
            self.received, self._caught_at = number, time.monotonic()
            if self.trainer.is_world_process_zero():
                again = "; send the signal again to stop immediately" if self.trainer.args.world_size == 1 else ""
                text = f"{signal.Signals(number).name}: saving a checkpoint after this step{again}\n"
                os.write(sys.stderr.fileno(), text.encode())  # print isn't safe inside a handler
