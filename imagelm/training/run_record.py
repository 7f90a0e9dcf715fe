"""`run.json`: everything that is needed to repeat a run.

One idea: a run may take several launches; each adds an entry, and durations are sums over the launches. The file is
updated at every checkpoint, so that a killed run loses no more of its record than of its training.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import time
from contextlib import nullcontext, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState

from imagelm.data.rows import SPLITS
from imagelm.training.launch import Launch
from imagelm.utils.artifacts import HISTORY_FILE, RUN_FILE, STATS_FILE
from imagelm.utils.atomic_io import raise_storage_error, read_json, write_json
from imagelm.utils.manifest import add_json

LIBRARIES = (
    *("accelerate", "datasets", "evaluate", "huggingface_hub", "numpy", "safetensors", "tokenizers", "torch"),
    "transformers",
)
MAIN_FIGURES = ("samples", "loss", "perplexity", "next_token_accuracy", "cls_accuracy")


class RunRecord(TrainerCallback):
    """Writes `run.json`; only the main process does.

    Args:
        identity: What determines the weights.
        stats: `stats.json` of the data.
        started: `time.perf_counter()` when this launch began.
        is_new: Whether the run has no earlier launch.

    Attributes:
        content: What `run.json` holds: identity, base model on the Hub, what was taken over from a base model, command,
            config, values chosen by the data's size, seeds, data, versions, git commit, hardware, estimate, launches,
            durations in seconds, loss spikes; once the training is done, how long it was, why best_model was chosen,
            and its main figures on each split that was evaluated.
        spikes: The loss spikes of this launch; `FiniteSteps` fills the list.
    """

    def __init__(self, launch: Launch, identity: dict, stats: dict, started: float, is_new: bool) -> None:
        args = launch.args
        self.file, self.is_main = launch.output / RUN_FILE, args.process_index == 0
        self.started = self.training_started = started
        self.step: int | None = None
        self.spikes: list[dict] = []
        earlier = {} if is_new else read_record(launch.output)
        self.entry = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": launch.command,
            **{"from_step": 0, "to_step": 0, "train_seconds": 0.0, "seconds": 0.0},
            "ended": None,  # and stays None if the process is killed
        }
        self.content: dict[str, Any] = {
            "command": launch.command,
            "identity": identity,
            "base_model": _hub_id(identity["started_from"]),
            "base": launch.transfer and launch.transfer.record(),
            "config": {
                **args.to_dict(),  # tokens are masked by to_dict
                **{"imagelm": asdict(launch.run), "model": asdict(launch.model), "data": asdict(launch.data)},
            },
            "chosen_by_size": launch.chosen,
            "seeds": {
                "split": stats["options"]["seed"],
                "model": args.seed,
                "data_order": args.seed if args.data_seed is None else args.data_seed,
            },
            "data": {
                "dataset_dir": launch.data.dataset_dir,
                **{name: stats[name] for name in ("fingerprint", "num_rows", "command")},
            },
            "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
            **_git(),
            "hardware": hardware(args.device, identity["world_size"], launch.num_threads),
            "computing": launch.computing,
            "estimate": launch.estimate,
            "launches": [*earlier_launches(earlier), self.entry],
        }
        self.earlier_spikes = earlier.get("loss_spikes", [])
        self.write()

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        ended = None if error is None else f"{type(error).__name__}: {error}"
        # A failure to write the record must not hide the error that ended the training.
        with nullcontext() if error is None else suppress(OSError):
            self.update(self.step, ended)

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.training_started = time.perf_counter()
        self.entry["from_step"] = self.step = state.global_step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.step = state.global_step

    def on_save(self, args, state, control, **kwargs) -> None:
        saved = f"checkpoint-{state.global_step} is saved; run the same command again to continue from it"
        with raise_storage_error(self.file, saved):
            self.update(state.global_step)

    def done(self, state: TrainerState, stopped: str | None) -> None:
        """Notes how many of the planned steps and epochs were done; `stopped` tells what ended the training early."""
        steps, planned = state.global_step, state.max_steps
        epochs = float(state.epoch or 0)
        self.content["trained"] = {
            **{"steps": steps, "planned_steps": planned, "epochs": epochs, "planned_epochs": epochs * planned / steps},
            "stopped": stopped if steps < planned else None,
        }

    def measured(self, results: dict[str, Any], selection: dict[str, Any]) -> None:
        """Notes the main figures of best_model's `eval_results.json`, and the content of its `selection.json`."""
        evaluated = [results, *(results[split] for split in SPLITS if split in results)]
        self.content["selection"] = selection
        self.content["results"] = {
            found["split"]: {name: found[f"eval_{name}"] for name in MAIN_FIGURES} for found in evaluated
        }

    def update(self, step: int | None = None, ended: str | None = None) -> dict:
        """Updates step, times and end (None while it runs) of this launch, writes the file and returns the record."""
        now = time.perf_counter()
        self.entry["seconds"] = now - self.started
        if step is not None:
            self.entry["to_step"] = step
            self.entry["train_seconds"] = now - self.training_started
        self.entry["ended"] = ended
        self.write()
        return self.content

    def write(self) -> None:
        """Writes the file with the times of all launches."""
        launches = self.content["launches"]
        self.content["loss_spikes"] = [*self.earlier_spikes, *self.spikes]
        self.content["durations"] = {
            "train": sum(launch["train_seconds"] for launch in launches),
            "total": sum(launch["seconds"] for launch in launches),
        }
        if self.is_main:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.file, json.loads(json.dumps(self.content, default=str)))


def read_record(output: Path) -> dict:
    """The record in an output folder; empty if it can't be read."""
    with suppress(OSError, ValueError):
        record = read_json(output / RUN_FILE)
        return record if isinstance(record, dict) else {}
    return {}


def write_records(folder: Path, run: dict, stats: dict, history: list[dict]) -> None:
    """Writes run, data statistics and log history into a model's folder, where the model card finds them."""
    # JSON has no infinite numbers, but a gradient norm in fp16 may be infinite.
    finite = [
        {name: value for name, value in log.items() if not isinstance(value, float) or math.isfinite(value)}
        for log in history
    ]
    add_json(folder, {RUN_FILE: run, STATS_FILE: stats, HISTORY_FILE: finite})


def earlier_launches(record: dict) -> list[dict]:
    """The launches in a record; versions before 0.2 called them legs."""
    return record.get("launches", record.get("legs", []))


def hardware(device: torch.device, num_processes: int, num_threads: int) -> dict[str, str | int | None]:
    """The device by name, and how many processes and CPU threads a process computed on it."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        name = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
        name = f"CPU {name} ({torch.backends.cpu.get_cpu_capability()})"
    else:
        name = str(device)
    return {
        "device": name,
        "num_processes": num_processes,
        "num_threads": num_threads,
        "num_cpus": os.cpu_count(),
        "platform": platform.platform(),
    }


def _hub_id(name: str | None) -> str | None:
    """A checkpoint's id on the Hub; None for a local folder, which nobody else has, and for no checkpoint."""
    return name if name and not Path(name).exists() else None


def _git() -> dict[str, str | bool | None]:
    """The commit of this project's checkout, and whether files differ from it; None outside a checkout."""

    def ask(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"git_commit": ask("rev-parse", "HEAD"), "git_changed": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"git_commit": None, "git_changed": None}
