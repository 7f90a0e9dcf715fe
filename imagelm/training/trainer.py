"""The Trainer and its callbacks.

One idea: transformers' Trainer does the work; what is added at its seams makes the numbers true (one shift, sums over
the global batch, figures over the whole split) and keeps the best model as a whole folder from the moment it appears.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from imagelm.data.augmentation import AugmentedRows
from imagelm.metrics import ComputeMetrics, RowReduction
from imagelm.remote_code.processing_imagelm import ImageLMProcessor
from imagelm.tokens.tokenizer import grammar_of
from imagelm.training.arguments import RunArguments
from imagelm.training.callbacks import EpochOfRows, EvaluationLines, QuietProgress
from imagelm.training.checkpoint import CheckpointWriter
from imagelm.training.loss import RowCollator, TokenAndSlotLoss
from imagelm.training.muon import MuonWithAdamW
from imagelm.training.safety import FiniteSteps
from imagelm.utils.errors import InputError


@dataclass
class Update:
    """The update at hand: its batches, the loss of this process so far, and the norm of the gradient."""

    batches: list[dict[str, Tensor]] = field(default_factory=list)
    loss: Tensor | float = 0.0
    grad_norm: Tensor | float | None = None


class ImageTrainer(Trainer):
    """Trainer with our loss, metrics, collator and checkpoints; it takes no step that isn't finite.

    Args:
        model: The model; its `loss_type` must be mended (see `imagelm.models.build`).
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
