"""What an output folder holds, and whether a run may resume from it.

One idea: `run.json` and every checkpoint record what determines the weights (data, vocabulary, model, loss, schedule,
seed). A run resumes only if its own record is the same; otherwise it is refused with the differences.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments

from imagelm.training.checkpoint import CHECKPOINT_PATTERN, checkpoint_identity, checkpoints, copy_intact_files
from imagelm.training.identity import check_same, is_longer
from imagelm.training.launch import Launch
from imagelm.training.manifest import CheckpointReport, inspect_checkpoint
from imagelm.training.run_record import read_record
from imagelm.utils.artifacts import (
    BEST_FOLDER,
    DIVERGED_FILE,
    FINAL_FOLDER,
    HISTORY_FILE,
    MANIFEST_FILE,
    REPORT_FOLDER,
    RESULTS_FILE,
    RUN_FILE,
    SELECTION_FILE,
    STATS_FILE,
)
from imagelm.utils.errors import InputError, StorageError, describe
from imagelm.utils.folder_lock import locked
from imagelm.utils.manifest import damage
from imagelm.utils.output_folder import remove_folder, remove_leftovers

OUR_FOLDERS = (BEST_FOLDER, FINAL_FOLDER, REPORT_FOLDER)
# What a run leaves in these folders, for those without a valid manifest: versions before 0.2 wrote none.
KNOWN_FILES = re.compile(
    r"(model(-\d+-of-\d+)?\.safetensors|pytorch_model.*\.bin|(optimizer|scheduler|rng_state|scaler).*\.(pt|pth|bin)"
    r"|(model\.safetensors\.index|config|generation_config|tokenizer|tokenizer_config|special_tokens_map|vocab"
    r"|trainer_state|training_args|data_state|selection|eval_results|run|stats|log_history|processor_config"
    r"|preprocessor_config|codec|codec_config|decision)\.json|decision_template\.jinja"
    r"|(codec|training_images)\.safetensors|\w+_imagelm\.py|merges\.txt"
    r"|training_report\.md|(loss|perplexity|accuracy|learning_rate|confusion_matrix)\.png)"
)
OURS = re.compile("|".join([*OUR_FOLDERS, RUN_FILE, DIVERGED_FILE, CHECKPOINT_PATTERN.pattern]))


@dataclass
class ResumePlan:
    """What happens in the output folder.

    Attributes:
        checkpoint: What Trainer resumes from; None starts at step 0: nothing of an earlier launch remains.
        missing: Parts that the checkpoint lacks.
        finished: Whether this very run is complete.
        notes: What was skipped or replaced, and why, a line each.
    """

    checkpoint: str | None = None
    missing: list[str] = field(default_factory=list)
    finished: bool = False
    notes: list[str] = field(default_factory=list)


def plan_resume(
    args: TrainingArguments,
    identity: dict,
    overwrite: bool,
    allow_partial: bool = False,
    extend: bool = False,
    processes: bool = False,
) -> ResumePlan:
    """Decides what happens to the contents of the output folder; call it on the main process only.

    `overwrite` deletes an earlier run; `allow_partial` resumes from a checkpoint that lacks a part of its state;
    `extend` continues a run that was shorter on the schedule of the new length, `processes` one of other processes.

    Raises:
        InputError: The folder holds other files, another run, or no checkpoint that can be resumed.
    """
    output, asked = Path(str(args.output_dir)), args.resume_from_checkpoint or ""
    restart, named = asked.lower() == "false", None if asked.lower() in ("", "true", "false") else Path(asked)
    if (output / SELECTION_FILE).exists() or (output / MANIFEST_FILE).exists():
        raise InputError(f"--output_dir {output} is the folder of a model or checkpoint; choose the folder of a run")
    if not (output / RUN_FILE).is_file():
        if output.is_file() or (output.is_dir() and any(output.iterdir())):
            raise InputError(f"--output_dir {output} holds files that no training run wrote; choose another folder")
        if named:
            raise InputError(f"--resume_from_checkpoint {named}: give its run's folder as --output_dir")
        return ResumePlan()
    remove_leftovers(output, OURS)
    (output / DIVERGED_FILE).unlink(missing_ok=True)
    if overwrite:
        delete_run(output)
        return ResumePlan()
    models = [output / name for name in (BEST_FOLDER, FINAL_FOLDER) if (output / name).is_dir()]
    if not checkpoints(output) and not models:
        delete_run(output)
        return ResumePlan(notes=[f"the earlier run in {output} saved nothing, and is replaced"])
    notes, longer = _check_same_run(output, identity, extend, processes)
    if named and named.resolve().parent != output.resolve():
        raise InputError(f"--resume_from_checkpoint {named} isn't a checkpoint in --output_dir {output}")
    if (output / FINAL_FOLDER).is_dir() and not (restart or named or longer):
        lacking = [reason for name in (BEST_FOLDER, FINAL_FOLDER) if (reason := _why_unfinished(output / name))]
        if not lacking and (output / REPORT_FOLDER).is_dir():
            return ResumePlan(finished=True, notes=notes)
        notes += lacking
    if not restart and (plan := _resume(output, identity, named, allow_partial, (extend, processes), notes)):
        return plan
    if (output / FINAL_FOLDER).is_dir() or checkpoints(output):
        why = "a new start was requested" if restart else "none of its checkpoints is complete"
        raise InputError(
            "\n".join([*notes, f"--output_dir {output} holds this run, but {why}; add --overwrite to delete it"])
        )
    delete_run(output)
    return ResumePlan(notes=notes)


@contextmanager
def plan_resume_together(launch: Launch, identity: dict) -> Iterator[ResumePlan]:
    """`plan_resume` on the main process, which locks the folder inside the context; every process must enter it.

    Raises:
        InputError: In every process.
        StorageError: The folder can't be created or read; in every process.
    """
    args, options = launch.args, launch.data
    decision: list[object] = [None, None]
    with ExitStack() as lock:
        if args.process_index == 0:
            try:
                lock.enter_context(lock_output(launch.output))
                changes = options.extend_run, options.change_processes
                plan = plan_resume(args, identity, options.overwrite, options.allow_partial_resume, *changes)
                decision = [plan, None]
            except InputError as error:
                decision = [None, InputError(str(error))]
            except OSError as error:
                decision = [None, StorageError(f"--output_dir {args.output_dir}: {describe(error)}")]
        plan, refusal = broadcast_object_list(decision)
        if refusal:  # in every process, so that none waits for another
            raise refusal if args.process_index == 0 else type(refusal)("see the main process")
        yield plan


@contextmanager
def lock_output(output: Path) -> Iterator[None]:
    """Creates the folder, and keeps a second run out of it inside the context.

    Raises:
        InputError: Another run writes into it.
    """
    output.mkdir(parents=True, exist_ok=True)
    with locked(output) as ours:
        if not ours:
            raise InputError(f"--output_dir {output}: another run is writing into it; wait for it, or stop it")
        yield


def delete_run(output: Path) -> None:
    """Deletes what a run leaves in its output folder, and nothing else."""
    for entry in output.iterdir():
        if entry.is_dir() and (entry.name in OUR_FOLDERS or CHECKPOINT_PATTERN.fullmatch(entry.name)):
            remove_folder(entry, KNOWN_FILES)
    for name in (DIVERGED_FILE, RUN_FILE):
        (output / name).unlink(missing_ok=True)


def _why_unfinished(folder: Path) -> str | None:
    """What a finished run's model folder lacks; a push needs all of its records."""
    missing = [name for name in (RESULTS_FILE, RUN_FILE, STATS_FILE, HISTORY_FILE) if not (folder / name).is_file()]
    reason = f"{', '.join(missing)} is missing" if missing else damage(folder)
    return f"{folder} is written again: {reason}" if reason else None


def _resume(
    output: Path, identity: dict, named: Path | None, allow_partial: bool, changes: tuple[bool, bool], notes: list[str]
) -> ResumePlan | None:
    """Resumes from the newest whole checkpoint, or from the named one; None if there is none to resume from.

    Raises:
        InputError: The named one isn't whole, none is, but one could be resumed with `allow_partial`, or it is of
            another run.
    """
    skipped: list[str] = []
    found: CheckpointReport | None = None  # the newest whole one, otherwise the newest that could be resumed
    for folder in [named] if named else reversed(checkpoints(output)):
        report = inspect_checkpoint(folder)
        if report.is_whole:
            found = report
            break
        skipped.append(f"skipped {folder}: {report.why}")
        if named and not report.is_usable:
            raise InputError(f"--resume_from_checkpoint {named} can't be resumed: {report.why}")
        found = found or (report if report.is_usable else None)
    notes += skipped
    if found is None:
        return None
    checkpoint, missing = found.folder, list(found.problems)
    if missing and not allow_partial:
        raise InputError(
            "\n".join(skipped) + f"\n{checkpoint} has weights and step, but lacks a part of its state. "
            "Resuming from it gives other weights than the uninterrupted run; add --allow_partial_resume to do so"
        )
    if missing:
        notes.append(f"{checkpoint} is resumed without its {', '.join(missing)}")
    if (recorded := checkpoint_identity(checkpoint)) is not None:
        check_same(f"{checkpoint} belongs to a run", recorded, identity, *changes)
    return ResumePlan(str(copy_intact_files(checkpoint, missing) if missing else checkpoint), missing, notes=notes)


def _check_same_run(output: Path, identity: dict, *changes: bool) -> tuple[list[str], bool]:
    """Refuses the folder of another run; returns notes for the log, and whether this run is a longer one."""
    earlier = read_record(output).get("identity")
    if isinstance(earlier, dict):
        note = check_same(f"--output_dir {output} holds a run", earlier, identity, *changes)
        return ([note] if note else []), is_longer(earlier, identity)
    # Each checkpoint has its own record, which is compared before it is resumed.
    if not checkpoints(output):
        raise InputError(
            f"{output / RUN_FILE} is damaged, and there is no checkpoint; add --overwrite to delete the run"
        )
    return [f"{output / RUN_FILE} is damaged and is written again"], False
