"""What every source of rows offers, and the batches that it hands over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from imagelm.tokens.grammar import Grammar
from imagelm.utils.errors import InputError

if TYPE_CHECKING:
    pass
from collections import Counter
from dataclasses import dataclass, field
from typing import BinaryIO

import orjson


class RowSource(Protocol):
    """Where rows come from: raw JSONL (`JsonlRows`) or pictures (`imagelm.data.image_rows.ImageRows`).

    Attributes:
        grammar: The vocabulary.
        class_names: Names of the classes, indexed by label.
        files: Names that the rows' `file` may have.
        split_by: How `assign_splits` is to deal the rows out.
        split: How the split was made, in words.
    """

    grammar: Grammar
    class_names: list[str]
    files: list[str]
    split_by: str
    split: str

    def batches(self) -> Iterator[RowBatch]:
        """All rows in the grammar, in a fixed order."""

    def place(self, file: str, line: int) -> str:
        """Where a row stands, for people."""

    def statistics(self, used: np.ndarray) -> dict:
        """What this source adds to `stats.json`; `used` are the lines of the rows that stay."""


KEPT_BYTES = 1 << 16  # of a bad line in bad_rows.jsonl


NUM_SHOWN_PROBLEMS = 20


SPLITS = ("train", "test")


NO_SPLIT = -1


@dataclass
class RowBatch:
    """Checked rows of one chunk: each is its image body and its label.

    Attributes:
        bodies: Codebook ids of all rows, one after the other; shape (sum of lengths,).
        lengths: Body tokens of each row; int64, shape (rows,).
        labels: Class of each row; int64, shape (rows,).
        splits: Index into `SPLITS`, or `NO_SPLIT`; int8, shape (rows,).
        sources: Id of the image each row was made from, or None where the file names none; length rows.
        lines: Line numbers, from 1; int64, shape (rows,).
        file: The file they stand in.
        num_repaired: Rows with the predecessor's tail `<CLS> <CLS> <EOS>`.
        images: PNG file of each row's image, where they are kept; length rows.
    """

    bodies: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    sources: list[str | None]
    lines: np.ndarray
    file: str
    num_repaired: int
    images: list[bytes] | None = None


@dataclass
class ProblemLog:
    """All problems, counted by kind; the first ones in words; with `keep` set, each bad line with its reason."""

    keep: BinaryIO | None = None
    counts: Counter = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)

    def add(self, file: str, line: int | None, kind: str, reason: str, text: bytes | None = None) -> None:
        """Counts a problem as `file:line: what, what was expected`.

        Args:
            file: The file, or the place of a picture in its source.
            line: Line number, from 1; None for a picture.
            kind: What it is counted under.
            reason: In words.
            text: The line.
        """
        self.counts[kind] += 1
        if len(self.shown) < NUM_SHOWN_PROBLEMS:
            self.shown.append(f"{file if line is None else f'{file}:{line}'}: {reason}")
        if self.keep is not None:
            entry = {"file": file, "line": line, "kind": kind, "reason": reason}
            if text is not None:
                entry["text"] = text[:KEPT_BYTES].rstrip(b"\r\n").decode("utf-8", errors="backslashreplace")
            self.keep.write(orjson.dumps(entry) + b"\n")

    def stop_if(self, on_bad_rows: str) -> None:
        """Ends the work where there is a problem and none is allowed.

        Raises:
            InputError: `on_bad_rows` is "stop", and there is a problem.
        """
        if self.counts and on_bad_rows == "stop":
            raise InputError(
                f"{self.summary()}\nNothing was written. Mend them, or leave them out with --on_bad_rows skip"
            )

    def summary(self) -> str:
        """The first problems and the counts, for people."""
        total = sum(self.counts.values())
        lines = [f"  {entry}" for entry in self.shown]
        if total > len(self.shown):
            lines.append(f"  … and {total - len(self.shown)} more")
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.counts.most_common())
        return "\n".join([f"{total} bad {'row' if total == 1 else 'rows'} ({kinds})", *lines])
