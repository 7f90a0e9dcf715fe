#!/usr/bin/env python
"""Arrow rows → best_model, final_model, metrics, plots and a report.

    accelerate launch --config_file accelerate_config.yaml train.py --config configs/digits.yaml \\
        --dataset_dir data/digits/prepared --output_dir outputs/digits
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path

from imagelm.commands.logs import log_to_terminal
from imagelm.commands.parser import short_help
from imagelm.training.arguments import BEST_METRIC
from imagelm.utils.errors import run_script

# Stand before the recipe and the command line, which win.
DEFAULTS = [
    *("--eval_strategy", "epoch", "--save_strategy", "epoch", "--save_total_limit", "2", "--logging_steps", "10"),
    *("--metric_for_best_model", BEST_METRIC, "--hub_strategy", "end"),
]


def main() -> None:
    started = time.perf_counter()
    if len(sys.argv) == 1 or {"-h", "--help"} & set(sys.argv):
        print(short_help(__doc__))
        return
    # Imported late, so that --help answers at once.
    from transformers import enable_full_determinism, set_seed

    from imagelm.accel.compile import accelerate_training, training_flops
    from imagelm.commands.train_parser import parse_launch
    from imagelm.data.load import augmented, check_disjoint, load_codec_of, load_prepared, load_stats
    from imagelm.evaluation.baselines import baseline_accuracies
    from imagelm.evaluation.leakage import prove_no_leak
    from imagelm.evaluation.report import summary, write_report
    from imagelm.hub.callback import PushWhileTraining, check_hub, publish_run, requested_push
    from imagelm.models.build import build_model, name_classes
    from imagelm.models.processor import make_processor
    from imagelm.tokens.tokenizer import grammar_of, load_tokenizer
    from imagelm.training.callbacks import KeepBest
    from imagelm.training.checkpoint import PartialResume
    from imagelm.training.evaluate import evaluate_folder, leak_proof_rows
    from imagelm.training.model_folder import read_selection, save_folder, write_records
    from imagelm.training.resume import identity, plan_resume_together
    from imagelm.training.run_record import RunRecord
    from imagelm.training.stopping import StopOnSignal
    from imagelm.training.trainer import ImageTrainer
    from imagelm.utils.artifacts import BEST_FOLDER, FINAL_FOLDER, REPORT_FOLDER, RESULTS_FILE, TOKENIZER_FOLDER
    from imagelm.utils.atomic_io import write_json

    log_to_terminal()
    launch = parse_launch(sys.argv[1:], DEFAULTS)
    args, is_main = launch.args, launch.args.process_index == 0
    push, output = requested_push(args), Path(args.output_dir)

    def say(text: str) -> None:
        if is_main:
            print(text, flush=True)

    # Data
    data_folder = Path(launch.data.dataset_dir)
    dataset, stats = load_prepared(data_folder), load_stats(data_folder)
    tokenizer = load_tokenizer(data_folder / TOKENIZER_FOLDER)
    grammar = grammar_of(tokenizer)
    check_disjoint(dataset)
    codec = load_codec_of(data_folder)
    data_seed = args.seed if args.data_seed is None else args.data_seed
    train = augmented(dataset["train"], codec, grammar, launch.run.augment, data_seed)
    processor = make_processor(tokenizer, codec, stats["class_names"]) if codec else None
    say(f"data: {len(dataset['train'])} training and {len(dataset['test'])} test rows, no image in both")

    # Model
    (enable_full_determinism if args.full_determinism else set_seed)(args.seed)
    max_length = stats["max_length"]
    model = build_model(launch.model, tokenizer, max_length, launch.attention())
    name_classes(model, stats["class_names"])
    rows = leak_proof_rows(dataset["test"])
    prove_no_leak(model, grammar, rows, args.seed)
    say(f"model: {model.config.model_type}, {model.num_parameters():,} parameters, {max_length} positions")
    lengths, batch = stats["lengths"], (args.per_device_train_batch_size, max_length)
    flops = training_flops(model, launch.num_training_tokens(len(dataset["train"]), lengths["mean"]))
    batch = batch if lengths["min"] == lengths["max"] else None
    choice = "off" if args.torch_compile else launch.run.compile  # which compiles the whole model
    form = accelerate_training(model, args.device, choice, flops, batch)

    # Output folder: a new run, or one to go on with
    this = identity(stats, grammar.vocabulary, model.config, args, launch.run, launch.model)
    plan = plan_resume_together(args, this, launch.data.overwrite, launch.data.allow_partial_resume)
    if plan.finished:
        say(f"this run stands complete in {output}; see {output / REPORT_FOLDER}, or start it anew with --overwrite")
        if push and is_main:
            publish_run(push, output / BEST_FOLDER)
        return
    checkpoint = plan.checkpoint
    say("\n".join([*plan.notes, f"resuming from {checkpoint}" if checkpoint else f"a new run in {output}"]))
    launch.computing = {"mixed_precision": args.mixed_precision, **asdict(form)}
    record = RunRecord(output, this, launch, stats, is_main, started, plan.is_new)

    # Hub: whether a push could succeed is known before hours of training
    if push and is_main:
        say(check_hub(push))

    # Baselines
    baselines = baseline_accuracies(dataset["train"], dataset["test"], grammar) if is_main else {}
    say(
        f"baselines on the test rows: majority class {baselines.get('majority_accuracy', 0):.4f}, "
        f"bag of tokens {baselines.get('bag_of_tokens_accuracy', 0):.4f}"
    )

    # Training
    trainer = ImageTrainer(model, args, launch.run, tokenizer, train, dataset["test"], processor, this)
    keep_best = KeepBest(trainer, output / BEST_FOLDER, launch.run.early_stopping_patience)
    record.spikes = trainer.finite_steps.spikes.found
    for callback in (keep_best, record, PartialResume(checkpoint, plan.missing)):
        trainer.add_callback(callback)
    if push and push.each_save:
        trainer.add_callback(PushWhileTraining(trainer, push))
    threads = f"{launch.num_threads} thread{'s' if launch.num_threads > 1 else ''}"
    say("\n".join([*launch.notes, f"computing in {trainer.dtype_name} with {threads}, {form.note()}"]))
    with record, StopOnSignal(trainer) as stop:
        trainer.add_callback(stop)
        trainer.train(resume_from_checkpoint=checkpoint)
        stop.raise_if_stopped()
    final = {"step": trainer.state.global_step}
    save_folder(trainer, output / FINAL_FOLDER, final)
    if keep_best.best is None:
        save_folder(trainer, output / BEST_FOLDER, final)

    # Evaluation of what was saved
    results = {}
    for name in (BEST_FOLDER, FINAL_FOLDER):
        folder = output / name
        results[name] = evaluate_folder(folder, args, launch.run, tokenizer, dataset["test"])
        results[name] |= {"step": read_selection(folder)["step"], "class_names": stats["class_names"], **baselines}
        if is_main:
            write_json(folder / RESULTS_FILE, results[name])

    # Report
    if is_main:
        run = record.update(ended="finished")
        best, last = results[BEST_FOLDER], results[FINAL_FOLDER]
        write_report(output / REPORT_FOLDER, best, last, trainer.state.log_history, run, stats)
        for name in results:
            write_records(output / name, run, stats, trainer.state.log_history)
        print(f"\n{summary(best, run, output / REPORT_FOLDER)}")
        if push:
            publish_run(push, output / BEST_FOLDER)


if __name__ == "__main__":
    run_script(main)
