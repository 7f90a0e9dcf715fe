"""What happens beside the training: best model, evaluation lines, epochs of augmented rows."""

from __future__ import annotations

from pathlib import Path

from tqdm.auto import tqdm
from transformers import (
    Trainer,
    TrainerCallback,
)
from transformers.trainer_callback import ProgressCallback

from imagelm.data.augmentation import AugmentedRows
from imagelm.training.model_folder import read_selection, save_folder
from imagelm.training.safety import check_loss


class QuietProgress(ProgressCallback):
    """The progress bar, without the library's dictionary for each log."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Says nothing; `EvaluationLines` does."""


class EpochOfRows(TrainerCallback):
    """Tells rows that are made anew in each epoch which epoch it is.

    accelerate's loader does so itself, but not with several processes, nor in an epoch that is resumed.
    """

    def __init__(self, rows: AugmentedRows) -> None:
        self.rows = rows

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        """Comes before the loader starts."""
        self.rows.set_epoch(int(state.epoch or 0))


class EvaluationLines(TrainerCallback):
    """One line for each evaluation while training."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Prints the figures, around the progress bar where there is one."""
        if state.is_world_process_zero and state.max_steps and "eval_loss" in (logs or {}):
            tqdm.write(
                f"step {state.global_step}/{state.max_steps}: perplexity {logs['eval_perplexity']:.3f}, "
                f"next-token accuracy {logs['eval_next_token_accuracy']:.4f}, "
                f"CLS-slot accuracy {logs['eval_cls_accuracy']:.4f}"
            )


class KeepBest(TrainerCallback):
    """Saves `best_model` whenever an evaluation is better than the one that stands there; stops when none comes.

    Better is a better `metric_for_best_model`, or an equal one with a lower loss. A run that goes on begins with what
    stands in the folder.

    Args:
        trainer: The trainer that this is a callback of.
        folder: `best_model`.
        patience: Evaluations without a better one after which training stops; 0 for never.

    Attributes:
        best: Metric, value, loss and step of the best evaluation; None before the first. Every process holds the same,
            as all processes see the same figures: read again from the folder, one might see what another just wrote.
    """

    def __init__(self, trainer: Trainer, folder: Path, patience: int) -> None:
        self.trainer, self.folder, self.patience = trainer, folder, patience
        self.best = read_selection(folder)
        trainer.accelerator.wait_for_everyone()

    def on_evaluate(self, args, state, control, metrics, **kwargs) -> None:
        """Compares, saves and perhaps stops."""
        if not self.trainer.is_in_train:
            return
        check_loss(metrics["eval_loss"], self.trainer.lr_scheduler.get_last_lr()[0], state.global_step)
        name, loss = f"eval_{args.metric_for_best_model.removeprefix('eval_')}", metrics["eval_loss"]
        value = metrics[name]
        sign = 1 if args.greater_is_better else -1
        if self.best is None or (sign * value, -loss) > (sign * self.best["value"], -self.best["loss"]):
            self.best = {"metric": name, "value": value, "loss": loss, "step": state.global_step}
            save_folder(self.trainer, self.folder, self.best)
        since = {log["step"] for log in state.log_history if "eval_loss" in log and log["step"] > self.best["step"]}
        if self.patience and len(since) >= self.patience:
            control.should_training_stop = True
