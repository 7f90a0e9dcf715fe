"""What happens while a model trains, apart from training: best model, progress bar, epochs of augmented rows."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

from transformers import ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from imagelm.data.augmentation import AugmentedRows
from imagelm.training.checkpoint import checkpoints, step_of
from imagelm.training.manifest import inspect_checkpoint
from imagelm.training.safety import learning_rate_of
from imagelm.utils.artifacts import SELECTION_FILE
from imagelm.utils.atomic_io import read_json
from imagelm.utils.errors import DivergedError
from imagelm.utils.manifest import damage
from imagelm.utils.text import first_line, number_of

logger = logging.getLogger(__name__)


class QuietProgress(ProgressCallback):
    """The progress bar, without the library's dictionary for each log."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Prints nothing; the trainer logs the figures."""


class EpochOfRows(TrainerCallback):
    """Passes the epoch on to rows that are augmented again in each epoch.

    accelerate's loader does so itself, but not with several processes, nor in an epoch that is resumed.
    """

    def __init__(self, rows: AugmentedRows) -> None:
        self.rows = rows

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.rows.set_epoch(int(state.epoch or 0))


class KeepBest(TrainerCallback):
    """Saves `best_model` whenever an evaluation is better than all before it; may stop when none improves.

    Better is a better `metric_for_best_model`, or an equal one with a lower loss, on the rows of `split`: the
    validation rows, or the test rows of data without a validation split. A resumed run compares with the
    model that is in the folder; if that is damaged or lost, it is chosen again from the checkpoints. `patience` is the
    number of evaluations without improvement after which training stops, 0 for never.

    Attributes:
        best: Split, metric, value, loss and step of the best evaluation; None at first. Every process holds the same,
            as all see the same figures: if they read the folder again, one could see what another just wrote.
        stopped: Why this ended the training early; None if it didn't.
    """

    def __init__(
        self, trainer: Trainer, save: Callable[..., None], folder: Path, patience: int, split: str = "test"
    ) -> None:
        self.trainer, self.save, self.folder, self.patience, self.split = trainer, save, folder, patience, split
        selection = read_selection(folder)
        self.best = selection if selection and "value" in selection else None
        self.stopped: str | None = None
        trainer.accelerator.wait_for_everyone()

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Makes `best_model` again from the best of the checkpoints, if a resumed run has lost it."""
        evaluated = [log for log in state.log_history if "eval_loss" in log]
        if self.best is not None or not evaluated:
            return
        kept = {step_of(folder): folder for folder in checkpoints(self.folder.parent)}
        whole = [log for log in evaluated if log["step"] in kept and inspect_checkpoint(kept[log["step"]]).is_whole]
        steps = ", ".join(str(log["step"]) for log in whole) or "none"
        logger.warning(
            "%s is chosen again from the evaluated checkpoints (steps: %s) and the evaluations that follow",
            self.folder,
            steps,
        )
        for found in [self._selection(log, log["step"]) for log in whole]:
            if self.best is None or _is_better(found, self.best, args):
                self.best = found
        if self.best:
            self.save(self.folder, self.best, kept[self.best["step"]])

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        if not self.trainer.is_in_train:
            return
        found = self._selection(metrics, state.global_step)
        if not math.isfinite(found["loss"]):
            raise DivergedError(
                f"the loss on the {self.split} rows is {found['loss']} after step {state.global_step} (learning rate "
                f"{learning_rate_of(self.trainer):.3g}): the run diverged and was stopped; best_model and the earlier "
                "checkpoints are kept. Try a lower --learning_rate"
            )
        best = self.best
        if best is None or _is_better(found, best, args):
            best = self.best = found
            self.save(self.folder, best)
        since = {log["step"] for log in state.log_history if "eval_loss" in log and log["step"] > best["step"]}
        if self.patience and len(since) >= self.patience:
            control.should_training_stop = True
            self.stopped = (
                f"{number_of(self.patience, 'evaluation')} without a better {best['metric'].removeprefix('eval_')}"
            )

    def _selection(self, figures: dict[str, float], step: int) -> dict:
        name = f"eval_{str(self.trainer.args.metric_for_best_model).removeprefix('eval_')}"
        found = {"metric": name, "value": figures[name], "loss": figures["eval_loss"], "step": step}
        return {"split": self.split, **found}


def _is_better(found: dict, best: dict, args: TrainingArguments) -> bool:
    sign = 1 if args.greater_is_better else -1
    return (sign * found["value"], -found["loss"]) > (sign * best["value"], -best["loss"])


def read_selection(folder: Path) -> dict | None:
    """Why `best_model` was chosen (split, metric, value, loss, step); None if it was not, or the folder is damaged."""
    if not folder.is_dir():
        return None
    try:
        if reason := damage(folder):
            raise ValueError(reason)
        selection = read_json(folder / SELECTION_FILE)
        return selection | {"step": int(selection["step"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s is damaged: %s", folder, first_line(error))
        return None
