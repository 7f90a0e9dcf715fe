"""What a run starts from: its arguments, fitted to this machine, and the prepared rows.

One idea: everything that can fail before the first step fails here, with a message, and everything that the program
decides itself (dtype, threads, attention, devices) is decided here and logged.
"""

from __future__ import annotations

import logging
import math
import operator
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, TrainingArguments

from imagelm.accel.attention import CAUSAL_PRODUCT
from imagelm.data.load import augmented, check_disjoint, load_codec_of, load_prepared, load_stats
from imagelm.metrics import GREATER_IS_BETTER
from imagelm.models.arguments import ModelArguments
from imagelm.models.save import make_processor
from imagelm.remote_code.processing_imagelm import ImageLMProcessor
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.tokenizer import grammar_of, load_tokenizer
from imagelm.training.arguments import DataArguments, RunArguments
from imagelm.utils.artifacts import TOKENIZER_FOLDER
from imagelm.utils.atomic_io import check_folder_name
from imagelm.utils.command_line import given_words, invocation
from imagelm.utils.device import MIXED_PRECISION_VARIABLE, set_num_threads
from imagelm.utils.errors import InputError

logger = logging.getLogger(__name__)

# Training arguments that are refused, and why: each would make a figure wrong or omit it.
UNWANTED_ARGUMENTS = {
    "load_best_model_at_end": (bool, "best_model and final_model are both kept anyway"),
    "label_smoothing_factor": (bool, "a smoothed loss has no perplexity"),
    "bf16_full_eval": (bool, "figures are reported in fp32"),
    "fp16_full_eval": (bool, "figures are reported in fp32"),
    "prediction_loss_only": (bool, "a loss alone gives no accuracy"),
    "hub_always_push": (bool, "each push waits for the one before it"),
    "batch_eval_metrics": (bool, "logits are reduced on the device already"),
    "eval_do_concat_batches": (operator.not_, "figures are sums over the whole split"),
    "enable_jit_checkpoint": (bool, "SIGTERM saves a checkpoint anyway"),
    "save_only_model": (bool, "a checkpoint without the optimizer can't be resumed; best_model is saved anyway"),
    "ignore_data_skip": (bool, "a resumed run would repeat some rows and skip others"),
    "label_names": (lambda names: names not in (None, ["labels"]), "a causal language model has only labels"),
}


class OneDeviceArguments(TrainingArguments):
    """Transformers' arguments for processes with at most one GPU each.

    With more, Trainer uses nn.DataParallel, which is slower than one GPU and averages the losses differently.
    """

    @property
    def n_gpu(self) -> int:
        return min(super().n_gpu, 1)


@dataclass
class Launch:
    """All options of a run, and what was decided for it.

    Attributes:
        command: What starts the same run again, for the run's record.
        notes: The decisions, one line each, for the log.
        computing: How the model computes (`imagelm.accel.compile.ComputePlan`), for the run's record.
    """

    data: DataArguments
    model: ModelArguments
    run: RunArguments
    args: TrainingArguments
    num_threads: int
    command: str
    notes: list[str]
    computing: dict[str, object] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        return Path(self.args.output_dir or "")

    def attention(self) -> str | None:
        """transformers' `attn_implementation` on this device; None leaves the choice to the architecture."""
        if self.run.attention != "auto":
            return self.run.attention
        return CAUSAL_PRODUCT if self.args.device.type == "cpu" else None

    def num_training_tokens(self, num_rows: int, mean_length: float) -> float:
        """Number of tokens that a process reads in training."""
        if self.args.max_steps > 0:
            steps = self.args.max_steps * self.args.gradient_accumulation_steps
            return steps * self.args.per_device_train_batch_size * mean_length
        return self.args.num_train_epochs * num_rows * mean_length / self.args.world_size


def resolve_launch(
    data: DataArguments,
    model: ModelArguments,
    run: RunArguments,
    args: TrainingArguments,
    command: str | None,
    notes: list[str],
) -> Launch:
    """Checks the arguments against the machine and makes the open decisions.

    `command` is a call that starts the same run; None stands for this program's own command line.

    Raises:
        InputError: A value can't work, or doesn't fit the way the program was launched.
    """
    notes += _check_launch(args)
    _check_training_arguments(args)
    args.logging_nan_inf_filter = False  # such a step is never taken, and the filter would wait for the device
    args.dataloader_pin_memory = args.dataloader_pin_memory and args.device.type != "cpu"
    command = command or _own_command(args.world_size)
    return Launch(data, model, run, args, set_num_threads(run.num_threads), command, notes)


def _own_command(num_processes: int) -> str:
    """The command line of this program, with `accelerate launch` if that started it."""
    mixed_precision, program = os.environ.get(MIXED_PRECISION_VARIABLE), invocation()
    if mixed_precision is None:
        return shlex.join([*program, *given_words()])
    program = program[1:] if program[0] == "python" else program
    several = ["--multi_gpu", "--num_processes", str(num_processes)] if num_processes > 1 else []
    launcher = ["accelerate", "launch", *several, "--mixed_precision", mixed_precision]
    return shlex.join([*launcher, *program, *given_words()])


def _check_launch(args: TrainingArguments) -> list[str]:
    """Refuses launches that would train something other than requested; returns notes for the log."""
    asked = int(os.environ.get("WORLD_SIZE", 1))
    if asked != args.world_size:
        raise InputError(
            f"the launcher started {asked} processes, but each one trains alone (no GPU for a multi-GPU launch?); "
            "on a CPU start them with ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N"
        )
    num_gpus = torch.cuda.device_count() if args.device.type == "cuda" else 0
    if args.world_size > 1 or num_gpus <= 1:
        return []
    remedy = f"use all with accelerate launch --multi_gpu --num_processes {num_gpus}"
    return [f"{num_gpus} GPUs are visible, one is used; {remedy}"]


def _check_training_arguments(args: TrainingArguments) -> None:
    name = (args.metric_for_best_model or "").removeprefix("eval_")
    if name not in GREATER_IS_BETTER:
        raise InputError(
            f"--metric_for_best_model {name!r} isn't a figure; choose one of {', '.join(GREATER_IS_BETTER)}"
        )
    # The library assumes that more is better for every name that doesn't end in "loss".
    args.greater_is_better = GREATER_IS_BETTER[name]
    for option, (unwanted, reason) in UNWANTED_ARGUMENTS.items():
        if unwanted(getattr(args, option)):
            raise InputError(f"--{option} {getattr(args, option)}: remove it; {reason}")
    for name, value in vars(args).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"--{name} {value}: give a finite number")
    for option in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(args, option) < 1:
            raise InputError(f"--{option} {getattr(args, option)}: give 1 or more")
    for option in ("eval_steps", "save_steps", "logging_steps"):
        if (getattr(args, option) or 1) <= 0:
            raise InputError(f"--{option} {getattr(args, option)}: give a positive number")
    if args.max_steps <= 0 and args.num_train_epochs <= 0:
        raise InputError(f"--num_train_epochs {args.num_train_epochs}: give a positive number, or --max_steps")
    check_folder_name(args.output_dir or "")


@dataclass
class TrainingInputs:
    """The rows of a run, and what belongs to them."""

    dataset: DatasetDict  # both splits, as prepared
    train: Dataset  # changed in each epoch if augmentation is on
    stats: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    grammar: Grammar
    processor: ImageLMProcessor | None  # None for data without a codec


def load_inputs(launch: Launch) -> TrainingInputs:
    """Loads the prepared rows, and checks that no image is in both splits.

    Raises:
        InputError: The folder isn't prepared data, or an image is in both splits.
    """
    args, folder = launch.args, Path(launch.data.dataset_dir)
    dataset = load_prepared(folder, with_images=launch.run.augment is not None)
    stats = load_stats(folder)
    tokenizer = load_tokenizer(folder / TOKENIZER_FOLDER)
    grammar = grammar_of(tokenizer)
    check_disjoint(dataset)
    codec = load_codec_of(folder)
    seed = args.seed if args.data_seed is None else args.data_seed
    train = augmented(dataset["train"], codec, grammar, launch.run.augment, seed)
    processor = make_processor(tokenizer, codec, stats["class_names"]) if codec else None
    logger.info("data: %d training and %d test rows, no image in both", len(dataset["train"]), len(dataset["test"]))
    return TrainingInputs(dataset, train, stats, tokenizer, grammar, processor)
