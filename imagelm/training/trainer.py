"""transformers' Trainer with our loss, metrics and checkpoints.

One idea: Trainer does the work; what is added at its public seams makes the numbers true (one shift, sums over the
global batch, figures over the whole split) and keeps every model and checkpoint as a whole folder.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import AutocastKwargs
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
)

from imagelm.data.augmentation import AugmentedRows
from imagelm.metrics import ComputeMetrics, RowReduction
from imagelm.remote_code.processing_imagelm import ImageLMProcessor
from imagelm.tokens.tokenizer import grammar_of
from imagelm.training.arguments import RunArguments
from imagelm.training.callbacks import EpochOfRows, EvaluationLines, QuietProgress
from imagelm.training.checkpoint import CheckpointWriter
from imagelm.training.loss import RowCollator, TokenAndSlotLoss
from imagelm.training.model_folder import save_folder
from imagelm.training.muon import MuonWithAdamW
from imagelm.training.safety import FiniteSteps
from imagelm.utils.errors import InputError


class ImageTrainer(Trainer):
    """Trainer with our loss, metrics, collator and checkpoints; it takes no step that isn't finite.

    Args:
        model: The model, with its `loss_type` set (see `imagelm.models.build.fix_loss_scale`).
        args: transformers' arguments.
        run: Our arguments.
        tokenizer: The data's tokenizer.
        train: Training rows, or None to evaluate only.
        test: Test rows.
        processor: Saved with the model, if rows were made from images.
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
        self.processor = processor
        self.token_and_slot_loss = TokenAndSlotLoss(grammar, run.cls_loss_weight)
        self.metrics, self.row_reduction = ComputeMetrics(grammar.num_classes), RowReduction(grammar)
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
        self.arguments = args.to_dict() | {"imagelm": dataclasses.asdict(run)}  # with tokens masked
        self.checkpoints = CheckpointWriter(self, identity or {})
        self.finite_steps = FiniteSteps(self, self.checkpoints)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        for callback in (EvaluationLines(), self.finite_steps, self.checkpoints):
            self.add_callback(callback)
        if isinstance(train, AugmentedRows):
            if args.dataloader_persistent_workers:
                raise InputError("--dataloader_persistent_workers: remove it; such workers don't see a new epoch")
            self.add_callback(EpochOfRows(train))
        if not args.disable_tqdm:
            self.add_callback(QuietProgress())

    def _reduce(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.row_reduction(logits, labels, self.token_and_slot_loss.take_nll())

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's `train`, with checkpoints that are whole or absent."""
        with self.checkpoints.staged():
            return super().train(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Trainer's own first step of writing a checkpoint."""
        self.checkpoints.begin()
        super().save_model(output_dir, _internal_call)

    def save_folder(self, folder: Path, selection: dict) -> None:
        """Saves the model as a whole folder that anyone can load; see `imagelm.training.model_folder`."""
        save_folder(self, folder, selection, self.arguments, self.processor)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """The batches of one update and their number of scored tokens; also counts their CLS slots."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.finite_steps.begin(batches)
        if batches:
            counts = [self.token_and_slot_loss.slots(batch["labels"][:, 1:]).sum() for batch in batches]
            slots = torch.stack(counts).sum().to(device)
            if self.args.average_tokens_across_devices and self.args.world_size > 1:
                slots = self.accelerator.gather(slots).sum()
            self.token_and_slot_loss.num_slots = slots
        return batches, num_items

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The loss of one batch after its backward pass."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.finite_steps.add(loss)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the training perplexity and the loss at the slot, which the weighted loss alone doesn't show."""
        if "loss" in logs:
            sums = self.token_and_slot_loss.take_sums()
            token_nll, tokens, slot_nll, slots = self.accelerator.reduce(sums, reduction="sum").tolist()
            logs["token_loss"] = token_nll / tokens
            logs["perplexity"] = math.exp(min(logs["token_loss"], 700))
            logs["cls_loss"] = slot_nll / max(slots, 1)
        super().log(logs, start_time)

    @property
    def dtype_name(self) -> str:
        """The dtype of matrix products: bf16, fp16 or fp32."""
        return {"no": "fp32"}.get(self.accelerator.mixed_precision, self.accelerator.mixed_precision)

    def evaluate_in_fp32(self) -> dict[str, float]:
        """Evaluates without mixed precision, so that everyone who loads the model gets the same figures.

        Call it on a trainer that hasn't trained: accelerate wraps the model in autocast only once.
        """
        self.accelerator.autocast_handler = AutocastKwargs(enabled=False)
        return self.evaluate()


def rows_only(dataset: Dataset) -> Dataset:
    """The column that a model reads, as arrays."""
    return dataset.select_columns(["input_ids"]).with_format("numpy")


def _muon(args: TrainingArguments, run: RunArguments) -> tuple[Any, dict[str, Any]]:
    options = {
        "lr": args.learning_rate,
        "muon_lr": run.muon_learning_rate,
        "weight_decay": args.weight_decay,
        "betas": (args.adam_beta1, args.adam_beta2),
        "eps": args.adam_epsilon,
    }
    return lambda: MuonWithAdamW, options
