"""The figures that a model's records report: `eval_results.json`, the metadata and the tables of the card, options.

One idea: a figure is a number with the place where it is written and half a unit of its last digit, within which the
recomputed figure must round to it.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from imagelm.data.sources.names import split_kind
from imagelm.evaluation.interval import FIRST, fitted_in_words
from imagelm.hub.card import METRICS, read_record
from imagelm.hub.staged import CARD_FILE, OUR_TAG
from imagelm.utils.artifacts import RESULTS_FILE, STATS_FILE
from imagelm.utils.errors import InputError
from imagelm.utils.text import printable, shorten

CARD_DIGITS = 6  # of the figures in the metadata that a push writes
MAX_CARD_BYTES = 1 << 22
NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
# Names of figures in cards, by letters and digits alone, beside the figures' own names.
OTHER_NAMES = {
    **{re.sub(r"[^a-z0-9]", "", name.lower()): figure.removeprefix("eval_") for figure, _, name in METRICS},
    **dict.fromkeys(("accuracy", "classaccuracy", "classificationaccuracy", "clsslotaccuracy"), "cls_accuracy"),
    **dict.fromkeys(("f1", "macrof1", "macrof1oftheclasses"), "cls_macro_f1"),
    **dict.fromkeys(("ece", "calibrationerror", "expectedcalibrationerror"), "cls_calibration_error"),
    **dict.fromkeys(("ppl", "perplexityalltokens"), "perplexity"),
    **dict.fromkeys(("perplexityofimagetokens", "imageperplexity"), "image_perplexity"),
    **dict.fromkeys(("perplexityoftheclsslot", "clsperplexity"), "cls_perplexity"),
    **dict.fromkeys(("tokenaccuracy", "nexttokenaccuracy"), "next_token_accuracy"),
    "baselinebagoftokens": "bag_of_tokens_accuracy",
    "baselinemajorityclass": "majority_accuracy",
}


@dataclass(frozen=True)
class Reported:
    """A reported figure.

    Attributes:
        figure: Its name, such as `perplexity` or `confusion_matrix.0.1`; of an unknown one, as it is written.
        value: The number; a share, where it's written as a percentage.
        half_unit: Half a unit of its last digit; 0 where it's written in full.
        source: Where it's written.
    """

    figure: str
    value: float
    half_unit: float
    source: str


@dataclass
class Records:
    """All that a model's records report.

    Attributes:
        figures: The figures.
        others: Figures of the card that are of other rows or unknown, in words.
        weights, fingerprints: Source → SHA-256 of the weights (or its beginning) and fingerprint of the data.
    """

    figures: list[Reported] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)


def read_records(folder: Path, given: list[str] | None, split: str) -> Records:
    """Reads the records in a model's folder, and the figures of `--reported`.

    Args:
        folder: The model's.
        given: Words such as `perplexity=1.01`.
        split: The split that is measured; figures of other splits aren't compared.

    Raises:
        InputError: A record is damaged, a given figure can't be read, or there is no figure at all.
    """
    records = Records()
    if results := read_record(folder / RESULTS_FILE, dict):
        records.figures += [Reported(name, value, 0.0, RESULTS_FILE) for name, value in flat(results)]
        if sha256 := results.get("weights_sha256"):
            records.weights[RESULTS_FILE] = str(sha256)
    if fingerprint := (read_record(folder / STATS_FILE, dict) or {}).get("fingerprint"):
        records.fingerprints[STATS_FILE] = str(fingerprint)
    if (card := folder / CARD_FILE).is_file():
        _read_card(card.read_bytes()[:MAX_CARD_BYTES].decode("utf-8", errors="replace"), split, records)
    if FIRST in (fitted := fitted_in_words(results or {})):  # whose order depends on the run
        records.figures = [one for one in records.figures if "bag_of_tokens" not in one.figure]
        records.others.append(f"the figures of the bag of tokens{fitted}")
    records.figures += [_given(word) for word in given or []]
    if not records.figures:
        raise InputError(
            f"{folder} reports no figure: there is no {RESULTS_FILE}, and its card has none; give figures with "
            "--reported, such as --reported perplexity=1.01 cls_accuracy=0.94"
        )
    return records


def flat(results: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of nested results with dotted names, without the prefix `eval_`."""
    for key, value in results.items():
        name = f"{prefix}{str(key).removeprefix('eval_')}"
        if isinstance(value, dict | list):
            entries = value if isinstance(value, dict) else dict(enumerate(value))
            yield from flat(entries, f"{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(value)


def figure_named(name: str) -> str | None:
    """The figure of a name in a card or option; None if it is unknown."""
    letters = re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("eval_"))
    return OTHER_NAMES.get(letters) or next((own for own in FIGURES if own.replace("_", "") == letters), None)


def half_unit(text: str) -> float:
    """Half a unit of the last digit of a written number."""
    digits, _, exponent = text.lower().partition("e")
    return 0.5 * 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


def _written(figure: str, text: str, source: str, digits: int | None = None) -> Reported:
    """A figure as it's written; an accuracy above 1 is a percentage."""
    value, half = float(text), half_unit(text) if digits is None else 0.5 * 10.0**-digits
    if 1 < value <= 100 and ("accuracy" in figure or "f1" in figure):
        value, half = value / 100, half / 100
    return Reported(figure, value, half, source)


def _given(word: str) -> Reported:
    name, equals, value = word.partition("=")
    figure = figure_named(name)
    if not equals or not re.fullmatch(NUMBER, value.strip()) or not math.isfinite(float(value)):
        raise InputError(f"--reported {printable(word)}: expected FIGURE=VALUE, such as perplexity=1.01")
    if figure is None:
        near = difflib.get_close_matches(name, FIGURES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(FIGURES)}"
        raise InputError(f"--reported {printable(word)}: unknown figure {printable(name)!r}; {hint}")
    return _written(figure, value.strip(), "--reported")


def _read_card(text: str, split: str, records: Records) -> None:
    """Adds the figures of a card's metadata, and of the tables of a card that a push wrote."""
    metadata, body = _metadata(text)
    is_ours = OUR_TAG in _list(metadata.get("tags"))
    for entry in _list(metadata.get("model-index")):
        for result in _list(entry.get("results") if isinstance(entry, dict) else None):
            for metric in _list(result.get("metrics") if isinstance(result, dict) else None):
                _read_metric(metric, result.get("dataset"), split, CARD_DIGITS if is_ours else None, records)
    if is_ours:
        records.figures += _table_figures(body)
        if found := re.search(r"\(SHA-256 `([0-9a-f]{8,64})", body):
            records.weights[CARD_FILE] = found[1]
        if found := re.search(r"^\| fingerprint \| `(\w+)` \|$", body, re.MULTILINE):
            records.fingerprints[CARD_FILE] = found[1]


def _read_metric(metric: Any, dataset: Any, split: str, digits: int | None, records: Records) -> None:
    if not isinstance(metric, dict):
        return
    names = [str(metric[key]) for key in ("name", "type") if metric.get(key)]
    figure = next((found for name in names if (found := figure_named(name))), None)
    value, name = str(metric.get("value")), shorten(printable(" ".join(names[:1])))
    of = str(dataset.get("split") or split) if isinstance(dataset, dict) else split
    if (split_kind(of) or of) != (split_kind(split) or split):
        records.others.append(f"{name} {shorten(value, 20)} is of the split {shorten(printable(of))}")
    elif figure is None or not re.fullmatch(NUMBER, value):
        records.others.append(f"{name} {shorten(printable(value), 20)} can't be recomputed here")
    else:
        records.figures.append(_written(figure, value, "card metadata", digits))


def _table_figures(body: str) -> Iterator[Reported]:
    """The figures of the text and the tables that `model_card.md` writes."""
    source, classes = "card", None
    if found := re.search(r"Measured on \*\*(\d+) [\w-]+ rows", body):
        yield _written("samples", found[1], source)
    if found := re.search(r"^\| rows \| (\d.*) \|$", body, re.MULTILINE):
        for number, split in re.findall(r"(\d+) (\w+)", found[1]):
            yield _written(f"num_rows.{split}", number, source)
    for line in body.splitlines():
        cells = [cell.strip().strip("*") for cell in line.strip().strip("|").split(" | ")]
        if re.fullmatch(r"\| class \| [\w-]+ rows \| accuracy \|", line):
            classes = 0
        elif classes is not None and not line.startswith("|"):
            classes = None
        elif classes is not None and not line.startswith("|---"):
            for name, cell in zip(("rows_per_class", "per_class_accuracy"), cells[-2:], strict=True):
                if re.fullmatch(NUMBER, cell):
                    yield _written(f"{name}.{classes}", cell, source)
            classes += 1
        elif line.startswith("|") and len(cells) > 1 and re.fullmatch(NUMBER, cells[1]):
            of, _, name = cells[0].rpartition(": ")
            prefix, name = (f"{of}.", name) if split_kind(of) else ("", cells[0])
            if figure := figure_named(name):
                yield _written(f"{prefix}{figure}", cells[1], source)
            if found := re.search(rf"95 % interval ({NUMBER}) to ({NUMBER})", line):
                for i in (0, 1):
                    yield _written(f"cls_accuracy_interval.{i}", found[i + 1], source)


def _metadata(text: str) -> tuple[dict[str, Any], str]:
    """The metadata of a card, with numbers as they're written, and its text."""
    found = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", text, re.DOTALL)
    if not found:
        return {}, text
    try:
        content = yaml.load(found[1], yaml.BaseLoader)  # noqa: S506 (BaseLoader makes texts, lists and mappings only)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"the metadata of {CARD_FILE} isn't YAML: {error}") from error
    return (content if isinstance(content, dict) else {}), text[found.end() :]


def _list(content: Any) -> Iterable[Any]:
    return content if isinstance(content, list) else []


FIGURES = (
    *("perplexity", "image_perplexity", "cls_perplexity", "loss", "next_token_accuracy", "cls_accuracy"),
    *("cls_macro_f1", "cls_calibration_error", "majority_accuracy", "bag_of_tokens_accuracy", "samples"),
)
