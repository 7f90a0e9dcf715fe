"""The plots of a run: curves over its steps, and the confusion matrix.

One idea: a plot is a function from axes and figures to a drawing; matplotlib's own settings are left alone.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from imagelm.utils.fonts import drawable_names, font_files

logger = logging.getLogger(__name__)

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
