"""What stands in an output folder, and whether a run may go on from it.

One idea: `run.json` says what determines the weights (data, model, loss, schedule, seed). A checkpoint is resumed only
by a run that says the same; everything else is refused with the difference.
"""

from __future__ import annotations

import json
import math
import platform
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import PretrainedConfig, TrainingArguments

from imagelm.arguments import ModelArguments, RunArguments
from imagelm.dataset import STATS_FILE
from imagelm.errors import InputError
from imagelm.files import read_json, write_json

RUN_FILE = "run.json"
BEST_FOLDER, FINAL_FOLDER, REPORT_FOLDER = "best_model", "final_model", "report"
RESULTS_FILE = "eval_results.json"
# What a model's folder holds beside the model, so that it can be told of wherever the folder goes.
HISTORY_FILE, TRAINING_ARGUMENTS_FILE = "log_history.json", "training_args.json"
CHECKPOINT_PATTERN = re.compile(r"checkpoint-(\d+)")
LIBRARIES = ("accelerate", "datasets", "evaluate", "huggingface_hub", "tokenizers", "torch", "transformers")
# The fields of TrainingArguments that determine the weights; the others say where, how often and how loudly.
DECISIVE_ARGUMENTS = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "average_tokens_across_devices",
    "data_seed",
    "dataloader_drop_last",
    "gradient_accumulation_steps",
    "label_smoothing_factor",
    "learning_rate",
    "lr_scheduler_kwargs",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_steps",
    "metric_for_best_model",
    "neftune_noise_alpha",
    "num_train_epochs",
    "optim",
    "optim_args",
    "per_device_train_batch_size",
    "seed",
    "train_sampling_strategy",
    "warmup_steps",
    "weight_decay",
)


def identity(
    stats: dict, config: PretrainedConfig, args: TrainingArguments, run: RunArguments, model: ModelArguments
) -> dict:
    """What determines the weights of a run, ready for JSON."""
    arguments = args.to_dict()
    architecture = {
        name: value
        for name, value in config.to_dict().items()
        if name not in ("transformers_version", "use_cache", "dtype") and not name.startswith("_")
    }
    decisive = {
        "data": stats["fingerprint"],
        "world_size": args.world_size,
        "mixed_precision": args.mixed_precision,
        "started_from": model.model_name_or_path,
        "augment": run.augment,
        "cls_loss_weight": run.cls_loss_weight,
        "optimizer": run.optimizer,
        "muon_learning_rate": run.muon_learning_rate if run.optimizer == "muon" else None,
        **{f"model.{name}": value for name, value in architecture.items()},
        **{name: arguments[name] for name in DECISIVE_ARGUMENTS},
    }
    return json.loads(json.dumps(decisive, default=str))


FINISHED = "finished"


def settle_output(args: TrainingArguments, this: dict, overwrite: bool) -> str | None:
    """Decides what happens to what stands in the output folder; call it on the main process alone.

    Args:
        args: With the output folder, and a checkpoint of it if the user named one.
        this: `identity` of this run.
        overwrite: Discard an earlier run.

    Returns:
        The checkpoint to resume from, None to begin at step 0, or `FINISHED` where this very run stands complete.

    Raises:
        InputError: The folder holds other files or another run, or the named checkpoint isn't whole or not of it.
    """
    output, named = Path(args.output_dir), args.resume_from_checkpoint or ""
    anew = named.lower() == "false"
    if not (output / RUN_FILE).is_file():
        if output.is_file() or (output.is_dir() and any(output.iterdir())):
            raise InputError(f"--output_dir {output} holds files that aren't of a run; choose a new folder")
        if named and named.lower() not in ("true", "false"):
            raise InputError(f"--resume_from_checkpoint {named}: give the checkpoint's own run as --output_dir")
        return None
    if overwrite:
        discard(output)
        return None
    _check_same_run(output, this)
    if named and named.lower() not in ("true", "false"):
        if Path(named).resolve().parent != output.resolve() or not _is_whole(Path(named)):
            raise InputError(f"--resume_from_checkpoint {named} is no whole checkpoint of --output_dir {output}")
        return named
    finished = (output / FINAL_FOLDER / RESULTS_FILE).is_file() and (output / REPORT_FOLDER).exists()
    if finished and not anew:
        return FINISHED
    checkpoint = None if anew else newest_checkpoint(output)
    if checkpoint is not None:
        return str(checkpoint)
    if finished or any(CHECKPOINT_PATTERN.fullmatch(folder.name) for folder in output.iterdir()):
        why = "a new start was asked for" if anew else "no whole checkpoint"
        raise InputError(f"--output_dir {output} holds this run, but {why}; discard what is there with --overwrite")
    discard(output)
    return None


def newest_checkpoint(output: Path) -> Path | None:
    """The whole checkpoint with the most steps, or None."""
    found = [
        (int(match.group(1)), folder)
        for folder in output.iterdir()
        if (match := CHECKPOINT_PATTERN.fullmatch(folder.name)) and _is_whole(folder)
    ]
    return max(found)[1] if found else None


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint has all that a run goes on with; Trainer writes `trainer_state.json` last.

    Trainer itself would go on with a fresh optimizer where its state is missing, without a word.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_bytes())
    except (OSError, ValueError):
        return False
    return all(any(checkpoint.glob(f"{name}*")) for name in ("model", "optimizer", "scheduler", "rng_state"))


def _check_same_run(output: Path, this: dict) -> None:
    earlier = read_json(output / RUN_FILE)["identity"]
    differences = [
        f"  {name}: {earlier.get(name)} there, {this.get(name)} now"
        for name in sorted(earlier.keys() | this.keys())
        if earlier.get(name) != this.get(name)
    ]
    if differences:
        raise InputError(
            f"--output_dir {output} holds a run that differs in\n" + "\n".join(differences) + "\n"
            "Choose another --output_dir, or discard that run with --overwrite"
        )


def discard(output: Path) -> None:
    """Deletes what a run leaves in its output folder, and nothing else."""
    if not output.is_dir():
        return
    for entry in output.iterdir():
        if entry.name in (BEST_FOLDER, FINAL_FOLDER, REPORT_FOLDER) or CHECKPOINT_PATTERN.fullmatch(entry.name):
            shutil.rmtree(entry)
    (output / RUN_FILE).unlink(missing_ok=True)


def write_record(
    output: Path, this: dict, command: str, durations: dict[str, float], device: torch.device, num_threads: int
) -> dict:
    """Writes `run.json` and returns it: identity, command, versions, git commit, hardware, durations in seconds."""
    output.mkdir(parents=True, exist_ok=True)
    record = {
        "command": command,
        "identity": this,
        "base_model": _hub_id(this["started_from"]),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "git_commit": _git_commit(),
        "hardware": hardware(device, this["world_size"], num_threads),
        "durations": durations,
    }
    write_json(output / RUN_FILE, record)
    return record


def _hub_id(name: str | None) -> str | None:
    """A checkpoint's id on the Hub; None for a folder, which nobody else could find, and for no checkpoint."""
    return name if name and not Path(name).exists() else None


def keep_records(folder: Path, run: dict, stats: dict, history: list[dict]) -> None:
    """Puts run, data statistics and log history into a model's folder, where the model card finds them."""
    # JSON has no infinite numbers, as a norm of gradients may be in fp16.
    finite = [
        {name: value for name, value in log.items() if not isinstance(value, float) or math.isfinite(value)}
        for log in history
    ]
    for name, content in ((RUN_FILE, run), (STATS_FILE, stats), (HISTORY_FILE, finite)):
        write_json(folder / name, content)


def hardware(device: torch.device, num_processes: int, num_threads: int) -> dict[str, str | int]:
    """The device by name, and how many processes and CPU threads a process computed on it."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        name = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
        name = f"CPU {name} ({torch.backends.cpu.get_cpu_capability()})"
    else:
        name = str(device)
    return {"device": name, "num_processes": num_processes, "num_threads": num_threads}


def _git_commit() -> str | None:
    """The commit of this project's checkout; None where it isn't one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
