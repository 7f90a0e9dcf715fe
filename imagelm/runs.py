"""What stands in an output folder, and whether a run may go on from it.

One idea: `run.json` says what determines the weights (data, model, loss, schedule, seed). A checkpoint is resumed only
by a run that says the same; everything else is refused with the difference.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import PretrainedConfig, TrainingArguments

from imagelm.arguments import ModelArguments, RunArguments
from imagelm.errors import InputError
from imagelm.files import read_json, write_json

RUN_FILE = "run.json"
BEST_FOLDER, FINAL_FOLDER, REPORT_FOLDER = "best_model", "final_model", "report"
CHECKPOINT_PATTERN = re.compile(r"checkpoint-(\d+)")
LIBRARIES = ("accelerate", "datasets", "evaluate", "huggingface_hub", "tokenizers", "torch", "transformers")
# The fields of TrainingArguments that determine the weights; the others say where, how often and how loudly.
DECISIVE_ARGUMENTS = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "data_seed",
    "fp16",
    "gradient_accumulation_steps",
    "label_smoothing_factor",
    "learning_rate",
    "lr_scheduler_kwargs",
    "lr_scheduler_type",
    "max_grad_norm",
    "max_steps",
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
        "started_from": model.model_name_or_path,
        "cls_loss_weight": run.cls_loss_weight,
        "optimizer": run.optimizer,
        "muon_learning_rate": run.muon_learning_rate if run.optimizer == "muon" else None,
        **{f"model.{name}": value for name, value in architecture.items()},
        **{name: arguments[name] for name in DECISIVE_ARGUMENTS},
    }
    return json.loads(json.dumps(decisive, default=str))


def settle_output(args: TrainingArguments, this: dict, overwrite: bool) -> str | None:
    """Decides what happens to what stands in the output folder; call it on the main process alone.

    Args:
        args: With the output folder, and a checkpoint if the user named one.
        this: `identity` of this run.
        overwrite: Discard an earlier run.

    Returns:
        The checkpoint to resume from, or None to begin at step 0.

    Raises:
        InputError: The folder holds another run, or a finished one that can't be gone on with.
    """
    output = Path(args.output_dir)
    if args.resume_from_checkpoint and args.resume_from_checkpoint.lower() not in ("true", "false"):
        if not (Path(args.resume_from_checkpoint) / "trainer_state.json").is_file():
            raise InputError(f"--resume_from_checkpoint {args.resume_from_checkpoint} is no whole checkpoint")
        return args.resume_from_checkpoint
    if overwrite:
        discard(output)
        return None
    if not (output / RUN_FILE).is_file():
        if output.is_file() or (output.is_dir() and any(output.iterdir())):
            raise InputError(f"--output_dir {output} holds files that aren't of a run; choose a new folder")
        return None
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
    checkpoint = newest_checkpoint(output)
    if checkpoint is None or (args.resume_from_checkpoint or "").lower() == "false":
        if (output / FINAL_FOLDER).exists():
            raise InputError(f"--output_dir {output} holds a finished run; discard it with --overwrite")
        discard(output)
        return None
    return str(checkpoint)


def newest_checkpoint(output: Path) -> Path | None:
    """The checkpoint with the most steps that was written to its end (`trainer_state.json` is written last)."""
    found = [
        (int(match.group(1)), folder)
        for folder in output.iterdir()
        if (match := CHECKPOINT_PATTERN.fullmatch(folder.name)) and (folder / "trainer_state.json").is_file()
    ]
    return max(found)[1] if found else None


def discard(output: Path) -> None:
    """Deletes what a run leaves in its output folder, and nothing else."""
    if not output.is_dir():
        return
    for entry in output.iterdir():
        if entry.name in (BEST_FOLDER, FINAL_FOLDER, REPORT_FOLDER) or CHECKPOINT_PATTERN.fullmatch(entry.name):
            shutil.rmtree(entry)
    (output / RUN_FILE).unlink(missing_ok=True)


def write_record(output: Path, this: dict, command: str, durations: dict[str, float], num_threads: int) -> dict:
    """Writes `run.json` and returns it: identity, command, versions, git commit, hardware, durations in seconds."""
    output.mkdir(parents=True, exist_ok=True)
    record = {
        "command": command,
        "identity": this,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        "git_commit": _git_commit(),
        "hardware": hardware(this["world_size"], num_threads),
        "durations": durations,
    }
    write_json(output / RUN_FILE, record)
    return record


def hardware(num_processes: int, num_threads: int) -> dict[str, str | int]:
    """The device by name, and how many processes and CPU threads a process computed on it."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        name = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
        device = f"CPU {name} ({torch.backends.cpu.get_cpu_capability()})"
    return {"device": device, "num_processes": num_processes, "num_threads": num_threads}


def _git_commit() -> str | None:
    """The commit of this project's checkout; None where it isn't one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
