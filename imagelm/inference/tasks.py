"""The four tasks of a trained model: classify, next_token, generate, complete.

One idea: each task is one function of the loaded model, rows and options, and returns a `TaskResult`. The command, the
interactive prompt and other programs call the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from imagelm.data.training_images import image_digests
from imagelm.evaluation.interval import accuracy_interval
from imagelm.evaluation.similarity import ROUGE_TYPES, rouge, similarity, token_accuracy
from imagelm.inference.arguments import InferenceArguments
from imagelm.inference.generation import GeneratedRow, complete_rows, generate_images, kept_tokens, longest_row
from imagelm.inference.generation_arguments import KEEP_PERCENT, ClassArguments, GenerationArguments
from imagelm.inference.inputs import InputRows, read_inputs, require_codec
from imagelm.inference.loading import LoadedModel
from imagelm.inference.results import TaskResult, completion_grid, generated_grid
from imagelm.inference.scoring import class_probabilities, log_likelihoods, next_tokens
from imagelm.tokens.grammar import Role, Row
from imagelm.utils.quiet import quiet_transformers


def run_task(arguments: InferenceArguments, loaded: LoadedModel) -> TaskResult:
    """Reads the input and runs the task that `--mode` names; raises an InputError before anything is computed."""
    mode, options, batch_size = arguments.mode, arguments.generation, arguments.model.batch_size
    if arguments.output.output_image:
        require_codec(loaded, "--output_image", decodes=True)
    if mode == "generate":
        return generate(loaded, options, arguments.classes, batch_size)
    if mode == "continue":
        longest_row(loaded, options)  # refuses contradicting options before anything is read
    inputs = read_inputs(arguments.input, mode, loaded, cut=mode == "continue" or options.keep_percent is not None)
    if mode == "classify":
        result = classify(loaded, inputs.rows, arguments.answer.top, arguments.answer.score, batch_size)
    elif mode == "next_token":
        result = next_token(loaded, inputs.rows, arguments.answer.top, options.keep_percent, batch_size)
    else:
        result = complete(loaded, inputs, options, batch_size, arguments.output.num_pictures)
    result.summary[:0] = inputs.notes
    return result


@quiet_transformers(errors_only=True)
def classify(loaded: LoadedModel, rows: Sequence[Row], top: int, score: bool, batch_size: int) -> TaskResult:
    """The class of each row, with probabilities, and the accuracy if labels are known.

    The rows' own class tokens are not read. `batch_size` changes no answer.

    Returns:
        Records of `place`, `tokens`, `label`, `prediction`, `class`, `probability`, `top` (a list of `label`, `class`,
        `probability`), and with `score` of `log_likelihood`, `bits_per_token` and, with a codec, `bits_per_dim`.
    """
    probabilities = class_probabilities(loaded, [row.question(loaded.grammar) for row in rows], batch_size)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    scores: Sequence[dict[str, float]] = likelihoods(loaded, rows, batch_size) if score else [{}] * len(rows)
    records, cells = [], []
    for row, best, shares, figures in zip(rows, order, probabilities, scores, strict=True):
        entries = [
            {"label": int(label), "class": loaded.class_name(int(label)), "probability": float(shares[label])}
            for label in best
        ]
        given = {"place": row.place, "tokens": loaded.text(row.question(loaded.grammar)), "label": row.label}
        name, probability = entries[0]["class"], entries[0]["probability"]
        answer = {"prediction": entries[0]["label"], "class": name, "probability": probability, "top": entries}
        records.append({**given, **answer, **figures})
        then = "  ".join(f"{loaded.shown_names[label]} {shares[label]:.4f}" for label in best[1:])
        label = "" if row.label is None else loaded.class_text(row.label)
        numbers = (f"{value:.4f}" for value in figures.values())
        cells.append([row.place, loaded.class_text(int(best[0])), f"{shares[best[0]]:.4f}", then, label, *numbers])
    columns = ["row", "class", "probability", "then", "label", *(scores[0] if scores else ())]
    return TaskResult(records, columns, cells, _accuracy(loaded, rows, order[:, 0]))


def likelihoods(loaded: LoadedModel, rows: Sequence[Row], batch_size: int) -> list[dict[str, float]]:
    """How probable the model finds each row's image; `batch_size` changes no answer.

    Returns:
        `log_likelihood` in nats, `bits_per_token` and, with a codec, `bits_per_dim` of each row.
    """
    sums = log_likelihoods(loaded, [row.body for row in rows], batch_size)
    scores = []
    for row, nats in zip(rows, sums, strict=True):
        bits, num_scored = -float(nats) / np.log(2), len(loaded.grammar.prefix(row.body, num_tail=1)) - 1
        score = {"log_likelihood": float(nats), "bits_per_token": bits / num_scored}
        if loaded.codec is not None:
            height, width = loaded.codec.image_size
            score["bits_per_dim"] = bits / (height * width * loaded.codec.channels)
        scores.append(score)
    return scores


@quiet_transformers(errors_only=True)
def next_token(
    loaded: LoadedModel, rows: Sequence[Row], top: int, keep_percent: float | None, batch_size: int
) -> TaskResult:
    """The most probable next tokens of each row, among all tokens.

    Rows may be cut anywhere. With `keep_percent` complete images are cut to their top share first; the true next token
    is then known. `batch_size` changes no answer.

    Returns:
        Records of `place`, `tokens`, `next` (a list of `token`, `id`, `probability`) and `true`.
    """
    kept = [_keep(loaded, row, keep_percent) if keep_percent else (row.prefix(loaded.grammar), None) for row in rows]
    prompts = [prompt for prompt, _ in kept]
    truths = [
        -1 if remainder is None else int(loaded.grammar.prefix(row.body, num_tail=1)[len(prompt)])
        for row, (prompt, remainder) in zip(rows, kept, strict=True)
    ]
    ids, probabilities, ranks = next_tokens(loaded, prompts, truths, top, batch_size)
    tokens, records, cells = loaded.grammar.tokens, [], []
    for row, prompt, best, shares, truth in zip(rows, prompts, ids, probabilities, truths, strict=True):
        entries = [
            {"token": tokens[i], "id": int(i), "probability": float(share)}
            for i, share in zip(best, shares, strict=True)
        ]
        true = "" if truth < 0 else tokens[truth]
        records.append({"place": row.place, "tokens": loaded.text(prompt), "next": entries, "true": true or None})
        cells.append([row.place, "  ".join(f"{e['token']} {e['probability']:.4f}" for e in entries), true])
    known = ranks[np.array(truths) >= 0]
    summary = []
    if known.size:
        hits = f"first {np.mean(known == 0):.4f}, among the first {ids.shape[1]} {np.mean(known < ids.shape[1]):.4f}"
        summary.append(f"true next token: {hits} (n = {known.size} rows)")
        summary += _seen(loaded, [row for row, truth in zip(rows, truths, strict=True) if truth >= 0])
    return TaskResult(records, ["row", "next tokens, most probable first", "true"], cells, summary)


@quiet_transformers(errors_only=True)
def generate(loaded: LoadedModel, options: GenerationArguments, classes: ClassArguments, batch_size: int) -> TaskResult:
    """New images, each with the class that the model itself gives it.

    Another `batch_size` samples other images.

    Returns:
        Records of `sample`, `tokens`, `label`, `class` and `probability`.

    Raises:
        InputError: The class is unknown, or the model can't generate with these options.
    """
    label = None if classes.class_name is None else loaded.require_label(classes.class_name)
    images, num_generated = generate_images(loaded, options, classes, label, batch_size)
    records, cells = [], []
    for i, image in enumerate(images, start=1):
        records.append({"sample": i, **_record(loaded, image)})
        asked = [] if label is None or image.probabilities is None else [f"{image.probabilities[label]:.4f}"]
        cells.append([str(i), *_class_cells(loaded, image), *asked, loaded.text(image.ids)])
    columns = ["sample", "class", "probability", *([f"p({loaded.shown_names[label]})"] if label is not None else [])]
    summary = []
    if label is not None:
        hits = sum(image.label == label for image in images)
        kept = "the first of the class" if classes.condition == "rejection" else "the most probable"
        summary.append(
            f"{num_generated} images generated, {len(images)} kept ({kept}); the model classifies {hits} of them as "
            f"{loaded.class_text(label)}"
        )
        if len(images) < classes.num_samples:
            summary.append(
                f"fewer than the {classes.num_samples} asked for: the model rarely generates this class; raise "
                "--max_draws, or use --condition likelihood"
            )
    make_grid = None if loaded.codec is None else lambda: generated_grid(loaded, images)
    return TaskResult(records, [*columns, "tokens"], cells, summary, make_grid)


@quiet_transformers(errors_only=True)
def complete(
    loaded: LoadedModel, inputs: InputRows, options: GenerationArguments, batch_size: int, num_shown: int
) -> TaskResult:
    """Completes rows, and compares the completion with the true remainder of complete rows.

    The grid of images shows the first `num_shown` rows. With sampling another `batch_size` gives other completions.

    Returns:
        Records of `place`, `sample`, `prompt`, `completion`, `tokens`, `label`, `class`, `probability`, `true_label`
        and, for complete rows, `true_remainder`, `token_accuracy`, `rouge1`, `rouge2` and `rougeL`.
    """
    rows, several = inputs.rows, options.num_return_sequences
    keep = KEEP_PERCENT if options.keep_percent is None else options.keep_percent
    kept = [_keep(loaded, row, keep) for row in rows]
    completions = complete_rows(loaded, [prompt for prompt, _ in kept], options, batch_size)
    records, cells, predicted, true = [], [], [], []
    for row, (prompt, remainder), images in zip(rows, kept, completions, strict=True):
        for i, image in enumerate(images, start=1):
            record: dict[str, Any] = {"place": row.place, "sample": i, "prompt": loaded.text(prompt)}
            figures: dict[str, float] = {}
            added = image.ids[len(prompt) :]
            completion = loaded.text(added)
            if remainder is not None and len(remainder):
                predicted.append(loaded.text(added[: loaded.grammar.find(added, Role.IMG_END)]).split())
                true.append(loaded.text(remainder).split())
                figures = {"token_accuracy": token_accuracy(predicted[-1], true[-1]), **rouge(predicted[-1], true[-1])}
                record["true_remainder"] = loaded.text(remainder)
            record |= {"completion": completion, **_record(loaded, image), **figures, "true_label": row.label}
            records.append(record)
            accuracy = f"{figures['token_accuracy']:.4f}" if figures else ""
            number = str(i) if several > 1 else ""
            cells.append([row.place, number, *_class_cells(loaded, image), accuracy, str(len(prompt)), completion])
    columns = ["row", "sample", "class", "probability", "token accuracy", "given", "completion"]
    measured = [row for row, (_, remainder) in zip(rows, kept, strict=True) if remainder is not None and len(remainder)]
    summary = _similarity_lines(predicted, true, several, keep) + _seen(loaded, measured)
    result = TaskResult(records, columns, cells, summary)
    given = [(row, int(loaded.grammar.is_code[prompt].sum())) for row, (prompt, _) in zip(rows, kept, strict=True)]

    def make_grid() -> np.ndarray | None:
        grid = completion_grid(loaded, inputs, given[:num_shown], completions[:num_shown])
        if grid is not None and len(rows) > num_shown:
            result.summary.append(f"the PNG shows the first {num_shown} of {len(rows)} rows (--num_pictures)")
        return grid

    result.make_grid = None if loaded.codec is None else make_grid
    return result


def _keep(loaded: LoadedModel, row: Row, keep_percent: float) -> tuple[np.ndarray, np.ndarray | None]:
    """The prompt that is kept of a row, and the remainder of its image; None if the row is already cut."""
    if not row.is_whole(loaded.num_image_tokens):
        return row.prefix(loaded.grammar), None
    count = kept_tokens(len(row.body), keep_percent, None if loaded.codec is None else loaded.codec.grid)
    prompt = Row(row.body[:count], 0, None, row.place).prefix(loaded.grammar)
    return prompt, row.body[count:]


def _record(loaded: LoadedModel, image: GeneratedRow) -> dict[str, Any]:
    """A generated row as a record; `tokens` and `label` make it a row that `imagelm prepare` reads."""
    name = None if image.label is None else loaded.class_name(image.label)
    return {"tokens": loaded.text(image.ids), "label": image.label, "class": name, "probability": image.probability}


def _class_cells(loaded: LoadedModel, image: GeneratedRow) -> list[str]:
    if image.label is None:
        return ["no complete image", ""]
    return [loaded.class_text(image.label), f"{image.probability:.4f}"]


def _accuracy(loaded: LoadedModel, rows: Sequence[Row], predictions: np.ndarray) -> list[str]:
    labelled = [row for row in rows if row.label is not None]
    if not labelled:
        return []
    hits, n = sum(row.label == answer for row, answer in zip(rows, predictions, strict=True)), len(labelled)
    low, high = accuracy_interval(hits / n, n)
    return [
        f"accuracy {hits / n:.4f} ({hits} of {n} labelled rows, 95 % interval {low:.3f} to {high:.3f})",
        *_seen(loaded, labelled),
    ]


def _seen(loaded: LoadedModel, rows: Sequence[Row]) -> list[str]:
    """A line that says how many of the measured rows the model was trained on, if it was on any."""
    if loaded.training_images is None:
        return []
    count = int(np.isin(image_digests(row.body for row in rows), loaded.training_images).sum())
    if not count:
        return []
    return [f"{count} of {len(rows)} rows were in the training data: these figures say nothing about new images"]


def _similarity_lines(
    predicted: list[list[str]], true: list[list[str]], several: int, keep_percent: float
) -> list[str]:
    """The figures against the truth, with those of a baseline: the true remainder of the next row."""
    if not true:
        return []

    def line(name: str, figures: dict[str, Any]) -> str:
        rouges = ", ".join(f"{name.replace('rouge', 'ROUGE-')} {figures[name]:.4f}" for name in ROUGE_TYPES)
        return f"  {name:21} token accuracy {figures['token_accuracy']:.4f}, BLEU {figures['bleu']:.2f}, {rouges}"

    figures = similarity(predicted, true)
    lines = [
        f"compared with the true remainder, {keep_percent:g} % of each image given "
        f"(n = {figures['num_continuations']} completions, {figures['num_tokens']} tokens):",
        line("completion", figures),
    ]
    if len(true) > several:
        lines.append(line("another row's truth", similarity(true[several:] + true[:several], true)))
    return [*lines, f"  {'sacrebleu':21} {figures['bleu_signature']}"]
