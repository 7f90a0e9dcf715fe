"""transformers' Trainer with our loss, metrics and checkpoints.

One idea: Trainer does the work; what is added at its public seams makes the numbers true (one shift, sums over the
global batch, figures over the whole split) and keeps every model and checkpoint as a whole folder.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import sys
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.optimizer import AcceleratedOptimizer
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import EvalLoopOutput, IntervalStrategy

from imagelm.data.augmentation import AugmentedRows
from imagelm.data.training_images import save_training_images
from imagelm.metrics import IGNORE_INDEX, ComputeMetrics, RowReduction
from imagelm.models.build import load_model
from imagelm.models.decision import save_decision
from imagelm.models.save import add_processor, save_model
from imagelm.remote_code.processing_imagelm import ImageLMProcessor
from imagelm.tokens.tokenizer import grammar_of, save_tokenizer
from imagelm.training.arguments import RunArguments
from imagelm.training.callbacks import EpochOfRows, QuietProgress
from imagelm.training.checkpoint import CheckpointWriter, check_weights
from imagelm.training.device_rows import DeviceRows
from imagelm.training.loss import RowCollator, TokenAndSlotLoss
from imagelm.training.muon import muon_options
from imagelm.training.order import with_lean_order
from imagelm.training.safety import FiniteSteps
from imagelm.training.step_graph import StepGraph
from imagelm.training.streaming import StreamedRows
from imagelm.utils.artifacts import SELECTION_FILE, TRAINING_ARGUMENTS_FILE
from imagelm.utils.atomic_io import raise_storage_error, write_json, write_text
from imagelm.utils.errors import InputError
from imagelm.utils.output_folder import atomic_folder
from imagelm.utils.quiet import hidden_message

logger = logging.getLogger(__name__)

REDUCED_BATCHES = 64  # evaluated before the host waits for the device


class ImageTrainer(Trainer):
    """Trainer with our loss, metrics, collator and checkpoints; it takes no step that isn't finite.

    Args:
        model: With its `loss_type` set (see `imagelm.models.build.fix_loss_scale`).
        train: Training rows; None to evaluate only.
        eval_rows: Rows to evaluate.
        eval_split: The name of their split.
        processor: Saved with the model, if rows were made from images.
        identity: What determines the weights; kept in every checkpoint.

    Attributes:
        training_images: Of `imagelm.data.training_images`, saved with every model; None by default.
        graph_batch: Rows and length of the batches whose updates are taken as one CUDA graph; None for no graph.
    """

    training_images: np.ndarray | None = None
    graph_batch: tuple[int, int] | None = None
    step_graph: StepGraph | None = None
    train_loss = ""  # the last one that was logged

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        run: RunArguments,
        tokenizer: PreTrainedTokenizerBase,
        train: Dataset | AugmentedRows | DeviceRows | StreamedRows | None,
        eval_rows: Dataset,
        processor: ImageLMProcessor | None = None,
        identity: dict | None = None,
        eval_split: str = "test",
    ) -> None:
        grammar = grammar_of(tokenizer)
        train = rows_only(train) if isinstance(train, Dataset) else train
        self.processor, self.eval_split = processor, eval_split
        self.token_and_slot_loss = TokenAndSlotLoss(grammar, run.cls_loss_weight)
        self.metrics, self.row_reduction = ComputeMetrics(grammar.num_classes), RowReduction(grammar)
        self.reduced: list[Tensor] = []
        super().__init__(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=rows_only(eval_rows),
            data_collator=RowCollator(tokenizer),
            processing_class=tokenizer,
            compute_loss_func=self.token_and_slot_loss,
            optimizer_cls_and_kwargs=muon_options(args, run) if run.optimizer == "muon" else None,
        )
        self.arguments = args.to_dict() | {"imagelm": dataclasses.asdict(run)}  # with tokens masked
        self.checkpoints = CheckpointWriter(self, identity or {})
        self.finite_steps = FiniteSteps(
            self, self.checkpoints, train.rows if isinstance(train, DeviceRows) else train, run.max_unchecked_steps
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(self.finite_steps)
        self.add_callback(self.checkpoints)
        if isinstance(train, AugmentedRows):
            if args.dataloader_persistent_workers:
                raise InputError("--dataloader_persistent_workers: remove it; such workers don't see a new epoch")
            self.add_callback(EpochOfRows(train))
        if not args.disable_tqdm and sys.stderr.isatty():  # in a file a bar is torn by the lines of the log
            self.add_callback(QuietProgress())

    def get_train_dataloader(self) -> DataLoader:
        """Trainer's own, with a sampler that takes less memory for the same order."""
        return with_lean_order(super().get_train_dataloader())

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Adds a batch of all processes to the figures; nothing is left for Trainer to keep until the end."""
        _, logits, labels = super().prediction_step(model, inputs, False, ignore_keys)
        assert isinstance(logits, Tensor | tuple) and isinstance(labels, Tensor)
        rows = self.row_reduction(logits, labels, self.token_and_slot_loss.take_nll())
        self.reduced.append(self.accelerator.gather_for_metrics(rows))
        if len(self.reduced) == REDUCED_BATCHES:
            self._add_reduced()
        return None, None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Trainer's own loop; the figures are those of `ComputeMetrics`."""
        self.metrics.clear()
        output = super().evaluation_loop(*args, **kwargs)
        self._add_reduced()
        prefix = kwargs.get("metric_key_prefix", "eval")
        assert output.metrics is not None
        output.metrics.update({f"{prefix}_{name}": value for name, value in self.metrics.compute().items()})
        return output

    def _add_reduced(self) -> None:
        if self.reduced:
            self.metrics.add(torch.cat(self.reduced).cpu().numpy())
        self.reduced = []

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trainer's `train`, with checkpoints that are whole or absent."""
        tied = getattr(self.model, "all_tied_weights_keys", {})  # a checkpoint holds such weights once
        missing = f"There were missing keys in the checkpoint model loaded: {list(tied)}"
        with self.checkpoints.staged(), hidden_message("transformers.trainer", missing):
            return super().train(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Trainer's own first step of writing a checkpoint."""
        self.finite_steps.read()
        self.checkpoints.begin()
        super().save_model(output_dir, _internal_call)

    def save_folder(self, folder: Path, selection: dict, checkpoint: Path | None = None) -> None:
        """Saves the model as a whole Hugging Face folder: weights, configs, tokenizer, training arguments, processor.

        Every process must call it; the main one writes.

        Args:
            folder: Where to.
            selection: Why this model was chosen.
            checkpoint: Take the weights of this checkpoint instead of the present ones.

        Raises:
            DivergedError: The weights aren't finite; nothing was written.
            StorageError: It can't be written.
        """
        check_weights(self.model, self.state.global_step)
        unwrap = functools.partial(self.accelerator.unwrap_model, keep_torch_compile=False)
        state_dict = self.accelerator.get_state_dict(unwrap(self.model_wrapped))
        tokenizer = self.processing_class
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        if self.is_world_process_zero():
            with raise_storage_error(folder, "The earlier folder is unchanged"), atomic_folder(folder) as staging:
                if checkpoint:
                    model = load_model(checkpoint)
                    save_model(model, staging, tokenizer, model.state_dict())
                else:
                    save_model(unwrap(self.model), staging, tokenizer, state_dict)
                save_tokenizer(tokenizer, staging)
                save_decision(staging, unwrap(self.model), tokenizer)
                if self.processor:
                    add_processor(staging, self.processor)
                # JSON instead of the library's training_args.bin, a pickle that holds tokens in clear.
                write_text(staging / TRAINING_ARGUMENTS_FILE, json.dumps(self.arguments, indent=2) + "\n")
                write_json(staging / SELECTION_FILE, selection)
                if self.training_images is not None:
                    save_training_images(self.training_images, staging)
        self.accelerator.wait_for_everyone()

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """The batches of one update and their number of scored tokens; also counts their CLS slots."""
        if self.args.world_size > 1 and not self.args.dataloader_drop_last:
            epoch_iterator = self._without_repeats(epoch_iterator)
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.finite_steps.begin(batches)
        if batches:
            counts = [self.token_and_slot_loss.slots(batch["labels"][:, 1:]).sum() for batch in batches]
            slots = torch.stack(counts).sum().to(device)
            if self.args.average_tokens_across_devices and self.args.world_size > 1:
                slots = self.accelerator.gather(slots).sum()
            self.token_and_slot_loss.num_slots = slots
        return batches, num_items

    def _without_repeats(self, batches: Iterator) -> Iterator[dict[str, Tensor]]:
        """Unscores the rows that accelerate repeats at the end of an epoch, so that all processes have a full batch."""
        size, dataset = self.args.per_device_train_batch_size, cast("Sized", self.train_dataset)
        rest = len(dataset) % (size * self.args.world_size)
        for batch in batches:
            if rest and self.accelerator.gradient_state.end_of_dataloader:
                batch["labels"][max(0, rest - size * self.args.process_index) :] = IGNORE_INDEX
            yield batch

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The loss of one batch after its backward pass; of a full batch with a graph, after its update."""
        if self.graph_batch and (graphed := self._take_graphed(inputs)) is not None:
            return graphed
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.finite_steps.add(loss)
        return loss

    def _take_graphed(self, inputs: dict[str, Tensor]) -> Tensor | None:
        """Takes the whole update of a full batch by `StepGraph`; returns its loss, None if nothing was computed."""
        if self.step_graph is None:
            assert self.graph_batch and isinstance(self.model, nn.Module)
            optimizer = cast(AcceleratedOptimizer, self.optimizer).optimizer
            fixed = (self.graph_batch, self._forward_backward, self.args.max_grad_norm, self.finite_steps.not_finite)
            self.step_graph = StepGraph(self.model, optimizer, *fixed)
        if not self.step_graph.takes(inputs):
            return None
        earlier = self.token_and_slot_loss.take_sums()
        outputs = self.step_graph(inputs)
        self.token_and_slot_loss.add_sums(earlier)
        if outputs is None:
            return None
        figures, sums = outputs
        self.token_and_slot_loss.add_sums(sums)
        self.finite_steps.take(figures)
        return figures[0]

    def _forward_backward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Loss and sums of one batch, which is the whole global batch: its own counts are the right ones."""
        self.token_and_slot_loss.num_slots = None
        loss = Trainer.training_step(self, self.model_wrapped, batch)
        return loss, self.token_and_slot_loss.take_sums()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds training perplexity and the loss at the slot, which the weighted loss hides; tells of evaluations."""
        if "loss" in logs:
            sums = self.token_and_slot_loss.take_sums()
            token_nll, tokens, slot_nll, slots = self.accelerator.reduce(sums, reduction="sum").tolist()
            logs["token_loss"] = token_nll / tokens
            logs["perplexity"] = math.exp(min(logs["token_loss"], 700))
            logs["cls_loss"] = slot_nll / max(slots, 1)
        if self.step_graph and "grad_norm" in logs:  # Trainer finds no gradients after such an update
            logs["grad_norm"] = self.finite_steps.norm
        super().log(logs, start_time)
        if "loss" in logs and self.is_world_process_zero():
            self.train_loss = f"training loss {logs['loss']:.4g}"
            if self.args.eval_strategy == IntervalStrategy.NO:
                logger.info("step %d/%d: %s", self.state.global_step, self.state.max_steps, self.train_loss)
        if "eval_loss" in logs and self.state.max_steps and self.is_world_process_zero():
            logger.info(
                "step %d/%d: %s%s rows: perplexity %.3f, next-token accuracy %.4f, CLS-slot accuracy %.4f",
                *(self.state.global_step, self.state.max_steps, self.train_loss and f"{self.train_loss}, "),
                *(self.eval_split, logs["eval_perplexity"]),
                *(logs["eval_next_token_accuracy"], logs["eval_cls_accuracy"]),
            )


def rows_only(dataset: Dataset) -> Dataset:
    """The column that a model reads, as arrays."""
    return dataset.select_columns(["input_ids"]).with_format("numpy")
