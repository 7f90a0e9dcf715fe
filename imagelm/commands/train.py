"""Trains a model on prepared rows and writes best_model, final_model, figures, plots and a report.

    accelerate launch -m imagelm.commands.train --config recipes/digits/config.yaml \\
        --dataset_dir data/digits/prepared --output_dir outputs/digits
    imagelm train --dataset_dir data/mine --output_dir outputs/mine --num_train_epochs 10

The same command resumes an interrupted run. All options of transformers' TrainingArguments are accepted.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagelm.commands.logs import log_to_terminal, logger
from imagelm.commands.parser import Command, fill
from imagelm.models.arguments import ModelArguments
from imagelm.training.arguments import CommonTrainingArguments, DataArguments, HelpArguments, RunArguments
from imagelm.utils.artifacts import BEST_FOLDER, FINAL_FOLDER, REPORT_FOLDER, RESULTS_FILE, TRACKING_FOLDER
from imagelm.utils.errors import InputError, run_script
from imagelm.utils.imports import imports_kept
from imagelm.utils.quiet import quiet_transformers
from imagelm.utils.text import number_of, reason

if TYPE_CHECKING:  # everything heavy is imported where it is used, so that --help answers at once
    import numpy as np
    from transformers import PreTrainedModel

    from imagelm.accel.compile import ComputePlan
    from imagelm.hub.arguments import PushArguments
    from imagelm.training.inputs import TrainingInputs
    from imagelm.training.launch import Launch
    from imagelm.training.resume import ResumePlan
    from imagelm.training.run_record import RunRecord
    from imagelm.training.trainer import ImageTrainer

GROUPS = (DataArguments, ModelArguments, RunArguments, CommonTrainingArguments, HelpArguments)
COMMAND = Command("train", __doc__, GROUPS)


def main() -> None:
    started = time.perf_counter()
    with imports_kept():
        launch = parse_launch(sys.argv[1:] or ["--help"])
        import imagelm.training.rehearsal  # noqa: F401, which imports what else training needs
    log_to_terminal()
    run(launch, started)


@quiet_transformers()
def run(launch: Launch, started: float | None = None) -> dict[str, Any]:
    """Trains, or resumes; returns the figures of best_model. `started`: the program's, by `time.perf_counter`."""
    from imagelm.training.peers import lost_peers_named
    from imagelm.training.tracking import tracking

    with tracking(launch), lost_peers_named(launch):
        return train_and_report(launch, time.perf_counter() if started is None else started)


def train_and_report(launch: Launch, started: float) -> dict[str, Any]:
    """The story of a run; returns the figures of best_model."""
    from imagelm.commands.train_results import baselines, evaluate, report
    from imagelm.training.identity import run_identity
    from imagelm.training.inputs import load_inputs
    from imagelm.training.rehearsal import choose_computing, rehearse
    from imagelm.training.resume import plan_resume_together
    from imagelm.training.run_record import RunRecord
    from imagelm.training.streaming import StreamedRows

    is_main = launch.args.process_index == 0
    if launch.chosen:
        values = ", ".join(f"--{name} {value:g}" for name, value in launch.chosen.items())
        logger.info("chosen by the data's size, as they weren't given: %s", values)
    push = asked_push(launch)
    data = load_inputs(launch)
    model = make_model(launch, data)
    rehearse(launch, data, model)  # what can't be built is refused before the output folder is touched

    # A new run, or one to resume
    order = data.train.order if isinstance(data.train, StreamedRows) else None
    identity = run_identity(launch, data.stats, data.grammar.vocabulary, model.config, order)
    with plan_resume_together(launch, identity) as resume:
        if resume.finished:
            return finished_results(launch, push)
        plan = choose_computing(launch, data, model, resume.checkpoint)
        start = f"resuming from {resume.checkpoint}" if resume.checkpoint else f"starting a new run in {launch.output}"
        logger.info("%s", "\n".join([*resume.notes, start]))
        record = RunRecord(launch, identity, data.stats, started, is_new=resume.checkpoint is None)
        check_push(launch, push)

        history = train(launch, data, model, plan, record, resume, push)
        results = evaluate(launch, data, baselines(data) if is_main else {}, record)
        if is_main:
            report(launch, data, history, record, results)
        publish(launch, push)
        return results[BEST_FOLDER]


def parse_launch(words: list[str], command: str | None = None) -> Launch:
    """Reads the command line and fits it to this machine.

    Args:
        words: The command line without the program's name.
        command: The call to record if the words aren't this program's own command line.

    Raises:
        InputError: An option is unknown or missing, has a wrong value, or doesn't fit the way of the launch.
    """
    if {"-h", "--help"} & set(words):
        COMMAND.parse(words)  # without importing transformers
    from imagelm.training.defaults import choose_by_size
    from imagelm.training.launch import OneDeviceArguments, choose_precision, connect_cpu_processes, resolve_launch
    from imagelm.training.shard_files import fetch_small_parts
    from imagelm.utils.device import resolve_mixed_precision

    values = COMMAND.parse(words, library=OneDeviceArguments)
    parts = None if values["streaming"] is None else fetch_small_parts(values["dataset_dir"])
    # Before the arguments are built, which settles them.
    precision = resolve_mixed_precision(use_cpu=values["use_cpu"])
    connect_cpu_processes(values)
    choose_precision(values)
    chosen = choose_by_size(values, parts or Path(values["dataset_dir"]))
    data, model, run = (fill(group, values) for group in (DataArguments, ModelArguments, RunArguments))
    try:
        args = fill(OneDeviceArguments, values)
    except Exception as error:  # each option is checked in its own way
        raise InputError(f"training arguments: {reason(error)}") from error
    launch = resolve_launch(data, model, run, args, command, [precision] if precision else [])
    launch.chosen, launch.local_parts = chosen, parts
    return launch


def make_model(launch: Launch, data: TrainingInputs) -> PreTrainedModel:
    """Builds or loads the model, and proves that it can't see the class."""
    from transformers import enable_full_determinism, set_seed

    from imagelm.evaluation.leakage import leak_proof_rows, prove_no_leak
    from imagelm.models.build import build_model, name_classes
    from imagelm.models.transfer import plan_transfer
    from imagelm.training.rehearsal import options_blamed

    args, stats = launch.args, data.stats
    (enable_full_determinism if args.full_determinism else set_seed)(args.seed)
    codec, base = data.processor.codec if data.processor else None, launch.model.model_name_or_path
    launch.transfer = plan_transfer(base, data.tokenizer, stats["class_names"], codec) if base else None
    model = build_model(launch.model, data.tokenizer, stats["max_length"], launch.attention(), launch.transfer)
    name_classes(model, stats["class_names"])
    with options_blamed(launch):
        prove_no_leak(model, data.grammar, leak_proof_rows(data.dataset[data.eval_split]), args.seed)
    size = f"{model.num_parameters():,}"
    if launch.transfer and (note := launch.transfer.note()):
        logger.info("fine-tuning: %s", note)
    logger.info("model: %s, %s parameters, %d positions", model.config.model_type, size, stats["max_length"])
    return model


def train(
    launch: Launch,
    data: TrainingInputs,
    model: PreTrainedModel,
    plan: ComputePlan,
    record: RunRecord,
    resume: ResumePlan,
    push: PushArguments | None,
) -> list[dict[str, float]]:
    """Trains, and saves final_model, and best_model whenever the model improves; returns Trainer's log history."""
    from imagelm.training.callbacks import KeepBest
    from imagelm.training.checkpoint import PartialResume
    from imagelm.training.rehearsal import estimate_text
    from imagelm.training.signals import StopOnSignal

    output, trainer = launch.output, make_trainer(launch, data, model, record)
    patience = launch.run.early_stopping_patience
    keep_best = KeepBest(trainer, trainer.save_folder, output / BEST_FOLDER, patience, data.eval_split)
    for callback in (keep_best, record, PartialResume(resume.checkpoint, resume.missing)):
        trainer.add_callback(callback)
    if push and launch.args.hub_strategy == "every_save":
        from imagelm.hub.callback import PushWhileTraining

        trainer.add_callback(PushWhileTraining(trainer, push))
    threads = number_of(launch.num_threads, "thread")
    precision = trainer.accelerator.mixed_precision
    dtype = "fp32" if precision == "no" else precision
    logger.info("%s", "\n".join([*launch.notes, f"computing in {dtype} with {threads}, {plan.note()}"]))
    logger.info("%s", estimate_text(launch, data, resume.checkpoint))
    with record, StopOnSignal(trainer) as stop:
        trainer.add_callback(stop)
        trainer.train(resume_from_checkpoint=resume.checkpoint)
        stop.raise_if_stopped()
    record.done(trainer.state, keep_best.stopped)
    final = {"step": trainer.state.global_step}
    trainer.save_folder(output / FINAL_FOLDER, final)
    if keep_best.best is None:
        trainer.save_folder(output / BEST_FOLDER, final)
    return trainer.state.log_history


def make_trainer(launch: Launch, data: TrainingInputs, model: PreTrainedModel, record: RunRecord) -> ImageTrainer:
    """The trainer, with what it saves beside the model; trackers get their folder."""
    from imagelm.data.training_images import training_images
    from imagelm.training.trainer import ImageTrainer

    rows, identity = data.dataset[data.eval_split], record.content["identity"]
    own = (data.processor, identity, data.eval_split)
    trainer = ImageTrainer(model, launch.args, launch.run, data.tokenizer, data.train, rows, *own)
    trainer.graph_batch = data.full_batch(launch.args) if launch.run.cuda_graph else None
    if launch.args.process_index == 0:
        base = seen_by_base(launch, data, record)
        streamed = launch.data.streaming is not None  # and never read as a whole
        trainer.training_images = None if streamed else training_images(data.dataset["train"], base)
        if launch.args.report_to:
            (launch.output / TRACKING_FOLDER).mkdir(exist_ok=True)  # Weights & Biases asks for a folder that exists
    record.spikes = trainer.finite_steps.spikes.found
    return trainer


def seen_by_base(launch: Launch, data: TrainingInputs, record: RunRecord) -> np.ndarray | None:
    """Digests of the images that the fine-tuned checkpoint was trained on; notes how many test rows are among them."""
    from imagelm.data.training_images import load_training_images, num_seen

    if launch.transfer is None:
        return None
    digests = load_training_images(launch.transfer.name)
    record.content["base"]["test_rows_seen"] = count = num_seen(data.dataset["test"], digests)
    if count:
        warning = "%d test rows show images that %s was trained on: figures on them say nothing about new images"
        logger.warning(warning, count, launch.transfer.name)
    return digests


def asked_push(launch: Launch) -> PushArguments | None:
    """What `--push_to_hub` asks for; what pushes takes half a second to load, so nothing is loaded without it."""
    if not launch.args.push_to_hub:
        return None
    from imagelm.hub.callback import requested_push

    return requested_push(launch.args)


def check_push(launch: Launch, push: PushArguments | None) -> None:
    """Whether a push can succeed is known before hours of training."""
    if push and launch.args.process_index == 0:
        from imagelm.hub.callback import check_hub

        logger.info("%s", check_hub(push, launch.args))


def publish(launch: Launch, push: PushArguments | None) -> None:
    """Pushes a finished run, if that was asked for."""
    if push and launch.args.process_index == 0:
        from imagelm.hub.callback import publish_run

        publish_run(push)


def finished_results(launch: Launch, push: PushArguments | None) -> dict[str, Any]:
    """The figures of best_model of a run that is complete already."""
    from imagelm.utils.atomic_io import read_json

    where = f"{launch.output} is already complete; see {launch.output / REPORT_FOLDER}"
    logger.info("the run in %s. To train again, add --overwrite", where)
    publish(launch, push)
    return read_json(launch.output / BEST_FOLDER / RESULTS_FILE)


if __name__ == "__main__":
    run_script(main)
