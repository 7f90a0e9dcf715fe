"""The modes: prompts in, an `Outcome` out.

One idea: a mode is a function of the loaded model, the prompts and the options, so that the command, the interactive
prompt and a program get the same answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from imagelm.evaluation.similarity import ROUGE_TYPES, rouge, similarity, token_accuracy
from imagelm.inference.arguments import AnswerArguments, ClassArguments, GenerationArguments, InferenceArguments
from imagelm.inference.generation import GeneratedRow, continue_rows, generate_images, kept_tokens, longest_row
from imagelm.inference.inputs import Prompts, read_prompts, require_codec
from imagelm.inference.loading import LoadedModel
from imagelm.inference.pictures import continued_picture, drawn_picture
from imagelm.inference.results import Outcome
from imagelm.inference.scoring import class_probabilities, log_likelihoods, next_tokens
from imagelm.tokens.grammar import IMG_END
from imagelm.tokens.row import Row

DEFAULT_KEEP_PERCENT = 50.0


def run_mode(arguments: InferenceArguments, loaded: LoadedModel) -> Outcome:
    """Runs a mode (all but interactive) with all that the command line asks for.

    Raises:
        InputError: The input is wrong; nothing was computed then.
    """
    file = arguments.output.output_image
    if file:
        require_codec(loaded, "--output_image", draws=True)
    outcome = answer(arguments, loaded)
    if file:
        outcome.picture = outcome.see()
        if outcome.picture is None:
            outcome.summary.append(f"no whole image was drawn, so {file} wasn't written")
    elif outcome.see and outcome.cells and loaded.codec is not None:
        outcome.summary.append("see it as pictures with --output_image F.png")
    return outcome


def answer(arguments: InferenceArguments, loaded: LoadedModel) -> Outcome:
    """Reads the input and runs a mode.

    Raises:
        InputError: The input is wrong; nothing was computed then.
    """
    mode, draw, batch_size = arguments.mode, arguments.draw, arguments.model.batch_size
    if mode == "generate":
        return generate(loaded, draw, arguments.classes, batch_size)
    if mode == "continue":
        longest_row(loaded, draw)  # refuses contradicting options before anything is read
    prompts = read_prompts(arguments.input, mode, loaded, cut=mode == "continue" or draw.keep_percent is not None)
    if mode == "classify":
        outcome = classify(loaded, prompts.rows, arguments.answer, batch_size)
    elif mode == "next_token":
        outcome = next_token(loaded, prompts.rows, draw.keep_percent, arguments.answer.top, batch_size)
    else:
        outcome = continue_(loaded, prompts, draw, batch_size, arguments.output.num_pictures)
    outcome.summary[:0] = prompts.notes
    return outcome


def classify(loaded: LoadedModel, rows: Sequence[Row], options: AnswerArguments, batch_size: int) -> Outcome:
    """The class of each row, with probabilities; accuracy where labels are known; scores where asked for."""
    probabilities = class_probabilities(loaded, [row.question(loaded.grammar) for row in rows], batch_size)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, : options.top]
    scores = _scores(loaded, rows, batch_size) if options.score else [{}] * len(rows)
    records, cells = [], []
    for row, best, shares, score in zip(rows, order, probabilities, scores, strict=True):
        top = [_class_entry(loaded, int(label), shares) for label in best]
        records.append(
            {
                "place": row.place,
                "tokens": loaded.text(row.question(loaded.grammar)),
                "label": row.label,
                "prediction": top[0]["label"],
                "class": top[0]["class"],
                "probability": top[0]["probability"],
                "top": top,
                **score,
            }
        )
        cells.append(
            [
                row.place,
                loaded.class_text(int(best[0])),
                f"{shares[best[0]]:.4f}",
                "  ".join(f"{loaded.class_name(int(label))} {shares[label]:.4f}" for label in best[1:]),
                "" if row.label is None else loaded.class_text(row.label),
                *(f"{value:.4f}" for value in score.values()),
            ]
        )
    columns = ["row", "class", "probability", "then", "label", *(scores[0] if scores else ())]
    return _without_empty(Outcome(records, columns, cells, _accuracy(rows, order[:, 0])), ("label", "then"))


def next_token(
    loaded: LoadedModel, rows: Sequence[Row], keep_percent: float | None, top: int, batch_size: int
) -> Outcome:
    """The most probable next tokens of each row, among all tokens."""
    kept = [_keep(loaded, row, keep_percent) if keep_percent else (row.prefix(loaded.grammar), None) for row in rows]
    prompts, remainders = [prompt for prompt, _ in kept], [remainder for _, remainder in kept]
    end = loaded.grammar.id(IMG_END)
    truths = [-1 if remainder is None else int([*remainder, end][0]) for remainder in remainders]
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
    return _without_empty(
        Outcome(records, ["row", "next tokens, most probable first", "true"], cells, summary), ("true",)
    )


def generate(loaded: LoadedModel, draw: GenerationArguments, classes: ClassArguments, batch_size: int) -> Outcome:
    """New images, with the class that the model itself sees in each."""
    label = None if classes.class_name is None else loaded.require_label(classes.class_name)
    drawings, num_draws = generate_images(loaded, draw, classes, label, batch_size)
    records, cells = [], []
    for i, drawing in enumerate(drawings, start=1):
        records.append({"sample": i, **_drawing_entry(loaded, drawing)})
        asked = [] if label is None or drawing.probabilities is None else [f"{drawing.probabilities[label]:.4f}"]
        cells.append([str(i), *_class_cells(loaded, drawing), *asked, loaded.text(drawing.ids)])
    columns = ["sample", "class", "probability", *([f"p({loaded.class_name(label)})"] if label is not None else [])]
    summary = []
    if label is not None:
        seen = sum(drawing.label == label for drawing in drawings)
        way = "the first of the class" if classes.condition == "rejection" else "the most probable"
        summary.append(
            f"{num_draws} images drawn, {len(drawings)} kept ({way}), {seen} of them seen as {loaded.class_text(label)}"
        )
        if len(drawings) < classes.num_samples:
            summary.append(
                f"fewer than the {classes.num_samples} asked for: the model hardly draws this class; raise "
                "--max_draws, or take --condition likelihood"
            )
    return Outcome(records, [*columns, "tokens"], cells, summary, see=lambda: drawn_picture(loaded, drawings))


def continue_(
    loaded: LoadedModel, prompts: Prompts, options: GenerationArguments, batch_size: int, num_pictures: int
) -> Outcome:
    """Completes rows; measured against the true remainder where the row was whole."""
    rows = prompts.rows
    keep = DEFAULT_KEEP_PERCENT if options.keep_percent is None else options.keep_percent
    kept = [_keep(loaded, row, keep) for row in rows]
    drawings = continue_rows(loaded, [prompt for prompt, _ in kept], options, batch_size)
    records, cells, drawn, true = [], [], [], []
    for row, (prompt, remainder), several in zip(rows, kept, drawings, strict=True):
        for i, drawing in enumerate(several, start=1):
            entry, figures = {"place": row.place, "sample": i, "prompt": loaded.text(prompt)}, {}
            if remainder is not None and len(remainder):
                drawn.append(_image_tokens(loaded, drawing.ids[len(prompt) :]))
                true.append(loaded.text(remainder).split())
                figures = {"token_accuracy": token_accuracy(drawn[-1], true[-1]), **rouge(drawn[-1], true[-1])}
                entry["true_remainder"] = loaded.text(remainder)
            completion = loaded.text(drawing.ids[len(prompt) :])
            records.append(
                {
                    **entry,
                    "completion": completion,
                    **_drawing_entry(loaded, drawing),
                    **figures,
                    "true_label": row.label,
                }
            )
            accuracy = f"{figures['token_accuracy']:.4f}" if figures else ""
            number = str(i) if options.num_return_sequences > 1 else ""
            cells.append([row.place, number, *_class_cells(loaded, drawing), accuracy, str(len(prompt)), completion])
    columns = ["row", "sample", "class", "probability", "token accuracy", "given", "completion"]
    outcome = _without_empty(
        Outcome(records, columns, cells, _similarity_lines(drawn, true, options.num_return_sequences, keep)),
        ("token accuracy",),
    )
    shown = [(row, int(loaded.grammar.is_code[prompt].sum())) for row, (prompt, _) in zip(rows, kept, strict=True)]
    shown, seen = shown[:num_pictures], drawings[:num_pictures]
    outcome.see = lambda: continued_picture(loaded, prompts, shown, seen, outcome.summary)
    return outcome


def _keep(loaded: LoadedModel, row: Row, keep_percent: float) -> tuple[np.ndarray, np.ndarray | None]:
    """The prompt that is left of a row, and the rest of its image; None where the row is cut already."""
    if not row.is_whole(loaded.num_image_tokens):
        return row.prefix(loaded.grammar), None
    count = kept_tokens(len(row.body), keep_percent, None if loaded.codec is None else loaded.codec.grid)
    prompt = Row(row.body[:count], 0, None, row.place).prefix(loaded.grammar)
    return prompt, row.body[count:]


def _image_tokens(loaded: LoadedModel, ids: np.ndarray) -> list[str]:
    """The tokens up to the end of the image."""
    tokens = loaded.text(ids).split()
    return tokens[: tokens.index(IMG_END)] if IMG_END in tokens else tokens


def _scores(loaded: LoadedModel, rows: Sequence[Row], batch_size: int) -> list[dict[str, float]]:
    sums = log_likelihoods(loaded, [row.body for row in rows], batch_size)
    scores = []
    for row, nats in zip(rows, sums, strict=True):
        bits = -float(nats) / np.log(2)
        score = {"log_likelihood": float(nats), "bits_per_token": bits / (len(row.body) + 1)}
        if loaded.codec is not None:
            height, width = loaded.codec.image_size
            score["bits_per_dim"] = bits / (height * width * loaded.codec.channels)
        scores.append(score)
    return scores


def _class_entry(loaded: LoadedModel, label: int, probabilities: np.ndarray) -> dict:
    return {"label": label, "class": loaded.class_name(label), "probability": float(probabilities[label])}


def _drawing_entry(loaded: LoadedModel, drawing: GeneratedRow) -> dict:
    """A drawing as a record; `tokens` and `label` make it a row that `prepare_dataset.py` reads."""
    name = None if drawing.label is None else loaded.class_name(drawing.label)
    return {
        "tokens": loaded.text(drawing.ids),
        "label": drawing.label,
        "class": name,
        "probability": drawing.probability,
    }


def _class_cells(loaded: LoadedModel, drawing: GeneratedRow) -> list[str]:
    if drawing.label is None:
        return ["no whole image", ""]
    return [loaded.class_text(drawing.label), f"{drawing.probability:.4f}"]


def _accuracy(rows: Sequence[Row], predictions: np.ndarray) -> list[str]:
    known = [
        (row.label, prediction) for row, prediction in zip(rows, predictions, strict=True) if row.label is not None
    ]
    if not known:
        return []
    from imagelm.evaluation.report import accuracy_interval  # brings matplotlib along

    hits = sum(label == prediction for label, prediction in known)
    low, high = accuracy_interval(hits / len(known), len(known))
    interval = f"95 % interval {low:.3f} to {high:.3f}"
    return [f"accuracy {hits / len(known):.4f} ({hits} of {len(known)} labelled rows, {interval})"]


def _similarity_lines(drawn: list[list[str]], true: list[list[str]], several: int, keep_percent: float) -> list[str]:
    """The figures against the truth, beside those of a baseline: the true remainder of the next row."""
    if not true:
        return []

    def figures_in_words(figures: dict) -> str:
        rouges = ", ".join(f"{name.replace('rouge', 'ROUGE-')} {figures[name]:.4f}" for name in ROUGE_TYPES)
        return f"token accuracy {figures['token_accuracy']:.4f}, BLEU {figures['bleu']:.2f}, {rouges}"

    figures = similarity(drawn, true)
    lines = [
        f"against the true remainder, {keep_percent:g} % of each image given "
        f"(n = {figures['num_continuations']} continuations, {figures['num_tokens']} tokens):",
        f"  drawn                 {figures_in_words(figures)}",
    ]
    if len(true) > several:
        lines.append(f"  another row's truth   {figures_in_words(similarity(true[several:] + true[:several], true))}")
    return [*lines, f"  sacrebleu             {figures['bleu_signature']}"]


def _without_empty(outcome: Outcome, columns: tuple[str, ...]) -> Outcome:
    """The table without those of `columns` that hold nothing."""
    empty = [
        i for i, name in enumerate(outcome.columns) if name in columns and not any(row[i] for row in outcome.cells)
    ]
    outcome.columns = [name for i, name in enumerate(outcome.columns) if i not in empty]
    outcome.cells = [[cell for i, cell in enumerate(row) if i not in empty] for row in outcome.cells]
    return outcome
