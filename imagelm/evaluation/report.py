"""Plots and the training report.

One idea: a report shows n, an interval, the baselines and the command with every figure, and takes all of them from the
evaluation of the saved model.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from imagelm.data.stats import dropped_rows, rows_in_words
from imagelm.evaluation.interval import baseline_warning, fitted_in_words
from imagelm.tokens.vocabulary import CLS
from imagelm.utils.atomic_io import write_text
from imagelm.utils.fonts import drawable_names, font_files
from imagelm.utils.output_folder import atomic_folder
from imagelm.utils.text import display_names, join_first, number_of, printable, processes, table_cell

logger = logging.getLogger(__name__)

REPORT_FILE = "training_report.md"
CONFUSION_FILE = "confusion_matrix.png"
PLOTS = {
    "loss.png": "Loss",
    "perplexity.png": "Perplexity",
    "accuracy.png": "Accuracy",
    "learning_rate.png": "Learning rate",
    CONFUSION_FILE: "Confusion matrix",
}
TRAIN_COLOR, TEST_COLOR, SLOT_COLOR, BASELINE_COLOR = "#4c72b0", "#c44e52", "#2a8c55", "#777777"
MAX_ANNOTATED_CLASSES, PLOT_NAME_WIDTH = 20, 24


def write_report(folder: Path, results: dict, final: dict, history: list[dict], run: dict, stats: dict) -> None:
    """Writes `training_report.md` and the plots into a folder, which is complete or absent.

    Takes `eval_results.json` of the best and the final model, Trainer's log history, `run.json`, and the dataset's
    `stats.json`.
    """
    with atomic_folder(folder) as staging:
        write_plots(staging, results, history)
        write_text(staging / REPORT_FILE, printable(_report(results, final, run, stats), keep="\n"))


def write_plots(folder: Path, results: dict, history: list[dict]) -> dict[str, str]:
    """Draws all plots of `eval_results.json` and Trainer's log history; gives figure → file name.

    Without a history only the confusion matrix is drawn.
    """
    curves = _curves(history)
    plots = {
        "loss.png": _plot_loss,
        "perplexity.png": _plot_perplexity,
        "accuracy.png": _plot_accuracy,
        "learning_rate.png": _plot_learning_rate,
    }
    drawn = plots if history else {}
    for name, plot in drawn.items():
        _save(folder / name, plot, curves, results)
    matrix = np.array(results["eval_confusion_matrix"])
    _save(folder / CONFUSION_FILE, _plot_confusion, matrix, results["class_names"], figsize=(5.6, 4.6))
    for note in drawing_notes(results["class_names"]):
        logger.warning("%s", note)
    return {Path(name).stem: name for name in (*drawn, CONFUSION_FILE)}


def drawing_notes(class_names: list[str]) -> list[str]:
    """Which numbers stand for class names in the confusion matrix; empty if all names are drawn, or none is."""
    return [] if len(class_names) > MAX_ANNOTATED_CLASSES else drawable_names(class_names, PLOT_NAME_WIDTH)[1]


def summary(results: dict, run: dict, report: Path) -> str:
    """The results of a run in a few lines of text."""
    n, leak = results["eval_samples"], results["leak_proof_difference"]
    low, high = results["eval_cls_accuracy_interval"]
    rows = [
        ("test rows", f"{n}"),
        ("perplexity", f"{results['eval_perplexity']:.3f} (image tokens {results['eval_image_perplexity']:.3f})"),
        ("next-token accuracy", f"{results['eval_next_token_accuracy']:.4f}"),
        ("CLS-slot accuracy", f"{results['eval_cls_accuracy']:.4f} (95 % interval {low:.3f} to {high:.3f})"),
        ("  majority class", f"{results['majority_accuracy']:.4f} (baseline)"),
        ("  bag of tokens", f"{results['bag_of_tokens_accuracy']:.4f} (baseline{fitted_in_words(results)})"),
        ("leak check", f"changing the tokens after {CLS} changed the logits by at most {leak:.1e}"),
        ("time", f"{run['durations']['train']:.0f} s training, {run['durations']['total']:.0f} s in all"),
        ("report and plots", f"{report}"),
        ("best_model", selection_in_words(run["selection"], results)),
    ]
    return "\n".join(f"{name:22} {value}" for name, value in rows)


def selection_in_words(selection: dict, results: dict) -> str:
    """The step of `best_model`, and the figure and the rows that chose it, by `selection.json`."""
    step = f"step {results['step']}"
    if (metric := selection.get("metric")) is None:
        return f"{step}, the last one; no figure was used to choose it"
    chosen = f"{step}, chosen by {metric.removeprefix('eval_')}"
    if "validation" in results:
        found = results["validation"]
        value, n = found[metric], found["eval_samples"]
        return f"{chosen} on the validation rows ({value:.4f}, n = {n})"
    return f"{chosen} on these test rows, as there are no validation rows; its figures are too good"


def trained_length(run: dict) -> str | None:
    """How many steps and epochs of `run.json` were done, and why no more; None if an earlier version didn't note it."""
    if (done := run.get("trained")) is None:
        return None
    if done["steps"] >= done["planned_steps"]:
        return f"{number_of(done['steps'], 'step')} ({done['epochs']:.3g} epochs), as planned"
    counts = f"{done['steps']} of {done['planned_steps']} planned steps"
    epochs = f"{done['epochs']:.3g} of {done['planned_epochs']:.3g} epochs"
    return f"{counts} ({epochs}), stopped early: {done['stopped']}"


def fine_tuning(run: dict) -> list[str]:
    """What a run took over from a checkpoint, and the test rows that this had seen, in Markdown; empty from scratch."""
    if not (base := run.get("base")):
        return []
    started_from = table_cell(run.get("base_model") or Path(run["identity"]["started_from"]).name)
    sentences = []
    if new := base["new_classes"]:
        kept = (
            f"those of {join_first(map(table_cell, display_names(base['kept_classes'])), 5)}"
            if base["kept_classes"]
            else "none"
        )
        sentences.append(
            f"Fine-tuned from `{started_from}`, whose embeddings of special tokens and codebook were kept. Of its "
            f"classes {kept} were kept by name; these started anew: {join_first(map(table_cell, display_names(new)))}."
        )
    if count := base.get("test_rows_seen"):
        sentences.append(
            f"**{number_of(count, 'test row')} show images that {started_from} was trained on:** the figures on them "
            "say nothing about new images."
        )
    return sentences


def _report(results: dict, final: dict, run: dict, stats: dict) -> str:
    n = results["eval_samples"]
    cut = stats["truncation"]
    figures = [
        ("perplexity", "eval_perplexity", ".3f"),
        ("perplexity, image tokens", "eval_image_perplexity", ".3f"),
        ("perplexity, CLS slot", "eval_cls_perplexity", ".3f"),
        ("next-token accuracy", "eval_next_token_accuracy", ".4f"),
        ("CLS-slot accuracy", "eval_cls_accuracy", ".4f"),
        ("macro-F1", "eval_cls_macro_f1", ".4f"),
        ("expected calibration error", "eval_cls_calibration_error", ".4f"),
    ]
    validation = [results["validation"]] if "validation" in results else []
    columns = [("best_model", results), *(("best_model", found) for found in validation), ("final_model", final)]
    head = "".join(f" {name}, {found['split']} (n = {found['eval_samples']}) |" for name, found in columns)
    table = "\n".join(
        f"| {name} |" + "".join(f" {found[key]:{form}} |" for _, found in columns) for name, key, form in figures
    )
    low, high = results["eval_cls_accuracy_interval"]
    classes = "\n".join(
        f"| {table_cell(name)} | {sum(row)} | {'–' if accuracy is None else f'{accuracy:.4f}'} |"
        for name, row, accuracy in zip(
            display_names(results["class_names"]),
            results["eval_confusion_matrix"],
            results["eval_per_class_accuracy"],
            strict=True,
        )
    )
    once = " The test rows were evaluated once, after that." if validation else ""
    plots = "\n\n".join(f"![{title}]({name})" for name, title in PLOTS.items())
    plots += "".join(f"\n\n{table_cell(note)}." for note in drawing_notes(results["class_names"]))
    length = trained_length(run)
    warning = baseline_warning(results)
    verdict = f"**{warning[0].upper()}{warning[1:]}.**" if warning else "`best_model` is clearly better than both."
    regression = f"bag of tokens (logistic regression{fitted_in_words(results)})"
    baselines = "\n".join(
        f"| {name} | {results[f'{key}_accuracy']:.4f} | {test['only_model']} | {test['only_baseline']} | "
        f"{test['p_value']:.2g} |"
        for key, name in (("majority", "majority class"), ("bag_of_tokens", regression))
        for test in [results[f"versus_{key}"]]
    )
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    hardware = run["hardware"]
    machine = f"{hardware['device']}, {processes(hardware)}"
    base = "".join(f"\n\n{sentence}" for sentence in fine_tuning(run))
    return f"""# Training report

Evaluated in fp32, after loading the saved folders: `best_model` of step {results["step"]}, `final_model` of step
{final["step"]}. Trained for {length}.{base}

| |{head}
|---|{"---|" * len(columns)}
{table}

CLS-slot accuracy of `best_model`: **{results["eval_cls_accuracy"]:.4f}** (n = {n} test rows, 95 % interval {low:.4f} to
{high:.4f}). `best_model` is of {selection_in_words(run["selection"], results)}.{once}

| baseline | accuracy on the same rows | rows that only the model gets right | only the baseline | p (exact sign test) |
|---|---|---|---|---|
{baselines}

{verdict}

**Leak check.** In {results["leak_proof_rows"]} test rows everything after `{CLS}` was replaced by random tokens:
the slot's logits changed by at most {results["leak_proof_difference"]:.1e}. The model doesn't see the answer.

{plots}

| class | test rows | accuracy |
|---|---|---|
{classes}

## Data

Rows: {rows_in_words(stats["num_rows"])} ({stats["split"]});
dropped: {dropped_rows(stats)}; {stats["repaired_tails"]} tails repaired; {cut["rows_cut"]} rows cut,
{100 * cut["share_of_image_tokens_cut"]:.2f} % of image tokens. Fingerprint `{stats["fingerprint"]}`.

## Reproduce this run

    {printable(run["command"])}

{run["durations"]["train"]:.0f} s training, {run["durations"]["total"]:.0f} s in all, on {machine}. Seed
{run["identity"]["seed"]}. Commit {run["git_commit"] or "unknown"}. Versions: {versions}.
"""


def _curves(history: list[dict]) -> dict[str, tuple[list, list]]:
    """Steps and values of every figure in Trainer's log history."""
    curves: dict[str, tuple[list, list]] = {}
    for log in history:
        for name, value in log.items():
            if name != "step" and isinstance(value, int | float):
                steps, values = curves.setdefault(name, ([], []))
                steps.append(log["step"])
                values.append(value)
    return curves


def _save(file: Path, plot, *content, figsize: tuple[float, float] = (7, 4.2)) -> None:
    figure = Figure(figsize, layout="constrained")  # not pyplot, whose settings belong to the caller
    plot(figure.subplots(), *content)
    figure.savefig(file, dpi=130)


def _line(axes: Axes, curves: dict, name: str, label: str, color: str) -> None:
    if name in curves:
        axes.plot(*curves[name], label=label, color=color, marker="o" if len(curves[name][0]) < 30 else None, ms=3)


def _finish(axes: Axes, ylabel: str) -> None:
    axes.set_xlabel("optimizer step")
    axes.set_xlim(left=0)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def _curve_split(results: dict) -> str:
    """The split that was evaluated in training."""
    return "validation" if "validation" in results else results.get("split", "test")


def _plot_loss(axes: Axes, curves: dict, results: dict) -> None:
    _line(axes, curves, "token_loss", "train, all tokens", TRAIN_COLOR)
    _line(axes, curves, "eval_loss", f"{_curve_split(results)}, all tokens", TEST_COLOR)
    _line(axes, curves, "cls_loss", "train, CLS slot", SLOT_COLOR)
    _finish(axes, "loss (nats per token)")


def _plot_perplexity(axes: Axes, curves: dict, results: dict) -> None:
    _line(axes, curves, "perplexity", "train", TRAIN_COLOR)
    _line(axes, curves, "eval_perplexity", _curve_split(results), TEST_COLOR)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    _finish(axes, "perplexity (log scale)")


def _plot_accuracy(axes: Axes, curves: dict, results: dict) -> None:
    split = _curve_split(results)
    _line(axes, curves, "eval_cls_accuracy", f"CLS slot, {split}", SLOT_COLOR)
    _line(axes, curves, "eval_next_token_accuracy", f"next token, {split}", TEST_COLOR)
    for name, style, label in (
        ("bag_of_tokens_accuracy", "--", "bag of tokens"),
        ("majority_accuracy", ":", "majority"),
    ):
        accuracy = results.get(split, results)[name]
        axes.axhline(accuracy, color=BASELINE_COLOR, linestyle=style, label=f"{label} baseline (CLS slot)")
    axes.set_ylim(0, 1.02)
    _finish(axes, "accuracy")


def _plot_learning_rate(axes: Axes, curves: dict, results: dict) -> None:
    _line(axes, curves, "learning_rate", "learning rate", TRAIN_COLOR)
    axes.set_ylim(bottom=0)
    _finish(axes, "learning rate")


def _plot_confusion(axes: Axes, matrix: np.ndarray, names: list[str]) -> None:
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.figure.colorbar(image, label="share of the true class")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if len(matrix) <= MAX_ANNOTATED_CLASSES:
        names, _ = drawable_names(names, PLOT_NAME_WIDTH)
        files = font_files(names)
        turned = 60 if max(map(len, names)) > 3 else 0
        names = [name.replace("$", r"\$") for name in names]  # which would begin a formula
        axes.set_xticks(range(len(matrix)), names, rotation=turned, ha="right" if turned else "center")
        axes.set_yticks(range(len(matrix)), names)
        for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
            for tick, file in zip(ticks, files, strict=True):
                tick.set_fontproperties(FontProperties(fname=file, size=tick.get_fontsize()))
        for true, predicted in np.argwhere(matrix > 0):
            color = "white" if share[true, predicted] > 0.5 else "black"
            axes.text(predicted, true, matrix[true, predicted], ha="center", va="center", color=color, fontsize=8)
