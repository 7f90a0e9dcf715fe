"""The training report.

One idea: it shows n, an interval, the baselines and the command with every figure, and takes all of them from the
evaluation of the saved model.
"""

from __future__ import annotations

from pathlib import Path

from imagelm.data.stats import dropped_rows, rows_in_words
from imagelm.evaluation.interval import baseline_warning, fitted_in_words
from imagelm.evaluation.plots import PLOTS, drawing_notes, write_plots
from imagelm.tokens.vocabulary import CLS
from imagelm.utils.atomic_io import write_text
from imagelm.utils.output_folder import atomic_folder
from imagelm.utils.text import display_names, join_first, number_of, printable, processes, table_cell

REPORT_FILE = "training_report.md"
FIGURES = [  # name, key, format
    ("perplexity", "eval_perplexity", ".3f"),
    ("perplexity, image tokens", "eval_image_perplexity", ".3f"),
    ("perplexity, CLS slot", "eval_cls_perplexity", ".3f"),
    ("next-token accuracy", "eval_next_token_accuracy", ".4f"),
    ("CLS-slot accuracy", "eval_cls_accuracy", ".4f"),
    ("macro-F1", "eval_cls_macro_f1", ".4f"),
    ("expected calibration error", "eval_cls_calibration_error", ".4f"),
]


def write_report(folder: Path, results: dict, final: dict, history: list[dict], run: dict, stats: dict) -> None:
    """Writes `training_report.md` and the plots into a folder, which is complete or absent.

    Takes `eval_results.json` of the best and the final model, Trainer's log history, `run.json`, and the dataset's
    `stats.json`.
    """
    with atomic_folder(folder) as staging:
        write_plots(staging, results, history)
        write_text(staging / REPORT_FILE, printable(_report(results, final, run, stats), keep="\n"))


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
        kept = join_first(map(table_cell, display_names(base["kept_classes"])), 5) if base["kept_classes"] else "none"
        added = join_first(map(table_cell, display_names(new)))
        sentences.append(
            f"Fine-tuned from `{started_from}`; the embeddings of its special tokens and codebook were kept. "
            f"Classes matched by name: {kept}. Classes with new embeddings: {added}."
        )
    if count := base.get("test_rows_seen"):
        sentences.append(
            f"**{number_of(count, 'test row')} show images that {started_from} was trained on:** the figures on them "
            "say nothing about new images."
        )
    return sentences


def _report(results: dict, final: dict, run: dict, stats: dict) -> str:
    n, (low, high) = results["eval_samples"], results["eval_cls_accuracy_interval"]
    cut, hardware = stats["truncation"], run["hardware"]
    once = " The test rows were evaluated once, after that." if "validation" in results else ""
    machine = f"{hardware['device']}, {processes(hardware)}"
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    base = "".join(f"\n\n{sentence}" for sentence in fine_tuning(run))
    return f"""# Training report

Evaluated in fp32, after loading the saved folders: `best_model` of step {results["step"]}, `final_model` of step
{final["step"]}. Trained for {trained_length(run)}.{base}

{_figures(results, final)}

CLS-slot accuracy of `best_model`: **{results["eval_cls_accuracy"]:.4f}** (n = {n} test rows, 95 % interval {low:.4f} to
{high:.4f}). `best_model` is of {selection_in_words(run["selection"], results)}.{once}

{_baselines(results)}

**Leak check.** In {results["leak_proof_rows"]} test rows everything after `{CLS}` was replaced by random tokens:
the slot's logits changed by at most {results["leak_proof_difference"]:.1e}. The model doesn't see the answer.

{_plots(results)}

{_classes(results)}

## Data

Rows: {rows_in_words(stats["num_rows"])} ({stats["split"]});
dropped: {dropped_rows(stats)}; {stats["repaired_tails"]} tails repaired; {cut["rows_cut"]} rows cut,
{100 * cut["share_of_image_tokens_cut"]:.2f} % of image tokens. Fingerprint `{stats["fingerprint"]}`.

## Reproduce this run

    {printable(run["command"])}

{run["durations"]["train"]:.0f} s training, {run["durations"]["total"]:.0f} s in all, on {machine}. Seed
{run["identity"]["seed"]}. Commit {run["git_commit"] or "unknown"}. Versions: {versions}.
"""


def _figures(results: dict, final: dict) -> str:
    """A table of the figures of both models, on each split."""
    validation = [results["validation"]] if "validation" in results else []
    columns = [("best_model", results), *(("best_model", found) for found in validation), ("final_model", final)]
    head = "".join(f" {name}, {found['split']} (n = {found['eval_samples']}) |" for name, found in columns)
    rows = (f"| {name} |" + "".join(f" {found[key]:{form}} |" for _, found in columns) for name, key, form in FIGURES)
    return "\n".join([f"| |{head}", f"|---|{'---|' * len(columns)}", *rows])


def _baselines(results: dict) -> str:
    """A table of the baselines, each with its sign test against the model, and the verdict."""
    regression = f"bag of tokens (logistic regression{fitted_in_words(results)})"
    lines = [
        "| baseline | accuracy on the same rows | rows that only the model gets right | only the baseline | "
        "p (exact sign test) |",
        "|---|---|---|---|---|",
    ]
    for key, name in (("majority", "majority class"), ("bag_of_tokens", regression)):
        test = results[f"versus_{key}"]
        lines.append(
            f"| {name} | {results[f'{key}_accuracy']:.4f} | {test['only_model']} | {test['only_baseline']} | "
            f"{test['p_value']:.2g} |"
        )
    warning = baseline_warning(results)
    verdict = f"**{warning[0].upper()}{warning[1:]}.**" if warning else "`best_model` is clearly better than both."
    return "\n".join([*lines, "", verdict])


def _plots(results: dict) -> str:
    """The plots, and what the confusion matrix shows instead of names."""
    images = [f"![{title}]({name})" for name, title in PLOTS.items()]
    return "\n\n".join([*images, *(f"{table_cell(note)}." for note in drawing_notes(results["class_names"]))])


def _classes(results: dict) -> str:
    """A table of the classes, with their rows and accuracies."""
    names = display_names(results["class_names"])
    found = zip(names, results["eval_confusion_matrix"], results["eval_per_class_accuracy"], strict=True)
    rows = (
        f"| {table_cell(name)} | {sum(row)} | {'–' if accuracy is None else f'{accuracy:.4f}'} |"
        for name, row, accuracy in found
    )
    return "\n".join(["| class | test rows | accuracy |", "|---|---|---|", *rows])
