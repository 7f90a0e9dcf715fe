"""From words on a command line to arguments that fit this machine.

One idea: whatever can go wrong before a step is trained goes wrong here, with a message; and whatever the program
decides itself (dtype, threads, attention, devices) is decided here, and said.
"""

from __future__ import annotations

import argparse
import math
import operator
import os
import shlex
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NoReturn

from transformers import HfArgumentParser, TrainingArguments
from transformers.utils import logging

from imagelm.arguments import OWN_ARGUMENTS, DataArguments, ModelArguments, RunArguments, expand_config
from imagelm.attention import CAUSAL_PRODUCT
from imagelm.errors import InputError
from imagelm.files import check_folder_name
from imagelm.hub.options import RunPush
from imagelm.metrics import GREATER_IS_BETTER
from imagelm.precision import MIXED_PRECISION_VARIABLE, settle_mixed_precision, settle_threads

# What a training argument may not be, and why: each would make a figure untrue or leave it out.
UNWANTED_ARGUMENTS = {
    "load_best_model_at_end": (bool, "best_model is kept beside final_model anyway"),
    "label_smoothing_factor": (bool, "a smoothed loss has no perplexity"),
    "bf16_full_eval": (bool, "figures are reported in fp32"),
    "fp16_full_eval": (bool, "figures are reported in fp32"),
    "prediction_loss_only": (bool, "a loss alone tells no accuracy"),
    "hub_always_push": (bool, "each push waits for the one before it"),
    "batch_eval_metrics": (bool, "logits are reduced on the device already"),
    "eval_do_concat_batches": (operator.not_, "figures are sums over the whole split"),
    "enable_jit_checkpoint": (bool, "SIGTERM saves a checkpoint anyway"),
    "save_only_model": (bool, "a checkpoint without the optimizer can't be resumed; best_model is saved anyway"),
    "ignore_data_skip": (bool, "a resumed run would see rows again and leave others out"),
    "label_names": (lambda names: names not in (None, ["labels"]), "a causal language model has labels alone"),
}


@dataclass
class Launch:
    """Everything a run was told, and what was decided for it.

    Attributes:
        hub: How to publish the run; None where it isn't asked for.
        notes: What was decided, a line each, for the log.
        computing: How the model computes (`imagelm.acceleration.Form`), for the run's record.
    """

    data: DataArguments
    model: ModelArguments
    run: RunArguments
    args: TrainingArguments
    hub: RunPush | None
    num_threads: int
    notes: list[str]
    computing: dict[str, object] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """A command that starts the same run, whether `accelerate launch` started this one or Python."""
        mixed_precision = os.environ.get(MIXED_PRECISION_VARIABLE)
        words = [_without_secret(before, word) for before, word in zip(["", *sys.argv], sys.argv, strict=False)]
        if mixed_precision is None:
            return shlex.join(["python", *words])
        several = ["--multi_gpu", "--num_processes", str(self.args.world_size)] if self.args.world_size > 1 else []
        return shlex.join(["accelerate", "launch", *several, "--mixed_precision", mixed_precision, *words])

    def attention(self) -> str | None:
        """transformers' `attn_implementation` on this device, where the architecture has it.

        None leaves the choice to the architecture: sdpa where it has it.
        """
        if self.run.attention != "auto":
            return self.run.attention
        return CAUSAL_PRODUCT if self.args.device.type == "cpu" else None

    def num_training_tokens(self, num_rows: int, mean_length: float) -> float:
        """Tokens that a process reads in training."""
        if self.args.max_steps > 0:
            steps = self.args.max_steps * self.args.gradient_accumulation_steps
            return steps * self.args.per_device_train_batch_size * mean_length
        return self.args.num_train_epochs * num_rows * mean_length / self.args.world_size


def parse_launch(words: list[str], defaults: list[str]) -> Launch:
    """Parses the command line, with the YAML recipe and our defaults before it, and settles the machine.

    Args:
        words: The command line without the program's name.
        defaults: Words that stand before all others.

    Raises:
        InputError: An option is unknown or missing, has a wrong value, or doesn't fit the way the program was launched.
    """
    parser = _Parser((*OWN_ARGUMENTS, TrainingArguments), allow_abbrev=False, prog="train.py")
    if "--help_all" in words:
        parser.print_help()
        sys.exit(0)
    words = [*defaults, *expand_config(words, _known_names())]
    notes = [settle_mixed_precision(use_cpu=_asks_for_cpu(words))]
    for required in ("dataset_dir", "output_dir"):
        if not any(word.partition("=")[0] == f"--{required}" for word in words):
            raise InputError(f"--{required} is missing; give it on the command line or in the --config file")
    try:
        data, model, run, args = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"training arguments: {error}") from error
    notes.append(_check_launch(args))
    _check_training_arguments(args)
    if args.process_index != 0:
        logging.set_verbosity_error()
    logging.disable_progress_bar()  # of loading and saving weights; training keeps its own
    args.logging_nan_inf_filter = False  # such a step is never taken; the filter would cost a wait for the device
    args.dataloader_pin_memory = args.dataloader_pin_memory and args.device.type != "cpu"
    hub = _take_over_push(args)
    return Launch(data, model, run, args, hub, settle_threads(run.num_threads), [note for note in notes if note])


def _take_over_push(args: TrainingArguments) -> RunPush | None:
    """What the arguments ask of the Hub, taken away from Trainer: it would publish pickles and a card of its own.

    Raises:
        InputError: The repository's name can't be one, or optimizer states should be published.
    """
    if not args.push_to_hub:
        return None
    if args.hub_strategy not in ("end", "every_save"):
        raise InputError(
            f"--hub_strategy {args.hub_strategy.value}: a checkpoint to resume from holds pickles, which aren't "
            "published; choose end or every_save"
        )
    repo_id = args.hub_model_id or Path(args.output_dir).resolve().name
    hub = RunPush(
        repo_id, args.hub_token, bool(args.hub_private_repo), args.hub_revision, args.hub_strategy == "every_save"
    )
    hub.options(Path(args.output_dir))  # checks the name
    args.push_to_hub, args.hub_token = False, None
    return hub


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line instead of argparse's usage, which would fill two screens here."""
        raise InputError(message)


def _without_secret(before: str, word: str) -> str:
    if before.endswith("token"):
        return "<hidden>"
    name, equals, _ = word.partition("=")
    return f"{name}=<hidden>" if equals and name.endswith("token") else word


def _asks_for_cpu(words: list[str]) -> bool:
    """What --use_cpu says, before `TrainingArguments` can be asked: building it would settle the precision."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--use_cpu", nargs="?", const="true", default="false")
    return parser.parse_known_args(words)[0].use_cpu.lower() in ("true", "1", "yes", "y", "t")


def _known_names() -> set[str]:
    names = {"config"}
    for arguments in (*OWN_ARGUMENTS, TrainingArguments):
        for entry in fields(arguments):
            names.add(entry.name)
            if entry.default is True:
                names.add(f"no_{entry.name}")  # what HfArgumentParser offers for a switch that is on
    return names


def _check_launch(args: TrainingArguments) -> str | None:
    """Catches launches that would train something else than asked."""
    asked = int(os.environ.get("WORLD_SIZE", 1))
    if asked != args.world_size:
        raise InputError(
            f"the launcher started {asked} processes, but each one trains alone (no GPU for a multi-GPU launch?); "
            "on a CPU start them with ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N"
        )
    if args.n_gpu > 1:
        num_gpus = args.n_gpu
        # Otherwise Trainer takes nn.DataParallel, which is slower than one GPU and averages the losses differently.
        args._n_gpu = 1
        return (
            f"{num_gpus} GPUs are visible, one is used; "
            f"use all with accelerate launch --multi_gpu --num_processes {num_gpus}"
        )
    return None


def _check_training_arguments(args: TrainingArguments) -> None:
    name = (args.metric_for_best_model or "").removeprefix("eval_")
    if name not in GREATER_IS_BETTER:
        raise InputError(f"--metric_for_best_model {name!r} is no figure; choose one of {', '.join(GREATER_IS_BETTER)}")
    # The library would take every name that doesn't end in "loss" for one where more is better.
    args.greater_is_better = GREATER_IS_BETTER[name]
    for option, (unwanted, reason) in UNWANTED_ARGUMENTS.items():
        if unwanted(getattr(args, option)):
            raise InputError(f"--{option} {getattr(args, option)}: leave it out; {reason}")
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
    check_folder_name(args.output_dir)
