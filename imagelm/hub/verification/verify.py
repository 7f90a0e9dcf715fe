"""`imagelm verify`: recomputes every figure of a published model on the published rows, and says whether it holds.

One idea: a figure holds if the recomputed one rounds to it, up to float noise. What doesn't hold is explained: other
weights, other rows, or a known error of an evaluation that gives the reported number.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from datasets import Dataset

from imagelm.data.sources.names import split_kind
from imagelm.hub.arguments import VerifyArguments
from imagelm.hub.card import read_record
from imagelm.hub.verification.checks import (
    answer_check,
    effect_of_duplicates,
    equal_images,
    fingerprint_check,
    other_content,
    weights_check,
)
from imagelm.hub.verification.figures import Scoring, reduced_rows, true_figures
from imagelm.hub.verification.hypotheses import Subject, explain
from imagelm.hub.verification.outcome import SHOWN, Verdict, Verification, number_text
from imagelm.hub.verification.published import (
    PublishedData,
    PublishedModel,
    id_arrays,
    open_data,
    open_model,
    whole_rows,
)
from imagelm.hub.verification.reported import Records, Reported, read_records
from imagelm.utils.artifacts import RESULTS_FILE
from imagelm.utils.errors import InputError
from imagelm.utils.text import printable

# What float32 on other machines changes: perplexities and losses by a part of their value, shares by rare ties.
NOISE, SHARE_NOISE = 2e-5, 1e-4
BASELINE_NOISE = 1e-3  # of a solver that stops when its steps get small


def verify(options: VerifyArguments) -> Verification:
    """Checks a published model.

    Raises:
        InputError: Model or data can't be loaded or don't belong together, or nothing is reported.
        DivergedError: The model's logits aren't finite.
    """
    data = open_data(options)
    published = open_model(options, data)
    name = _measured_split(options, data, published)
    records = read_records(published.folder, options.reported, name)
    splits = {
        split: whole_rows(table, published.grammar, f"--dataset {options.dataset}: {split}")
        for split, table in data.tables.items()
    }
    test = splits[name]
    _check_lengths(test, published, options)
    result = Verification(options.model, options.dataset, name, len(test))
    identities = [*weights_check(published, records), *fingerprint_check(data, published, records, result)]
    result.verdicts += identities
    is_compared = any(_is_of_baseline(one.figure) for one in records.figures)
    train = next((table for split, table in splits.items() if split_kind(split) == "train" and split != name), None)
    rows, columns, figures = _measure(published, test, train if is_compared else None, options)
    others = {split: table for split, table in splits.items() if split != name}
    for split, table in others.items():
        if any(one.figure.startswith(f"{split}.") for one in records.figures):
            _, _, own = _measure(published, table, train if is_compared else None, options)
            figures |= {f"{split}.{figure}": value for figure, value in own.items()}
    figures |= {f"num_rows.{split}": float(len(table)) for split, table in splits.items()}
    wrong = _compare(records, figures, result)
    elsewhere, repeated = equal_images(splits, name, published.folder, result)
    subject = Subject(published, rows, columns, elsewhere, repeated, others, options.batch_size)
    answer_check(subject, test, result)
    result.findings += effect_of_duplicates(subject, name)
    if not all(verdict.holds for verdict in identities):
        result.findings += other_content(identities)
    elif wrong:
        sentences, left = explain(wrong, records.figures, subject, lambda one, value: _holds(one, value, len(test)))
        result.findings += [*sentences, *_unexplained(left, result)]
    return result


def _measured_split(options: VerifyArguments, data: PublishedData, published: PublishedModel) -> str:
    """The split that is asked for, or else the one that the figures are of: test, if `eval_results.json` names none."""
    names = list(data.tables)
    if options.split:
        found = [name for name in names if name == options.split]
    else:
        kind = (read_record(published.folder / RESULTS_FILE, dict) or {}).get("split", "test")
        found = [name for name in names if split_kind(name) == kind]
    if len(found) != 1:
        wanted = f"split {options.split!r}" if options.split else f"{'single ' if found else ''}{kind} split"
        raise InputError(
            f"--dataset {options.dataset} has no {wanted} (it has {', '.join(map(printable, names))}); name the split "
            "that the figures were measured on with --split"
        )
    if not len(data.tables[found[0]]):
        raise InputError(f"--dataset {options.dataset}: the split {found[0]} holds no rows")
    return found[0]


def _check_lengths(test: Dataset, published: PublishedModel, options: VerifyArguments) -> None:
    longest = max(map(len, test["input_ids"]))
    if published.num_positions is not None and longest > published.num_positions:
        raise InputError(
            f"--dataset {options.dataset} has rows of {longest} tokens, but --model {options.model} has "
            f"{published.num_positions} positions; give the dataset that the model was trained on"
        )


def _measure(
    published: PublishedModel, table: Dataset, train: Dataset | None, options: VerifyArguments
) -> tuple[list[np.ndarray], np.ndarray, dict[str, float]]:
    """The rows of a split, their reduced columns and their figures."""
    rows = id_arrays(table)
    (columns,) = reduced_rows(published.model, published.grammar, rows, [Scoring()], options.batch_size)
    return rows, columns, true_figures(columns, published.grammar, train, table)


def _compare(records: Records, figures: dict[str, float], result: Verification) -> list[Reported]:
    """Adds a verdict for each reported figure; returns those that do not hold."""
    wrong, unknown = [], set()
    for one in records.figures:
        if one.figure not in figures:
            unknown.add(one.figure)
            continue
        value = figures[one.figure]
        holds = _holds(one, value, result.num_rows)
        tolerance = one.half_unit + _noise(one.figure, value, result.num_rows)
        result.verdicts.append(
            Verdict(one.figure, one.source, number_text(one.value), number_text(value), f"±{tolerance:.1e}", holds)
        )
        if not holds:
            wrong.append(one)
    for name in SHOWN:
        if not any(verdict.figure == name for verdict in result.verdicts):
            result.verdicts.append(Verdict(name, "not reported", "", number_text(figures[name]), "", None))
    if baselines := sorted(name for name in unknown if _is_of_baseline(name) and "majority_accuracy" not in figures):
        result.notes.append(f"not checked without training rows: {', '.join(baselines)}")
    result.notes += [f"not checked: {text}" for text in records.others]
    return wrong


def _unexplained(wrong: list[Reported], result: Verification) -> Iterator[str]:
    """Figures that no known error gives: what differs from other records, and the rest."""
    rest = []
    for one in wrong:
        held = [verdict.source for verdict in result.verdicts if verdict.figure == one.figure and verdict.holds]
        if held:
            yield (
                f"{one.source} was changed or is of another model: {one.figure} is {number_text(one.value)} there, but "
                f"right in {' and '.join(dict.fromkeys(held))}"
            )
        else:
            rest.append(one.figure)
    if rest:
        yield f"no known error reproduces {', '.join(dict.fromkeys(rest))}"


def _is_of_baseline(figure: str) -> bool:
    return "majority" in figure or "bag_of_tokens" in figure


def _holds(one: Reported, value: float, num_rows: int) -> bool:
    return bool(abs(one.value - value) <= one.half_unit + _noise(one.figure, value, num_rows))


def _noise(figure: str, value: float, num_rows: int) -> float:
    """How much a figure may differ on another machine."""
    if figure.endswith("samples") or "rows" in figure:
        return 0.0
    if "bag_of_tokens" in figure:
        return BASELINE_NOISE * (num_rows if "only" in figure else 1)
    if "only" in figure or "confusion_matrix" in figure:
        return SHARE_NOISE * num_rows
    return NOISE * max(1.0, abs(value)) if "perplexity" in figure or figure.endswith("loss") else SHARE_NOISE
