"""What a run starts from: its arguments, fitted to this machine.

One idea: everything that can fail before the first step fails here, with a message, and everything that the program
decides itself (dtype, threads, attention, devices) is decided here and logged.
"""

from __future__ import annotations

import math
import operator
import os
import shlex
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from imagelm.accel.attention import CAUSAL_PRODUCT, CAUSAL_SDPA
from imagelm.metrics import GREATER_IS_BETTER
from imagelm.models.arguments import ModelArguments
from imagelm.models.transfer import Transfer
from imagelm.training.arguments import DataArguments, RunArguments
from imagelm.utils.atomic_io import check_folder_name
from imagelm.utils.command_line import MAX_SEED, given_words, invocation
from imagelm.utils.device import MIXED_PRECISION_VARIABLE, has_fast_bfloat16, set_num_threads, training_device
from imagelm.utils.errors import InputError

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

# The same for rows that are streamed: they are read forwards, each once in an epoch.
UNWANTED_WITH_STREAMING = {
    "dataloader_num_workers": (bool, "each worker would read all rows; the training process reads them fast enough"),
    "dataloader_drop_last": (bool, "the last rows of every lane would never be seen"),
    "auto_find_batch_size": (bool, "the order of the rows depends on their number per update"),
    "train_sampling_strategy": (lambda name: name != "random", "streamed rows are shuffled by a buffer"),
}

AT_LEAST_ONE = (
    *("per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "eval_accumulation_steps"),
)


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
        chosen: Values of options that weren't given, by name (`imagelm.training.defaults`), for log and record.
        computing: How the model computes (`imagelm.accel.compile.ComputePlan`), for the run's record.
        estimate: Seconds and bytes that training takes (`imagelm.training.rehearsal`); empty for a short run.
        transfer: What is taken over from the checkpoint that is fine-tuned; None for a model from scratch.
        local_parts: Where the small parts of data in a store were fetched to; None for data in a local folder.
    """

    data: DataArguments
    model: ModelArguments
    run: RunArguments
    args: TrainingArguments
    num_threads: int
    command: str
    notes: list[str]
    chosen: dict[str, float] = field(default_factory=dict)
    computing: dict[str, object] = field(default_factory=dict)
    estimate: dict[str, float] = field(default_factory=dict)
    transfer: Transfer | None = None
    local_parts: Path | None = None

    @property
    def folder(self) -> Path:
        """The folder with the statistics, tokenizer and codec of the data."""
        return self.local_parts or Path(self.data.dataset_dir)

    @property
    def output(self) -> Path:
        return Path(self.args.output_dir or "")

    def attention(self) -> str | None:
        """transformers' `attn_implementation` on this device; None leaves the choice to the architecture."""
        if self.run.attention != "auto":
            return self.run.attention
        if self.args.device.type == "cpu":
            return CAUSAL_PRODUCT
        return CAUSAL_SDPA if self.run.max_unchecked_steps or self.run.cuda_graph else None

    def num_updates(self, num_rows: int) -> int:
        """Number of updates of the whole run."""
        args = self.args
        batches = math.ceil(num_rows / args.world_size / args.per_device_train_batch_size)
        per_epoch = math.ceil(batches / args.gradient_accumulation_steps)
        return args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)

    def num_training_tokens(self, num_rows: int, mean_length: float) -> float:
        """Number of tokens that a process reads in training."""
        if self.args.max_steps > 0:
            steps = self.args.max_steps * self.args.gradient_accumulation_steps
            return steps * self.args.per_device_train_batch_size * mean_length
        return self.args.num_train_epochs * num_rows * mean_length / self.args.world_size

    def flops(self, num_parameters: int, stats: dict[str, Any]) -> float:
        """Floating-point operations of a process for the products of training, without those of attention."""
        return 6.0 * num_parameters * self.num_training_tokens(stats["num_rows"]["train"], stats["lengths"]["mean"])


def choose_precision(values: dict[str, Any]) -> None:
    """Decides about bfloat16 if neither an option nor a launcher does: it is used where the device computes it fast."""
    if values["bf16"] is not None:
        return
    decided = values["fp16"] or MIXED_PRECISION_VARIABLE in os.environ
    device = training_device(values["use_cpu"])
    values["bf16"] = not decided and has_fast_bfloat16(device)
    # Without it transformers asks for a GPU.
    values["use_cpu"] = values["use_cpu"] or (values["bf16"] and device.type == "cpu")


def connect_cpu_processes(values: dict[str, Any]) -> None:
    """Starts the communication of several CPU processes; transformers passes `--ddp_timeout` on for GPUs only."""
    on_cpu = values["use_cpu"] or os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    several = "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1
    if on_cpu and several and not distributed.is_initialized():
        timeout = timedelta(seconds=values["ddp_timeout"])
        distributed.init_process_group(values["ddp_backend"] or "gloo", timeout=timeout)


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
    if data.streaming is not None:
        _check_streaming(args, run)
    _check_device_options(data, run, args)
    if run.optimizer == "muon" and _is_sharded(args):
        raise InputError(
            "--optimizer muon: remove it, or FSDP and DeepSpeed, which leave each process a part of a matrix"
        )
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False  # a language model uses all in each step; looking costs time
    args.logging_nan_inf_filter = False  # such a step is never taken, and the filter would wait for the device
    on_host = args.device.type != "cpu" and not run.rows_on_device
    args.dataloader_pin_memory = args.dataloader_pin_memory and on_host
    command = command or _own_command(args.world_size)
    return Launch(data, model, run, args, set_num_threads(run.num_threads), command, notes)


def _check_streaming(args: TrainingArguments, run: RunArguments) -> None:
    """Refuses what can't work with `--streaming`, and leaves the order to the stream."""
    if run.augment is not None:
        raise InputError("--streaming: remove --augment, which reads images; prepare variants instead (--variants)")
    for option, (unwanted, reason) in UNWANTED_WITH_STREAMING.items():
        if unwanted(getattr(args, option)):
            raise InputError(f"--streaming: remove --{option}; {reason}")
    args.train_sampling_strategy = "sequential"


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
    remedy = "on a CPU start them with ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N"
    if asked != args.world_size:
        raise InputError(
            f"the launcher started {asked} processes, but each one trains alone (no GPU for a multi-GPU launch?); "
            f"{remedy}"
        )
    # accelerate launch sets the port for several processes, but without --multi_gpu it starts only one.
    if MIXED_PRECISION_VARIABLE in os.environ and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        raise InputError(f"accelerate launch was asked for several processes, but started one; {remedy}")
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and args.device.type == "cpu":
        return ["FSDP is not used: accelerate shards models on GPUs only, so each CPU process holds the whole model"]
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" and args.distributed_state.distributed_type != "DEEPSPEED":
        return ["DeepSpeed is not used: accelerate ignores it with CPU processes, each of which holds the whole model"]
    num_gpus = torch.cuda.device_count() if args.device.type == "cuda" else 0
    if args.world_size > 1 or num_gpus <= 1:
        return []
    remedy = f"use all with accelerate launch --multi_gpu --num_processes {num_gpus}"
    return [f"{num_gpus} GPUs are visible, one is used; {remedy}"]


def _is_sharded(args: TrainingArguments) -> bool:
    """Whether processes share the weights or the optimizer's state, by FSDP or DeepSpeed."""
    fsdp = args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true"
    return (fsdp and args.device.type != "cpu") or args.distributed_state.distributed_type == "DEEPSPEED"


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
    for option in AT_LEAST_ONE:
        if (value := getattr(args, option)) is not None and value < 1:
            raise InputError(f"--{option} {value}: give 1 or more")
    for option in ("learning_rate", "weight_decay", "max_grad_norm"):
        if getattr(args, option) < 0:
            raise InputError(f"--{option} {getattr(args, option)}: give 0 or more")
    for option in ("seed", "data_seed"):
        if not 0 <= (getattr(args, option) or 0) <= MAX_SEED:
            raise InputError(f"--{option} {getattr(args, option)}: give 0 to {MAX_SEED}")
    for option in ("eval_steps", "save_steps", "logging_steps"):
        if (getattr(args, option) or 1) <= 0:
            raise InputError(f"--{option} {getattr(args, option)}: give a positive number")
    if args.max_steps <= 0 and args.num_train_epochs <= 0:
        raise InputError(f"--num_train_epochs {args.num_train_epochs}: give a positive number, or --max_steps")
    check_folder_name(args.output_dir or "")


def _check_device_options(data: DataArguments, run: RunArguments, args: TrainingArguments) -> None:
    """Refuses what can't go with rows on the device, or with updates that the device checks itself."""
    if run.rows_on_device and run.augment is not None:
        raise InputError("--rows_on_device: remove it; the rows of --augment are made anew in each epoch, on the host")
    if run.rows_on_device and data.streaming is not None:
        raise InputError("--rows_on_device: remove it, or --streaming, which is for rows that don't fit")
    if run.rows_on_device and args.dataloader_num_workers:
        raise InputError("--rows_on_device: remove --dataloader_num_workers; nothing is left for workers to read")
    option = "--cuda_graph" if run.cuda_graph else "--max_unchecked_steps" if run.max_unchecked_steps else None
    if option is None:
        return
    if args.mixed_precision == "fp16":
        raise InputError(f"{option}: remove it; the loss scale of fp16 is checked before each update")
    if run.optimizer != "muon" and args.optim != OptimizerNames.ADAMW_TORCH_FUSED:
        raise InputError(
            f"{option}: choose --optim adamw_torch_fused or --optimizer muon, or remove it; other optimizers can't "
            "skip an update on the device"
        )
    if not run.cuda_graph:
        return
    if args.device.type != "cuda":
        raise InputError(f"--cuda_graph: this run computes on {args.device.type.upper()}; remove it, or use a GPU")
    if args.world_size > 1 or args.gradient_accumulation_steps > 1:
        raise InputError("--cuda_graph: an update must be one batch of one process; remove it, or accumulation")
