"""The Trainer and its callbacks.

One idea: transformers' Trainer does the work; what is added at its seams makes the numbers true (one shift, sums over
the global batch, figures over the whole split) and keeps the best model as a whole folder from the moment it appears.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import ModelOutput

from imagelm.arguments import RunArguments
from imagelm.augmented_rows import AugmentedRows
from imagelm.checkpoints import CheckpointWriter, check_weights
from imagelm.errors import InputError
from imagelm.files import read_json, whole_folder, write_json, write_text
from imagelm.guards import FiniteSteps, check_loss
from imagelm.metrics import ComputeMetrics, RowReduction, token_nll
from imagelm.model import save_model
from imagelm.optimizer import MuonWithAdamW
from imagelm.processor import add_processor
from imagelm.published.processing_imagelm import ImageLMProcessor
from imagelm.runs import TRAINING_ARGUMENTS_FILE
from imagelm.sequence import IGNORE_INDEX, Grammar
from imagelm.storage import told_as_storage_error
from imagelm.tokenizer import grammar_of, save_tokenizer

SELECTION_FILE = "selection.json"  # why this model is the best one


class RowCollator(DataCollatorForLanguageModeling):
    """Causal labels by the library (`mlm=False`: the input ids, −100 at padding), padded straight from arrays.

    The library's own way from dictionaries costs 60 times as much. A batch without padding gets no attention mask,
    which keeps attention on its fast path; padding stands on the right, where no scored position sees it in any case.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer=tokenizer, mlm=False)

    def torch_call(self, examples: list[dict[str, np.ndarray]]) -> dict[str, Tensor]:
        """`input_ids` and `labels`, int64, shape (rows, longest row of the batch)."""
        batch = super().torch_call([torch.from_numpy(row["input_ids"].astype(np.int64)) for row in examples])
        padded = batch["labels"] == IGNORE_INDEX
        if padded.any():
            batch["attention_mask"] = (~padded).long()
        return batch


class TokenAndSlotLoss:
    """(1−w) · mean over scored tokens + w · mean over CLS slots, both means over the global batch.

    Made for Trainer's `compute_loss_func`. w = 0 is the plain causal language model.

    Attributes:
        num_slots: CLS slots in the global batch of the step at hand, over all accumulated batches and processes.
    """

    def __init__(self, grammar: Grammar, cls_loss_weight: float) -> None:
        self.cls_loss_weight = cls_loss_weight
        self.is_class = torch.zeros(grammar.size, dtype=torch.bool)
        self.is_class[torch.from_numpy(grammar.class_ids)] = True
        self.num_slots: Tensor | None = None
        self._sums: Tensor | None = None
        self._nll: Tensor | None = None

    def __call__(self, outputs: ModelOutput, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
        """The loss of one batch, already scaled so that summing over the accumulated batches is right.

        Args:
            outputs: With logits of shape (rows, length, vocabulary).
            labels: Shape (rows, length); −100 is not scored.
            num_items_in_batch: Scored tokens of the global batch; None counts this batch alone.
        """
        targets = labels[:, 1:]
        nll = token_nll(outputs.logits[:, :-1], targets)
        num_tokens = (targets != IGNORE_INDEX).sum()
        in_slot = self.slots(targets)
        slot_nll = (nll * in_slot).sum()
        loss = nll.sum() / (num_tokens if num_items_in_batch is None else num_items_in_batch)
        if torch.is_grad_enabled():
            self._note(nll, num_tokens, slot_nll, in_slot)
        else:
            self._nll = nll
        if self.cls_loss_weight == 0:
            return loss
        num_slots = self.num_slots if torch.is_grad_enabled() and self.num_slots is not None else in_slot.sum()
        return (1 - self.cls_loss_weight) * loss + self.cls_loss_weight * slot_nll / num_slots

    def slots(self, targets: Tensor) -> Tensor:
        """Where a class token is to be predicted; bool, the shape of `targets`."""
        self.is_class = self.is_class.to(targets.device)
        return self.is_class[targets.clamp(min=0)] & (targets != IGNORE_INDEX)

    def take_sums(self) -> Tensor | None:
        """(token NLL, tokens, slot NLL, slots) summed since the last call, on this process; None if there were none."""
        sums, self._sums = self._sums, None
        return sums

    def take_nll(self) -> Tensor | None:
        """The likelihoods of the batch that was evaluated last, for `RowReduction`; None if they were taken already."""
        nll, self._nll = self._nll, None
        return nll

    def _note(self, nll: Tensor, num_tokens: Tensor, slot_nll: Tensor, in_slot: Tensor) -> None:
        sums = torch.stack([nll.detach().sum(), num_tokens, slot_nll.detach(), in_slot.sum()]).float()
        self._sums = sums if self._sums is None else self._sums + sums


@dataclass
class Update:
    """The update at hand: its batches, the loss of this process so far, and the norm of the gradient."""

    batches: list[dict[str, Tensor]] = field(default_factory=list)
    loss: Tensor | float = 0.0
    grad_norm: Tensor | float | None = None


class ImageTrainer(Trainer):
    """Trainer with our loss, metrics, collator and checkpoints; it takes no step that isn't finite.

    Args:
        model: The model; its `loss_type` must be mended (see `imagelm.model`).
        args: transformers' arguments.
        run: Ours.
        tokenizer: The data's.
        train: Training rows, or None to evaluate only.
        test: Test rows.
        processor: Saved beside the model, where rows were made of pictures.
        identity: What determines the weights; kept in every checkpoint.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        run: RunArguments,
        tokenizer: PreTrainedTokenizerBase,
        train: Dataset | AugmentedRows | None,
        test: Dataset,
        processor: ImageLMProcessor | None = None,
        identity: dict | None = None,
    ) -> None:
        grammar = grammar_of(tokenizer)
        self.run, self.processor = run, processor
        self.token_and_slot_loss = TokenAndSlotLoss(grammar, run.cls_loss_weight)
        self.metrics, self.row_reduction = ComputeMetrics(grammar.num_classes), RowReduction(grammar)
        self.checkpoint_writer, self.update = CheckpointWriter(identity or {}), Update()
        super().__init__(
            model=model,
            args=args,
            train_dataset=rows_only(train) if isinstance(train, Dataset) else train,
            eval_dataset=rows_only(test),
            data_collator=RowCollator(tokenizer),
            processing_class=tokenizer,
            compute_loss_func=self.token_and_slot_loss,
            compute_metrics=self.metrics,
            preprocess_logits_for_metrics=self._reduce,
            optimizer_cls_and_kwargs=_muon(args, run) if run.optimizer == "muon" else None,
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(EvaluationLines())
        self.finite_steps = FiniteSteps(self)
        self.add_callback(self.finite_steps)
        if isinstance(train, AugmentedRows):
            if args.dataloader_persistent_workers:
                raise InputError("--dataloader_persistent_workers: leave it out; they never hear of a new epoch")
            self.add_callback(EpochOfRows(train))
        if not args.disable_tqdm:
            self.add_callback(QuietProgress())

    def _reduce(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.row_reduction(logits, labels, self.token_and_slot_loss.take_nll())

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        """The batches of one update and their scored tokens; counts their CLS slots beside."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.update = Update(batches)
        if batches:
            slots = sum(self.token_and_slot_loss.slots(batch["labels"][:, 1:]).sum() for batch in batches).to(device)
            if self.args.average_tokens_across_devices and self.args.world_size > 1:
                slots = self.accelerator.gather(slots).sum()
            self.token_and_slot_loss.num_slots = slots
        return batches, num_items

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """The loss of one batch after its backward pass; summed for `FiniteSteps`."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.update.loss = self.update.loss + loss
        return loss

    def _get_grad_norm(self, model, grad_norm=None) -> Tensor | float:
        """The norm of the whole gradient, before clipping; kept for `FiniteSteps`, which Trainer doesn't tell it."""
        self.update.grad_norm = super()._get_grad_norm(model, grad_norm)
        return self.update.grad_norm

    def _save_checkpoint(self, model, trial) -> None:
        """Writes a checkpoint whole or not at all."""
        self.checkpoint_writer.write(self, functools.partial(super()._save_checkpoint, model, trial))

    def _get_output_dir(self, trial) -> str:
        """Where Trainer writes checkpoints into: beside their final place."""
        return str(self.checkpoint_writer.staging or super()._get_output_dir(trial))

    @property
    def learning_rate(self) -> float:
        """That of the update at hand."""
        return self.lr_scheduler.get_last_lr()[0]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the training perplexity and the loss at the slot, which the weighted loss alone doesn't tell."""
        if "loss" in logs:
            sums = self.token_and_slot_loss.take_sums()
            token_nll, tokens, slot_nll, slots = self.accelerator.reduce(sums, reduction="sum").tolist()
            logs["token_loss"] = token_nll / tokens
            logs["perplexity"] = math.exp(min(logs["token_loss"], 700))
            logs["cls_loss"] = slot_nll / max(slots, 1)
        super().log(logs, start_time)

    @property
    def dtype_name(self) -> str:
        """What matrix products are computed in: bf16, fp16 or fp32."""
        return {"no": "fp32"}.get(self.accelerator.mixed_precision, self.accelerator.mixed_precision)

    def evaluate_in_fp32(self) -> dict[str, float]:
        """Evaluates without mixed precision, so that anyone who loads the model finds the same figures.

        Call it on a trainer that hasn't trained: its model isn't wrapped in autocast yet.
        """
        self.accelerator.native_amp = False
        return self.evaluate()


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

    def __init__(self, trainer: ImageTrainer, folder: Path, patience: int) -> None:
        self.trainer, self.folder, self.patience = trainer, folder, patience
        self.best = read_selection(folder)
        trainer.accelerator.wait_for_everyone()

    def on_evaluate(self, args, state, control, metrics, **kwargs) -> None:
        """Compares, saves and perhaps stops."""
        if not self.trainer.is_in_train:
            return
        check_loss(metrics["eval_loss"], self.trainer.learning_rate, state.global_step)
        name, loss = f"eval_{args.metric_for_best_model.removeprefix('eval_')}", metrics["eval_loss"]
        value = metrics[name]
        sign = 1 if args.greater_is_better else -1
        if self.best is None or (sign * value, -loss) > (sign * self.best["value"], -self.best["loss"]):
            self.best = {"metric": name, "value": value, "loss": loss, "step": state.global_step}
            save_folder(self.trainer, self.folder, self.best)
        since = {log["step"] for log in state.log_history if "eval_loss" in log and log["step"] > self.best["step"]}
        if self.patience and len(since) >= self.patience:
            control.should_training_stop = True


def read_selection(folder: Path) -> dict | None:
    """Why `best_model` was chosen (metric, value, loss, step), or None where there is none."""
    file = folder / SELECTION_FILE
    return read_json(file) if file.is_file() else None


def save_folder(trainer: ImageTrainer, folder: Path, selection: dict) -> None:
    """Saves the trainer's model as a whole Hugging Face folder: weights, configs, tokenizer, training arguments.

    Every process must call it; the main one writes.

    Raises:
        DivergedError: The weights aren't finite; nothing was written.
        StorageError: It can't be written.
    """
    check_weights(trainer.model, trainer.state.global_step)
    unwrap = functools.partial(trainer.accelerator.unwrap_model, keep_torch_compile=False)
    state_dict = trainer.accelerator.get_state_dict(unwrap(trainer.model_wrapped))
    if trainer.is_world_process_zero():
        with told_as_storage_error(folder, "What stood there before still does"), whole_folder(folder) as staging:
            save_model(unwrap(trainer.model), staging, trainer.processing_class, state_dict)
            save_tokenizer(trainer.processing_class, staging)
            if trainer.processor:
                add_processor(staging, trainer.processor)
            # JSON, with tokens masked; the library's training_args.bin is a pickle that holds them in clear.
            arguments = trainer.args.to_dict() | {"imagelm": dataclasses.asdict(trainer.run)}
            write_text(staging / TRAINING_ARGUMENTS_FILE, json.dumps(arguments, indent=2) + "\n")
            write_json(staging / SELECTION_FILE, selection)
    trainer.accelerator.wait_for_everyone()


def rows_only(dataset: Dataset) -> Dataset:
    """The column that a model reads, as arrays."""
    return dataset.select_columns(["input_ids"]).with_format("numpy")


def _muon(args: TrainingArguments, run: RunArguments):
    options = {
        "lr": args.learning_rate,
        "muon_lr": run.muon_learning_rate,
        "weight_decay": args.weight_decay,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
    }
    return lambda: MuonWithAdamW, options
