"""What an output folder holds, and whether a run may resume from it.

One idea: `run.json` and every checkpoint record what determines the weights (data, vocabulary, model, loss, schedule,
seed). A run resumes only if its own record is the same; otherwise it is refused with the differences.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from accelerate.utils import broadcast_object_list
from transformers import PretrainedConfig, TrainingArguments

from imagelm.models.arguments import ModelArguments
from imagelm.training.arguments import RunArguments
from imagelm.training.checkpoint import (
    CHECKPOINT_PATTERN,
    checkpoint_identity,
    checkpoints,
    choose_checkpoint,
    copy_intact_files,
)
from imagelm.training.run_record import read_record
from imagelm.utils.artifacts import BEST_FOLDER, DIVERGED_FILE, FINAL_FOLDER, REPORT_FOLDER, RESULTS_FILE, RUN_FILE
from imagelm.utils.atomic_io import remove_leftovers
from imagelm.utils.errors import InputError, StorageError, describe

OUR_FOLDERS = (BEST_FOLDER, FINAL_FOLDER, REPORT_FOLDER)
OURS = re.compile("|".join([*OUR_FOLDERS, RUN_FILE, DIVERGED_FILE, CHECKPOINT_PATTERN.pattern]))
# The fields of TrainingArguments that determine the weights; the others are about files, logs and intervals.
DECISIVE_ARGUMENTS = (
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "average_tokens_across_devices",
    "data_seed",
    "dataloader_drop_last",
    "full_determinism",
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


def run_identity(
    stats: dict,
    vocabulary: dict[str, int],
    config: PretrainedConfig,
    args: TrainingArguments,
    run: RunArguments,
    model: ModelArguments,
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
        "vocabulary": hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode()).hexdigest(),
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


@dataclass
class ResumePlan:
    """What happens in the output folder.

    Attributes:
        checkpoint: What Trainer resumes from; None starts at step 0.
        missing: Parts that the checkpoint lacks.
        finished: Whether this very run is complete.
        is_new: Whether nothing of an earlier launch remains.
        notes: What was skipped or replaced, and why, a line each.
    """

    checkpoint: str | None = None
    missing: list[str] = field(default_factory=list)
    finished: bool = False
    is_new: bool = False
    notes: list[str] = field(default_factory=list)


def plan_resume(args: TrainingArguments, identity: dict, overwrite: bool, allow_partial: bool = False) -> ResumePlan:
    """Decides what happens to the contents of the output folder; call it on the main process only.

    Args:
        args: With the output folder, and a checkpoint of it if the user named one.
        identity: `run_identity` of this run.
        overwrite: Whether to delete an earlier run.
        allow_partial: Whether a checkpoint may lack a part of its state.

    Raises:
        InputError: The folder holds other files, another run, or no checkpoint that can be resumed.
    """
    output, asked = Path(str(args.output_dir)), args.resume_from_checkpoint or ""
    restart, named = asked.lower() == "false", None if asked.lower() in ("", "true", "false") else Path(asked)
    if not (output / RUN_FILE).is_file():
        if output.is_file() or (output.is_dir() and any(output.iterdir())):
            raise InputError(f"--output_dir {output} holds files that no training run wrote; choose another folder")
        if named:
            raise InputError(f"--resume_from_checkpoint {named}: give its run's folder as --output_dir")
        return ResumePlan(is_new=True)
    remove_leftovers(output, OURS)
    (output / DIVERGED_FILE).unlink(missing_ok=True)
    if overwrite:
        delete_run(output)
        return ResumePlan(is_new=True)
    notes = _check_same_run(output, identity)
    if named and named.resolve().parent != output.resolve():
        raise InputError(f"--resume_from_checkpoint {named} isn't a checkpoint in --output_dir {output}")
    finished = (output / FINAL_FOLDER / RESULTS_FILE).is_file() and (output / REPORT_FOLDER).exists()
    if finished and not restart and not named:
        return ResumePlan(finished=True, notes=notes)
    if not restart and (plan := _resume(output, identity, named, allow_partial, notes)):
        return plan
    if finished or checkpoints(output):
        why = "a new start was requested" if restart else "none of its checkpoints is complete"
        raise InputError(
            "\n".join([*notes, f"--output_dir {output} holds this run, but {why}; add --overwrite to delete it"])
        )
    delete_run(output)
    return ResumePlan(is_new=True, notes=notes)


def plan_resume_together(args: TrainingArguments, identity: dict, overwrite: bool, allow_partial: bool) -> ResumePlan:
    """`plan_resume` on the main process, which locks the folder until it ends; every process must call it.

    Raises:
        InputError: In every process.
        StorageError: The folder can't be created or read; in every process.
    """
    decision: list[object] = [None, None]
    if args.process_index == 0:
        try:
            lock_output(Path(str(args.output_dir)))
            decision = [plan_resume(args, identity, overwrite, allow_partial), None]
        except InputError as error:
            decision = [None, InputError(str(error))]
        except OSError as error:
            decision = [None, StorageError(f"--output_dir {args.output_dir}: {describe(error)}")]
    plan, refusal = broadcast_object_list(decision)
    if refusal:  # in every process, so that none waits for another
        raise refusal if args.process_index == 0 else type(refusal)("see the main process")
    return plan


def lock_output(output: Path) -> None:
    """Creates the folder, and keeps a second run out of it as long as this process lives.

    Raises:
        InputError: Another run writes into it.
    """
    output.mkdir(parents=True, exist_ok=True)
    folder = os.open(output, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(folder)
        raise InputError(f"--output_dir {output}: another run is writing into it; wait for it, or stop it") from error
    except OSError:  # a file system without locks
        with suppress(OSError):
            os.close(folder)


def delete_run(output: Path) -> None:
    """Deletes what a run leaves in its output folder, and nothing else."""
    if not output.is_dir():
        return
    for entry in output.iterdir():
        if entry.name in OUR_FOLDERS or CHECKPOINT_PATTERN.fullmatch(entry.name):
            shutil.rmtree(entry)
    for name in (DIVERGED_FILE, RUN_FILE):
        (output / name).unlink(missing_ok=True)


def _resume(
    output: Path, identity: dict, named: Path | None, allow_partial: bool, notes: list[str]
) -> ResumePlan | None:
    """Where the run resumes; None if there is no checkpoint to resume from."""
    choice = choose_checkpoint(output, named, allow_partial)
    notes += choice.notes
    if choice.checkpoint is None:
        return None
    theirs = checkpoint_identity(choice.checkpoint)
    if theirs is not None:
        _check_same(f"{choice.checkpoint} belongs to a run", theirs, identity)
    source = copy_intact_files(choice.checkpoint, choice.missing) if choice.missing else choice.checkpoint
    return ResumePlan(str(source), choice.missing, notes=notes)


def _check_same_run(output: Path, identity: dict) -> list[str]:
    """Refuses the folder of another run; returns notes for the log."""
    earlier = read_record(output).get("identity")
    if isinstance(earlier, dict):
        _check_same(f"--output_dir {output} holds a run", earlier, identity)
        return []
    # Each checkpoint has its own record, which is compared before it is resumed.
    if not checkpoints(output):
        raise InputError(
            f"{output / RUN_FILE} is damaged, and there is no checkpoint; add --overwrite to delete the run"
        )
    return [f"{output / RUN_FILE} is damaged and is written again"]


def _check_same(what: str, earlier: dict, identity: dict) -> None:
    differences = [
        f"  {name}: {earlier.get(name)} there, {identity.get(name)} now"
        for name in sorted(earlier.keys() | identity.keys())
        if earlier.get(name) != identity.get(name)
    ]
    if differences:
        raise InputError(
            f"{what} with other settings:\n" + "\n".join(differences) + "\n"
            "Choose another --output_dir, or add --overwrite to delete that run"
        )
