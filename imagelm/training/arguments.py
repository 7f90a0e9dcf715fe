"""What `train.py` can be told, beside everything in transformers' `TrainingArguments`.

One idea: a YAML recipe is turned into command-line words that stand before the user's own, so that the command line
wins by the ordinary rule that the last word counts. Nothing heavy is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from imagelm.models.arguments import ModelArguments
from imagelm.utils.errors import InputError

BEST_METRIC = "cls_accuracy"


@dataclass
class DataArguments:
    """The data."""

    dataset_dir: str | None = field(default=None, metadata={"help": "folder that prepare_dataset.py wrote (required)"})
    overwrite: bool = field(
        default=False, metadata={"help": "discard an earlier run that stands in --output_dir and start anew"}
    )
    allow_partial_resume: bool = field(
        default=False,
        metadata={"help": "go on from a checkpoint that lacks optimizer, scheduler, random numbers or data state"},
    )


@dataclass
class RunArguments:
    """Loss, optimizer, augmentation and threads."""

    cls_loss_weight: float = field(
        default=0.0,
        metadata={"help": "w in loss = (1-w) * mean over scored tokens + w * mean over CLS slots; 0: plain causal LM"},
    )
    optimizer: str = field(
        default="trainer",
        metadata={
            "help": "trainer: what --optim names; muon: Muon for the matrices, AdamW for the rest",
            "choices": ["trainer", "muon"],
        },
    )
    muon_learning_rate: float = field(default=0.02, metadata={"help": "Muon's; --learning_rate is AdamW's"})
    augment: str | None = field(
        default=None,
        metadata={
            "help": "change training images anew in each epoch, such as shift=2,rotate=10,scale=0.1,hflip; "
            "needs data prepared with --keep_images"
        },
    )
    early_stopping_patience: int = field(
        default=0, metadata={"help": "stop after so many evaluations without a better one (0: never)"}
    )
    attention: str = field(
        default="auto",
        metadata={
            "help": "how attention is computed; auto: causal_product (in chunks of rows) on a CPU, else sdpa",
            "choices": ["auto", "eager", "sdpa", "causal_product"],
        },
    )
    compile: str = field(
        default="auto",
        metadata={
            "help": "compile the model's blocks; auto: on a CPU with a C++ compiler, where rows are of one length and "
            "the run is long enough to earn the half minute back",
            "choices": ["auto", "on", "off"],
        },
    )
    num_threads: int = field(default=0, metadata={"help": "CPU threads a process (0: share the cores)"})

    def __post_init__(self) -> None:
        if not 0 <= self.cls_loss_weight <= 1:
            raise InputError(f"--cls_loss_weight {self.cls_loss_weight} is no share; give one from 0 to 1")
        if self.early_stopping_patience < 0 or self.num_threads < 0:
            raise InputError("--early_stopping_patience and --num_threads can't be negative")


OWN_ARGUMENTS = (DataArguments, ModelArguments, RunArguments)
# The options of TrainingArguments that a first run needs, for the short help.
COMMON_TRAINING_ARGUMENTS = {
    "output_dir": "folder for best_model, final_model, report and checkpoints (required)",
    "num_train_epochs": "passes over the training rows (default 3)",
    "max_steps": "number of updates instead of epochs",
    "per_device_train_batch_size": "rows a step and device (default 8)",
    "gradient_accumulation_steps": "steps an update",
    "learning_rate": "peak learning rate (default 5e-5)",
    "lr_scheduler_type": "linear, cosine, constant, …",
    "warmup_steps": "updates until the peak; below 1 a share of all",
    "weight_decay": "decay of the matrices",
    "bf16, fp16": "mixed precision (accelerate_config.yaml sets bf16 where the device has it)",
    "eval_strategy, eval_steps": "when to evaluate (default here: each epoch)",
    "save_strategy, save_steps": "when to save a checkpoint (default here: each epoch)",
    "metric_for_best_model": f"which figure chooses best_model (default here: {BEST_METRIC})",
    "resume_from_checkpoint": "a checkpoint (default: the newest whole one in --output_dir)",
    "push_to_hub, hub_model_id": "publish best_model at the end (--hub_strategy every_save: also at each save)",
    "seed": "of weights and dropout",
    "data_seed": "of the rows' order (default: --seed)",
    "full_determinism": "bitwise the same run again, also on a GPU; slower there",
}
