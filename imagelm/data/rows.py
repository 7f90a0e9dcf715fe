"""What every source of rows offers, the batches that it yields, and what is kept of each row.

One idea: a few bytes per row (digest, label, side) are enough to find duplicates and to split an input of any size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import orjson
import xxhash

from imagelm.tokens.grammar import Grammar
from imagelm.utils.errors import InputError
from imagelm.utils.text import NUM_LISTED, list_first, printable

KEPT_BYTES = 1 << 16  # of a bad line in bad_rows.jsonl
# Of an image that is in several, the row in the last one of these stays.
SPLITS = ("train", "validation", "test")
NO_SPLIT = -1
DIGEST_DTYPE = np.dtype([("high", "<u8"), ("low", "<u8")])


class RowSource(Protocol):
    """Where rows come from: raw JSONL (`JsonlRows`) or images (`imagelm.data.image_rows.ImageRows`).

    Attributes:
        grammar: The vocabulary.
        class_names: Names of the classes, indexed by label.
        files: All values that a batch's `file` may have.
        split_by: How `assign_splits` assigns the rows to the splits.
        validation_size: Share of the training rows for `cut_validation`; 0 if these rows mustn't be split any more.
        split: How the split was made, in words.
        split_notes: What the validation split lacks, if these rows were split already.
    """

    grammar: Grammar
    class_names: list[str]
    files: list[str]
    split_by: str
    validation_size: float
    split: str
    split_notes: list[str]

    def batches(self) -> Iterator[RowBatch]:
        """All rows in the grammar, in a fixed order."""

    def place(self, file: str, line: int) -> str:
        """Where a row is, for messages."""

    def describe(self, table: RowTable, kept: np.ndarray, folder: Path) -> dict:
        """What this source adds to `stats.json`; draws the images of its codec, if it has any, into a folder.

        `kept` says which rows of the table stay; bool, shape (rows,).
        """


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
        file: The file they are in.
        num_repaired: Rows with the predecessor's tail `<CLS> <CLS> <EOS>`.
        seconds: Time that encoding their images took.
        images: PNG file of each row's image, if images are kept; length rows.
    """

    bodies: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    sources: list[str | None]
    lines: np.ndarray
    file: str
    num_repaired: int
    seconds: float = 0.0
    images: list[bytes] | None = None


@dataclass
class ProblemLog:
    """All problems, counted by kind; the first ones in words; with `keep` set, each bad line with its reason."""

    keep: BinaryIO | None = None
    counts: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)

    def add(self, file: str, line: int | None, kind: str, reason: str, text: bytes | None = None) -> None:
        """Counts a problem as `file:line: found, expected`; for an image, `file` is its place and `line` is None."""
        self.counts[kind] += 1
        if len(self.shown) < NUM_LISTED:
            self.shown.append(printable(f"{file if line is None else f'{file}:{line}'}: {reason}"))
        if self.keep is not None:
            entry: dict[str, object] = {"file": file, "line": line, "kind": kind, "reason": reason}
            if text is not None:
                entry["text"] = text[:KEPT_BYTES].rstrip(b"\r\n").decode("utf-8", errors="backslashreplace")
            self.keep.write(orjson.dumps(entry) + b"\n")

    def stop_if(self, on_bad_rows: str | None) -> None:
        """Raises an InputError if there is a problem and `on_bad_rows` is "stop"."""
        if self.counts and on_bad_rows == "stop":
            raise InputError(f"{self.summary()}\nNothing was written. Fix them, or skip them with --on_bad_rows skip")

    def summary(self) -> str:
        """The counts and the first problems, for messages."""
        total = self.counts.total()
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.counts.most_common())
        head = f"{total} bad {'row' if total == 1 else 'rows'} ({kinds})"
        return "\n".join([head, *list_first(self.shown, total=total)])


@dataclass(frozen=True)
class RowTable:
    """What is kept of each row while the data are prepared, and what was counted.

    Attributes:
        source: Where the rows come from.
        lengths: Body tokens after truncation; int32, shape (rows,), as all columns.
        labels: Class; int32.
        file_splits: Index into `SPLITS`, or `NO_SPLIT`; int8.
        lines, file_index: Where the row is; int32, int16 (index into the source's files).
        digests: 128-bit digest of the body after truncation, which is what a model sees; `DIGEST_DTYPE`.
        groups: Digest of the source image, or of the row's own image if none is named; `DIGEST_DTYPE`.
        code_counts: Uses of each token id in image bodies; int64, shape (vocabulary,).
        encode_seconds: Time that encoding all images took.
    """

    source: RowSource
    lengths: np.ndarray
    labels: np.ndarray
    file_splits: np.ndarray
    lines: np.ndarray
    file_index: np.ndarray
    digests: np.ndarray
    groups: np.ndarray
    code_counts: np.ndarray
    num_repaired: int
    num_cut_rows: int
    num_cut_tokens: int
    num_read_tokens: int
    encode_seconds: float

    @property
    def has_sources(self) -> bool:
        """Whether any row names its source image."""
        return any(bool((self.groups[half] != self.digests[half]).any()) for half in ("high", "low"))

    def place(self, row: int) -> str:
        """Where a row is, such as `file:line`."""
        return self.source.place(self.source.files[self.file_index[row]], int(self.lines[row]))


class RowTableBuilder:
    """Collects a `RowTable` batch by batch."""

    def __init__(self, source: RowSource) -> None:
        self.source = source
        self.parts: list[tuple[np.ndarray, ...]] = []
        self.code_counts = np.zeros(source.grammar.size, dtype=np.int64)
        self.num_repaired = self.num_cut_rows = self.num_cut_tokens = self.num_read_tokens = 0
        self.encode_seconds = 0.0

    def add(self, batch: RowBatch, num_cut: np.ndarray) -> None:
        """Adds a batch after truncation; `num_cut` holds the tokens that each row lost, shape (rows,)."""
        self.num_read_tokens += int(batch.lengths.sum() + num_cut.sum())
        self.num_cut_rows += int((num_cut > 0).sum())
        self.num_cut_tokens += int(num_cut.sum())
        self.num_repaired += batch.num_repaired
        self.encode_seconds += batch.seconds
        self.code_counts += np.bincount(batch.bodies, minlength=len(self.code_counts))
        # Always 32 bits wide: a digest, and with it a side of --split_by hash, outlives a change of vocabulary size.
        bodies = memoryview(np.ascontiguousarray(batch.bodies, dtype="<u4").data).cast("B")
        ends = [0, *(4 * np.cumsum(batch.lengths)).tolist()]
        digests = [xxhash.xxh3_128_digest(bodies[start:end]) for start, end in pairwise(ends)]
        groups = [
            own if source is None else xxhash.xxh3_128_digest(source.encode())
            for own, source in zip(digests, batch.sources, strict=True)
        ]
        self.parts.append(
            (
                batch.lengths.astype(np.int32),
                batch.labels.astype(np.int32),
                batch.splits.astype(np.int8),
                batch.lines.astype(np.int32),
                np.full(len(batch.lines), self.source.files.index(batch.file), dtype=np.int16),
                np.frombuffer(b"".join(digests), dtype=DIGEST_DTYPE),
                np.frombuffer(b"".join(groups), dtype=DIGEST_DTYPE),
            )
        )

    def finish(self) -> RowTable:
        """The table of all rows; an InputError if there are none."""
        if not any(len(part[0]) for part in self.parts):
            raise InputError(
                f"no usable row in {', '.join(self.source.files)}; expected JSON lines with tokens and label"
            )
        lengths, labels, splits, lines, files, digests, groups = map(np.concatenate, zip(*self.parts, strict=True))
        columns = (lengths, labels, splits, lines, files, digests, groups, self.code_counts)
        counts = (self.num_repaired, self.num_cut_rows, self.num_cut_tokens, self.num_read_tokens, self.encode_seconds)
        return RowTable(self.source, *columns, *counts)
