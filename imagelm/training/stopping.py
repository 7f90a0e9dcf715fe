"""SIGTERM and Ctrl-C while training: the step at hand is finished, a checkpoint saved, the process ends with a code.

One idea: a signal only sets a mark; all processes look at it together between two steps, so that none saves while
another trains on. Trainer's own `enable_jit_checkpoint` waits three seconds, saves in the middle of a step, and then
ends as if the training were done.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from types import FrameType

import torch
from transformers import Trainer, TrainerCallback

from imagelm.utils.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
REPEAT_SECONDS = 2.0  # launchers pass a signal on that the terminal sent already; a later one is a person's
SET_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG
LAUNCHER_VARIABLE = "ACCELERATE_MIXED_PRECISION"


class StopOnSignal(TrainerCallback):
    """Ends training after a signal, with a checkpoint of the last whole step; also a context manager.

    Inside the context signals are taken; a second one, later than `REPEAT_SECONDS`, ends a lone process at once.

    Args:
        trainer: The trainer that this is a callback of.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.signal_number = 0
        self.stopping = False
        self._taken_at = 0.0
        self._earlier: dict[int, object] = {}

    def __enter__(self) -> StopOnSignal:
        self._earlier = {number: signal.signal(number, self._take) for number in SIGNALS}
        _end_with_launcher()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Saves, unless the epoch ends here: then its own evaluation comes first."""
        if self._asked():
            control.should_training_stop = True
            control.should_save = control.should_save or not _ends_epoch(state.epoch)

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        """In the middle of an epoch nothing of its end is done."""
        if not self.stopping:
            return
        at_end = _ends_epoch(state.epoch)
        control.should_save = at_end
        control.should_evaluate, control.should_log = control.should_evaluate and at_end, control.should_log and at_end

    def raise_if_stopped(self) -> None:
        """Call it after training.

        Raises:
            StoppedError: A signal ended it; in every process.
        """
        if self.stopping:
            step = self.trainer.state.global_step
            raise StoppedError(
                f"stopped by {signal.Signals(self.signal_number).name} at step {step}: checkpoint-{step} is saved in "
                f"{self.trainer.args.output_dir}; the same command goes on from it",
                self.signal_number,
            )

    def _asked(self) -> bool:
        """Whether any process was asked to stop."""
        if self.trainer.args.world_size > 1:
            mark = torch.tensor([self.signal_number], device=self.trainer.args.device)
            self.signal_number = int(self.trainer.accelerator.gather(mark).max())
        self.stopping = self.stopping or self.signal_number > 0
        return self.stopping

    def _take(self, number: int, frame: FrameType | None) -> None:
        first = not self._taken_at
        if not first and time.monotonic() - self._taken_at > REPEAT_SECONDS and self.trainer.args.world_size == 1:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        if first:
            self.signal_number, self._taken_at = number, time.monotonic()
            if self.trainer.is_world_process_zero():
                text = f"{signal.Signals(number).name}: saving a checkpoint after this step; once more ends at once\n"
                os.write(sys.stderr.fileno(), text.encode())  # print isn't safe inside a handler


def _ends_epoch(epoch: float) -> bool:
    return epoch == int(epoch)


def _end_with_launcher() -> None:
    """Takes SIGTERM when `accelerate launch` is gone: a signal to it alone would leave the training unattended."""
    if LAUNCHER_VARIABLE in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, int(signal.SIGTERM))
