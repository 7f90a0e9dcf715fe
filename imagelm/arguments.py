"""What `train.py` can be told, beside everything in transformers' `TrainingArguments`.

One idea: a YAML recipe is turned into command-line words that stand before the user's own, so that the command line
wins by the ordinary rule that the last word counts. Nothing heavy is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml

from imagelm.errors import InputError
from imagelm.files import read_input

BEST_METRIC = "cls_accuracy"
MAX_CONFIG_BYTES = 64 << 10


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
class ModelArguments:
    """The model."""

    model_type: str = field(default="gpt2", metadata={"help": "architecture of a model from scratch: any causal one"})
    config_overrides: str | None = field(
        default=None, metadata={"help": "fields of its config, such as num_hidden_layers=4,hidden_size=128"}
    )
    model_config_file: str | None = field(
        default=None, metadata={"help": "a config.json (or its folder) instead of --model_type"}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "checkpoint to fine-tune (folder or Hub id) instead of a model from scratch"}
    )

    def __post_init__(self) -> None:
        if self.model_name_or_path and (self.model_config_file or self.config_overrides):
            raise InputError(
                "--model_name_or_path brings its own config; leave out --model_config_file and --config_overrides"
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


def expand_config(words: list[str], known: set[str]) -> list[str]:
    """Replaces `--config FILE` by the words of the YAML file, put before all others, and checks every name.

    Args:
        words: The command line without the program's name.
        known: Names that an option or a key may have.

    Raises:
        InputError: The file can't be read or isn't a flat mapping, or it or the command line holds an unknown name.
    """
    rest, config = [], None
    iterator = iter(words)
    for word in iterator:
        if word == "--config" or word.startswith("--config="):
            config = word.partition("=")[2] or next(iterator, None)
            if config is None:
                raise InputError("--config needs a YAML file")
        else:
            # Both spellings of an option are one.
            name, equals, value = word.partition("=")
            rest.append(
                name.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word
            )
    for word in rest:
        if word.startswith("--"):
            _check_known(word[2:].partition("=")[0].replace("-", "_"), known, "the command line")
    return rest if config is None else [*_words_of(Path(config), known), *rest]


def short_help(usage: str) -> str:
    """The help that needs no heavy import: our own options, and the most used ones of `TrainingArguments`."""
    lines = [usage, ""]
    for arguments in OWN_ARGUMENTS:
        lines.append(arguments.__doc__)
        for entry in fields(arguments):
            default = "" if entry.default in (None, False) else f" (default {entry.default})"
            lines.append(f"  --{entry.name:28} {entry.metadata['help']}{default}")
        lines.append("")
    lines.append("Training: everything in transformers' TrainingArguments; --help_all lists it. Most used:")
    lines.extend(f"  --{name:28} {text}" for name, text in COMMON_TRAINING_ARGUMENTS.items())
    lines += ["", "A YAML recipe by --config FILE holds the same names; the command line wins.", ""]
    lines.append(
        "Exit codes: 0 done, 2 the input is wrong, 130 and 143 stopped by Ctrl-C and SIGTERM, 1 anything else."
    )
    return "\n".join(lines)


def _check_known(name: str, known: set[str], where: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise InputError(f"{where} has an unknown key {name!r}{f'; did you mean {near[0]!r}?' if near else ''}")


def _words_of(config: Path, known: set[str]) -> list[str]:
    try:
        text = read_input(config, "--config", MAX_CONFIG_BYTES).decode("utf-8-sig")
        _check_plain(yaml.compose(text, yaml.SafeLoader), config)
        content = yaml.safe_load(text)
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no such date or number
        raise InputError(f"--config {config} isn't YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"--config {config} holds no mapping; expected lines like learning_rate: 3e-4")
    words = []
    for name, value in content.items():
        _check_known(str(name), known, str(config))
        if value is None:
            continue
        words.append(f"--{name}")
        if value is False and name.endswith("_strategy"):
            value = "no"  # which YAML reads as false
        if isinstance(value, list):
            words.extend(str(entry) for entry in value)
        else:
            words.append(json.dumps(value, default=str) if isinstance(value, dict | bool) else str(value))
    return words


def _check_plain(root: yaml.Node | None, config: Path) -> None:
    """Refuses what YAML would take without a word: a key that stands twice, and text that unfolds when it's read."""
    seen, nodes = set(), [root] if root else []
    while nodes:
        node = nodes.pop()
        line = f"--config {config}:{node.start_mark.line + 1}"
        if id(node) in seen:
            raise InputError(f"{line}: anchors and aliases have no place in a recipe; write the value out")
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if len(set(keys)) < len(keys):
                raise InputError(f"{line}: key {Counter(keys).most_common(1)[0][0]!r} stands twice")
            nodes += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
