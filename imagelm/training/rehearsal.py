"""Two updates of a copy of the model, before the output folder is touched.

One idea: which options work together depends on packages, devices and the architecture, and only building and stepping
shows it. So everything is tried once with the real options, in a temporary folder: what fails is refused in one line,
and what succeeds tells how much time and memory the run will take, and whether compiling the model's blocks pays.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel, TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from imagelm.accel.attention import CAUSAL_PRODUCT, use_attention
from imagelm.accel.compile import ComputePlan, accelerate_training
from imagelm.accel.fastest import faster, time_attention
from imagelm.training.arguments import CommonTrainingArguments
from imagelm.training.checkpoint import CHECKPOINT_PATTERN
from imagelm.training.inputs import TrainingInputs
from imagelm.training.launch import Launch, OneDeviceArguments
from imagelm.training.run_record import read_record
from imagelm.training.trainer import ImageTrainer
from imagelm.utils.errors import DivergedError, InputError, LeakError, StorageError
from imagelm.utils.text import reason

NUM_UPDATES = 2  # the first one also warms up caches and makes the optimizer's state
SHORT_FLOPS = 1e11  # takes seconds everywhere
WORTH_A_TRIAL = 120  # seconds of training; attention is a tenth to a sixth of them
# Options that can't keep a run from starting, beside the common ones; the rest is named if it fails to start.
HARMLESS = {entry.name for entry in dataclasses.fields(CommonTrainingArguments)} - {"lr_scheduler_type"}
HARMLESS |= {"use_cpu", "do_eval", "disable_tqdm", "greater_is_better", "logging_nan_inf_filter", "project", "run_name"}
HARMLESS |= {"dataloader_pin_memory", "ddp_find_unused_parameters"}


@contextmanager
def options_blamed(launch: Launch) -> Iterator[None]:
    """Wraps what is built from the options: an error there is about those that aren't the usual ones.

    Raises:
        InputError: It names them. With the usual options alone an error is this program's, and stays as it is.
    """
    try:
        yield
    except (InputError, LeakError, DivergedError, StorageError):
        raise
    except torch.OutOfMemoryError as error:
        size = launch.args.per_device_train_batch_size
        remedy = f"lower --per_device_train_batch_size {size} and raise --gradient_accumulation_steps"
        raise InputError(f"the device has too little memory to train this model: {reason(error)}; {remedy}") from error
    except Exception as error:  # libraries raise all kinds for options that don't work
        options = " ".join(_unusual_options(launch))
        if not options:
            raise
        raise InputError(f"training can't start with {options}: {reason(error)}") from error


def rehearse(launch: Launch, data: TrainingInputs, model: PreTrainedModel) -> None:
    """Trains a copy of the model for two updates; every process must call it before the Trainer is built.

    Sets `launch.estimate`: `seconds` of the whole training with its evaluations, in this process, and `bytes` of
    weights, gradients, optimizer state and activations. The Trainer sets the seed again, so the run isn't changed. A
    short run with the usual options isn't rehearsed, and none estimated that diverges, which the run itself reports.

    Args:
        model: Not yet changed by `accelerate_training`.

    Raises:
        InputError: Training can't start with these options.
    """
    if launch.flops(model.num_parameters(), data.stats) < SHORT_FLOPS and not _unusual_options(launch):
        return
    args = copy.copy(launch.args)
    args.eval_strategy, args.eval_on_start, args.logging_strategy = IntervalStrategy.NO, False, IntervalStrategy.NO
    args.save_strategy, args.disable_tqdm, args.gradient_accumulation_steps = SaveStrategy.NO, True, 1
    with options_blamed(launch), tempfile.TemporaryDirectory() as folder:
        args.output_dir = folder
        model = copy.deepcopy(model)
        accelerate_training(model, args.device, "off", None, None, launch.attention())
        trainer = ImageTrainer(model, args, launch.run, data.tokenizer, data.train, data.dataset[data.eval_split])
        for reporter in get_reporting_integration_callbacks(args.report_to):
            trainer.remove_callback(reporter)  # they were built; none opens a run
        measurement = _Measurement(model, trainer)
        trainer.add_callback(measurement)
        try:
            with nullcontext() if args.torch_compile else saved_tensors_hooks(measurement.pack, lambda tensor: tensor):
                trainer.train()
        except DivergedError:
            return
        seconds = measurement.seconds * _num_batches(launch, data)
        launch.estimate = {"seconds": seconds, "bytes": measurement.num_bytes()}


def choose_computing(
    launch: Launch, data: TrainingInputs, model: PreTrainedModel, checkpoint: str | None
) -> ComputePlan:
    """Chooses how the model computes by the estimated time, and prepares it for that; every process must call it.

    A run that goes on from a checkpoint computes as it began.
    """
    args = launch.args
    began = read_record(launch.output).get("computing", {}) if checkpoint else {}
    seconds: float | None = launch.estimate.get("seconds", 0.0)
    if checkpoint:
        seconds = math.inf if began.get("compiled") else 0.0
    elif args.full_determinism:
        seconds = None
    (seconds,) = broadcast_object_list([seconds])  # one clock decides for all processes
    choice = "off" if args.torch_compile else launch.run.compile  # torch_compile compiles the whole model
    plan = accelerate_training(model, args.device, choice, seconds, data.full_batch(args), launch.attention())
    # Compiled, the products are fused with what surrounds them, and were faster on each CPU measured.
    if launch.run.attention == "auto" and plan.attention == CAUSAL_PRODUCT and not plan.compiled:
        times = began.get("attention_ms", {})
        if not checkpoint and (seconds or 0) >= WORTH_A_TRIAL:
            length = round(data.stats["lengths"]["mean"])
            dtype = torch.bfloat16 if args.bf16 else torch.float32
            with options_blamed(launch):
                times = time_attention(model.config, (args.per_device_train_batch_size, length), dtype)
        (plan.attention_ms,) = broadcast_object_list([times])
        plan.attention = faster(plan.attention_ms)
        use_attention(model, plan.attention)
    launch.computing = {"mixed_precision": args.mixed_precision, **dataclasses.asdict(plan)}
    return plan


def estimate_text(launch: Launch, data: TrainingInputs, checkpoint: str | None) -> str:
    """The line for the log, about what is still to be done after a checkpoint."""
    if not launch.estimate:
        return "estimate: about a minute of training at most"
    step = CHECKPOINT_PATTERN.search(Path(checkpoint or "").name)
    share = 1 - int(step[1] if step else 0) / launch.num_updates(len(data.train))
    minutes = math.ceil(launch.estimate["seconds"] * max(share, 0) / 60)
    time_left = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
    gigabytes = launch.estimate["bytes"] / 2**30
    return f"estimate: about {time_left} of training, {gigabytes:.2g} GiB of memory beside the libraries' own"


def _num_batches(launch: Launch, data: TrainingInputs) -> float:
    """How many batches of training the run takes as long as; a row costs a third of that where it is evaluated."""
    args, num_rows, num_evaluated = launch.args, len(data.train), len(data.dataset[data.eval_split])
    updates = launch.num_updates(num_rows)
    batches = updates * args.gradient_accumulation_steps
    row = 1 / (3 * args.per_device_train_batch_size * args.world_size)
    if args.eval_strategy == IntervalStrategy.NO:
        return batches
    steps = args.eval_steps or args.logging_steps
    interval = steps if steps >= 1 else max(1, updates * steps)
    epochs = batches * args.per_device_train_batch_size * args.world_size / num_rows
    evaluations = epochs if args.eval_strategy == IntervalStrategy.EPOCH else updates / interval
    return batches + num_evaluated * row * evaluations


class _Measurement(TrainerCallback):
    """Ends the training after `NUM_UPDATES`, and measures the last one."""

    def __init__(self, model: PreTrainedModel, trainer: ImageTrainer) -> None:
        self.model, self.trainer = model, trainer
        self.seconds, self.started = 0.0, 0.0
        self.saved: dict[int, int] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Counts what the forward pass keeps for the backward pass, each piece of memory once."""
        storage = tensor.untyped_storage()
        self.saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.saved.clear()
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if args.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.started
        control.should_training_stop = state.global_step >= NUM_UPDATES

    def num_bytes(self) -> int:
        weights = {weight.untyped_storage().data_ptr(): weight.nbytes for weight in self.model.parameters()}
        state = self.trainer.optimizer.state.values() if self.trainer.optimizer else ()
        kept = sum(value.nbytes for entry in state for value in entry.values() if isinstance(value, torch.Tensor))
        activations = sum(size for pointer, size in self.saved.items() if pointer not in weights)
        return 2 * sum(weights.values()) + kept + activations


def _unusual_options(launch: Launch) -> list[str]:
    """The options that differ from their defaults and could keep a run from starting, as on the command line."""
    usual = OneDeviceArguments(output_dir=launch.args.output_dir, use_cpu=launch.args.use_cpu)
    names = [entry.name for entry in dataclasses.fields(launch.args) if entry.init and entry.name not in HARMLESS]
    given = {name: value for name in names if (value := getattr(launch.args, name)) != getattr(usual, name)}
    if launch.run.attention != "auto":
        given["attention"] = launch.run.attention
    for entry in dataclasses.fields(launch.model):
        if entry.name != "config_overrides" and (value := getattr(launch.model, entry.name)) != entry.default:
            given[entry.name] = value
    texts = {
        name: " ".join(value) if isinstance(value, list) else getattr(value, "value", value)
        for name, value in given.items()
    }
    return [f"--{name} {text}" for name, text in texts.items()]
