"""The options of `imagelm train`, in addition to everything in transformers' `TrainingArguments`.

Nothing heavy is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from imagelm.utils.command_line import OptionGroup, option

BEST_METRIC = "cls_accuracy"


@dataclass(kw_only=True)
class DataArguments:
    """Which data, and what to do with an earlier run."""

    dataset_dir: str = option("folder that imagelm prepare wrote", group="Data", metavar="FOLDER")
    streaming: str | None = option(
        "read the training rows while training, from the shards in --dataset_dir or those of a pattern such as "
        "'s3://bucket/rows/*.parquet'; --dataset_dir may then be in a store, such as hf://datasets/me/mine",
        None,
        bare="",
        metavar="SHARDS",
    )
    shuffle_buffer: int = option("rows that --streaming shuffles at a time", 65_536)
    overwrite: bool = option("discard the earlier run in --output_dir and start again", False)
    allow_partial_resume: bool = option(
        "resume from a checkpoint that lacks the state of the optimizer, scheduler, random numbers or data", False
    )
    extend_run: bool = option(
        "continue a run with a larger --max_steps or --num_train_epochs: from the newest checkpoint on, the learning "
        "rate is that of the longer schedule; not needed with a constant schedule",
        False,
    )
    change_processes: bool = option(
        "continue a run with another number of processes: batch size x accumulation steps x processes must stay the "
        "same, and the order of the rows goes on; dropout draws other numbers",
        False,
    )


@dataclass
class RunArguments(OptionGroup):
    """Loss, optimizer, augmentation, and how a step is computed."""

    cls_loss_weight: float = option(
        "w in loss = (1-w) * mean over scored tokens + w * mean over CLS slots; 0: plain causal LM",
        0.0,
        minimum=0,
        maximum=1,
        group="Loss, optimizer, augmentation and threads",
        metavar="W",
    )
    optimizer: str = option(
        "trainer: the optimizer that --optim names; muon: Muon for the matrices, AdamW for the rest",
        "trainer",
        choices=("trainer", "muon"),
    )
    muon_learning_rate: float = option("learning rate of Muon; --learning_rate is that of AdamW", 0.02)
    augment: str | None = option(
        "change the training images in each epoch, such as shift=2,rotate=10,scale=0.1,hflip; needs data prepared with "
        "--keep_images",
        None,
        metavar="CHANGES",
    )
    early_stopping_patience: int = option(
        "stop after this many evaluations without improvement; 0: never", 0, minimum=0
    )
    attention: str = option(
        "how attention is computed; causal_product: in chunks of rows, for CPUs; causal_sdpa: sdpa that never reads a "
        "mask, for GPUs; auto: on a CPU causal_product, or sdpa if a trial at the start of a long run finds it faster; "
        "causal_sdpa on a GPU with --cuda_graph or --max_unchecked_steps, otherwise sdpa",
        "auto",
        choices=("auto", "eager", "sdpa", "causal_product", "causal_sdpa"),
    )
    compile: str = option(
        "compile the model's blocks; auto: if rows have one length and the run is long enough to earn back the half "
        "minute, on a CPU with a C++ compiler, or on a GPU with large batches",
        "auto",
        choices=("auto", "on", "off"),
    )
    rows_on_device: bool = option(
        "keep the training rows in the device's memory, where they fit, and make the batches there", False
    )
    max_unchecked_steps: int = option(
        "updates after which loss and gradient of the first must be read; meanwhile the device itself skips an update "
        "that isn't finite and all after it; 0: read before each update, for which a GPU waits",
        0,
        minimum=0,
    )
    cuda_graph: bool = option(
        "capture the whole update of full batches as one CUDA graph, on one GPU and for rows of one length", False
    )
    num_threads: int = option("CPU threads per process; 0: share the cores", 0, minimum=0)
    global_batch_size: int | None = option(
        "rows per update, whatever the number of processes: sets --per_device_train_batch_size or, if that is given, "
        "--gradient_accumulation_steps",
        None,
        minimum=1,
        metavar="N",
    )


@dataclass(kw_only=True)
class CommonTrainingArguments:
    """The most used options of transformers' `TrainingArguments`, with our defaults."""

    output_dir: str = option(
        "folder for best_model, final_model, report and checkpoints",
        group="Training: the most used of transformers' TrainingArguments (--help_all lists all)",
        metavar="FOLDER",
    )
    num_train_epochs: float | None = option(
        "passes over the training rows; chosen by the data's size if not given", None
    )
    max_steps: int = option("number of updates; above 0 it replaces the epochs", -1)
    per_device_train_batch_size: int | None = option(
        "rows per step and device; chosen by the data's size if not given", None
    )
    gradient_accumulation_steps: int = option("steps per update", 1)
    learning_rate: float | None = option("peak learning rate; chosen by the data's size if not given", None)
    lr_scheduler_type: str = option("linear, cosine, constant, …", "linear", metavar="NAME")
    warmup_steps: float | None = option(
        "updates until the peak; below 1: share of all updates; 0 if not given, 0.05 for a chosen --learning_rate", None
    )
    weight_decay: float = option("decay of the matrices", 0.0)
    bf16: bool | None = option(
        "mixed precision in bfloat16; if not given: of accelerate launch, or where the device computes it fast", None
    )
    fp16: bool = option("mixed precision in float16", False)
    eval_strategy: str = option("when to evaluate: no, steps or epoch", "epoch", metavar="WHEN")
    eval_steps: float | None = option("updates between evaluations, for steps; --logging_steps if not given", None)
    save_strategy: str = option("when to save a checkpoint: no, steps, epoch or best", "epoch", metavar="WHEN")
    save_steps: float = option("updates between checkpoints, for steps", 500)
    save_total_limit: int | None = option("number of checkpoints to keep", 2)
    logging_steps: float = option("updates between logged losses", 10)
    metric_for_best_model: str | None = option("figure that chooses best_model", BEST_METRIC, metavar="NAME")
    resume_from_checkpoint: str | None = option(
        "checkpoint to resume from; the newest complete one in --output_dir if not given", None, metavar="FOLDER"
    )
    push_to_hub: bool = option("publish best_model at the end", False)
    hub_model_id: str | None = option("repository to publish to; the name of --output_dir if not given", None)
    hub_strategy: str = option("end: publish at the end; every_save: also at each checkpoint", "end", metavar="WHEN")
    seed: int = option("seed of weights and dropout", 42)
    data_seed: int | None = option("seed of the rows' order; --seed if not given", None)
    full_determinism: bool = option("repeat the run bit by bit, also on a GPU; slower there", False)


@dataclass
class HelpArguments:
    """What the help shows."""

    help_all: bool = option("show the help of all TrainingArguments", False)
