"""What happens while a model trains, apart from training: best model, evaluation lines, epochs of augmented rows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from transformers import ProgressCallback, Trainer, TrainerCallback

from imagelm.data.augmentation import AugmentedRows
from imagelm.training.model_folder import read_selection
from imagelm.training.safety import check_loss, learning_rate_of

logger = logging.getLogger(__name__)


class QuietProgress(ProgressCallback):
    """The progress bar, without the library's dictionary for each log."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Prints nothing; `EvaluationLines` logs the figures."""


class EpochOfRows(TrainerCallback):
    """Passes the epoch on to rows that are augmented again in each epoch.

    accelerate's loader does so itself, but not with several processes, nor in an epoch that is resumed.
    """

    def __init__(self, rows: AugmentedRows) -> None:
        self.rows = rows

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        """Comes before the loader starts."""
        self.rows.set_epoch(int(state.epoch or 0))


class EvaluationLines(TrainerCallback):
    """Logs one line for each evaluation while training."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Logs the figures of an evaluation."""
        if state.is_world_process_zero and state.max_steps and "eval_loss" in (logs or {}):
            logger.info(
                "step %d/%d: perplexity %.3f, next-token accuracy %.4f, CLS-slot accuracy %.4f",
                *(state.global_step, state.max_steps, logs["eval_perplexity"]),
                *(logs["eval_next_token_accuracy"], logs["eval_cls_accuracy"]),
            )


class KeepBest(TrainerCallback):
    """Saves `best_model` whenever an evaluation is better than all before it; may stop when none improves.

    Better is a better `metric_for_best_model`, or an equal one with a lower loss. A resumed run compares with the
    model that is in the folder.

    Args:
        trainer: The trainer that this is a callback of.
        save: Saves its model with the reason why it was chosen; `ImageTrainer.save_folder`.
        folder: `best_model`.
        patience: Number of evaluations without improvement after which training stops; 0 for never.

    Attributes:
        best: Metric, value, loss and step of the best evaluation; None before the first. Every process holds the same,
            as all see the same figures: if they read the folder again, one could see what another just wrote.
    """

    def __init__(self, trainer: Trainer, save: Callable[[Path, dict], None], folder: Path, patience: int) -> None:
        self.trainer, self.save, self.folder, self.patience = trainer, save, folder, patience
        self.best = read_selection(folder)
        trainer.accelerator.wait_for_everyone()

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        """Compares, saves and perhaps stops."""
        if not self.trainer.is_in_train:
            return
        check_loss(metrics["eval_loss"], learning_rate_of(self.trainer), state.global_step)
        name, loss = f"eval_{args.metric_for_best_model.removeprefix('eval_')}", metrics["eval_loss"]
        value = metrics[name]
        sign = 1 if args.greater_is_better else -1
        if self.best is None or (sign * value, -loss) > (sign * self.best["value"], -self.best["loss"]):
            self.best = {"metric": name, "value": value, "loss": loss, "step": state.global_step}
            self.save(self.folder, self.best)
        since = {log["step"] for log in state.log_history if "eval_loss" in log and log["step"] > self.best["step"]}
        if self.patience and len(since) >= self.patience:
            control.should_training_stop = True
