"""The outcome of `imagelm verify`: a verdict for each figure and check, as a table and as JSON."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

from imagelm.utils.text import number_of

SHOWN = ("perplexity", "next_token_accuracy", "cls_accuracy")  # also where they aren't reported


@dataclass(frozen=True)
class Verdict:
    """Whether something that is reported holds; `holds` is None where nothing is reported."""

    figure: str
    source: str
    reported: str
    recomputed: str
    tolerance: str
    holds: bool | None


@dataclass
class Verification:
    """The result: verdicts, what explains those that don't hold, and notes."""

    model: str
    dataset: str
    split: str
    num_rows: int
    verdicts: list[Verdict] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether everything that is reported holds."""
        return all(verdict.holds is not False for verdict in self.verdicts)

    def as_json(self) -> dict[str, Any]:
        """All of it, for a file."""
        return {"holds": self.holds, **asdict(self)}


def table(result: Verification) -> list[str]:
    """The verdicts as lines of text; parts of one figure that all hold are one line."""
    rows, grouped = [("figure", "source", "reported", "recomputed", "tolerance", "")], defaultdict(list)
    for verdict in result.verdicts:
        grouped[verdict.figure.partition(".")[0], verdict.source].append(verdict)
    words = {True: "holds", False: "DOES NOT HOLD", None: ""}
    for (name, source), group in grouped.items():
        right = [verdict for verdict in group if verdict.holds and "." in verdict.figure]
        if right:
            rows.append((name, source, number_of(len(right), "value"), "the same", right[0].tolerance, words[True]))
        for one in group:
            if one not in right:
                row = (one.figure, one.source, one.reported, one.recomputed, one.tolerance, words[one.holds])
                rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def summary(result: Verification) -> list[str]:
    """The table, what explains wrong figures, notes, and the outcome."""
    wrong = [verdict for verdict in result.verdicts if verdict.holds is False]
    checked = [verdict for verdict in result.verdicts if verdict.holds is not None]
    share = f"{len(wrong)} of {len(checked)} figures and checks do not hold" if wrong else ""
    share = share or f"all {len(checked)} figures and checks hold"
    outcome = f"{share} ({number_of(result.num_rows, 'row')} of the split {result.split})"
    findings = [f"found: {text}" for text in result.findings]
    return [*table(result), "", *findings, *(f"note: {text}" for text in result.notes), outcome]


def number_text(value: float) -> str:
    """A figure in a table or sentence."""
    return f"{value:.0f}" if value == round(value) and abs(value) >= 2 else f"{value:.6g}"
