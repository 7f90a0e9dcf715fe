"""What every source of rows offers, the batches that it yields, and what is kept of each row.

One idea: a few bytes per row (digest, label, side) are enough to find duplicates and to split an input of any size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import BinaryIO, Protocol

import numpy as np
import orjson
import xxhash
from numpy.typing import DTypeLike

from imagelm.tokens.grammar import Grammar
from imagelm.utils.errors import InputError
from imagelm.utils.text import NUM_LISTED, list_first, printable

KEPT_BYTES = 1 << 16  # of a bad line in bad_rows.jsonl
# Of an image that is in several, the row in the last one of these stays.
SPLITS = ("train", "validation", "test")
NO_SPLIT = -1
DIGEST_DTYPE = np.dtype([("high", "<u8"), ("low", "<u8")])
# What is kept of each row: the digest of its body after truncation, which is what a model sees; the digest of its
# source image, or of its own if none is named; its body's tokens, its class, its split (index into SPLITS, or
# NO_SPLIT), and where it is (index into the source's files).
ROW_DTYPE = np.dtype(
    [
        *(("digests", DIGEST_DTYPE), ("groups", DIGEST_DTYPE)),
        *(("lines", "<i8"), ("lengths", "<i4"), ("labels", "<i4"), ("file_index", "<i4"), ("file_splits", "i1")),
    ]
)
NUMBERED_DTYPE = np.dtype([("number", "<i8"), ("row", ROW_DTYPE)])
CHUNK_ROWS, PART_ROWS = 1 << 16, 1 << 17  # read at once; sorted at once, which takes about 130 bytes a row
MAX_PART_BITS = 9  # of open files; from 7e7 rows on parts are larger


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

    @property
    def identity(self) -> dict[str, object]:
        """What the rows are made from, in a few words and digests; shards of the same rows have the same."""

    def batches(self) -> Iterator[RowBatch]:
        """All rows in the grammar, in a fixed order."""

    def place(self, file: str, line: int) -> str:
        """Where a row is, for messages."""

    def describe(self, table: RowTable, sides: np.ndarray, folder: Path) -> dict:
        """What this source adds to `stats.json`; draws the images of its codec, if it has any, into a folder.

        `sides` is the result of `split_rows`.
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
        self._count(file, line, kind, reason)
        if self.keep is not None:
            entry: dict[str, object] = {"file": file, "line": line, "kind": kind, "reason": reason}
            if text is not None:
                entry["text"] = text[:KEPT_BYTES].rstrip(b"\r\n").decode("utf-8", errors="backslashreplace")
            self.keep.write(orjson.dumps(entry) + b"\n")

    def add_all(self, kept: Path) -> None:
        """Adds the problems that another log wrote to its `keep`."""
        with open(kept, "rb") as lines:
            for line in lines:
                entry = orjson.loads(line)
                self._count(entry["file"], entry["line"], entry["kind"], entry["reason"])
                if self.keep is not None:
                    self.keep.write(line)

    def _count(self, file: str, line: int | None, kind: str, reason: str) -> None:
        self.counts[kind] += 1
        if len(self.shown) < NUM_LISTED:
            self.shown.append(printable(f"{file if line is None else f'{file}:{line}'}: {reason}"))

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


@dataclass
class RowCounts:
    """What is counted while rows are read.

    Attributes:
        codes: Uses of each token id in image bodies; int64, shape (vocabulary,).
        encode_seconds: Time that encoding all images took.
    """

    codes: np.ndarray
    repaired: int = 0
    cut_rows: int = 0
    cut_tokens: int = 0
    read_tokens: int = 0
    encode_seconds: float = 0.0

    def add(self, batch: RowBatch, num_cut: np.ndarray) -> None:
        """Counts a batch after truncation; `num_cut` holds the tokens that each row lost, shape (rows,)."""
        self.read_tokens += int(batch.lengths.sum() + num_cut.sum())
        self.cut_rows += int((num_cut > 0).sum())
        self.cut_tokens += int(num_cut.sum())
        self.repaired += batch.num_repaired
        self.encode_seconds += batch.seconds
        self.codes += np.bincount(batch.bodies, minlength=len(self.codes))

    def record(self) -> dict:
        """As JSON, for `sum_counts`."""
        return vars(self) | {"codes": self.codes.tolist()}


def sum_counts(records: list[dict]) -> RowCounts:
    """The counts of several shares of the rows, each from its `record`."""
    names = list(records[0])
    sums = {name: np.sum([record[name] for record in records], axis=0) for name in names}
    return RowCounts(**{name: value if name == "codes" else value.item() for name, value in sums.items()})


@dataclass(frozen=True)
class RowTable:
    """What is kept of each row while the data are prepared, in files, and what was counted.

    Attributes:
        source: Where the rows come from.
        files: `ROW_DTYPE`, all rows one after the other.
        counts: What was counted.
        spill: A folder for temporary files.
    """

    source: RowSource
    files: list[Path]
    counts: RowCounts
    spill: Path

    @cached_property
    def num_rows(self) -> int:
        """All rows, also those that will be dropped."""
        return sum(self._sizes)

    @cached_property
    def _sizes(self) -> list[int]:
        return [file.stat().st_size // ROW_DTYPE.itemsize for file in self.files]

    @cached_property
    def has_sources(self) -> bool:
        """Whether any row names its source image."""
        return any((rows["groups"] != rows["digests"]).any() for _, rows in self.chunks())

    def chunks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """All rows in order, some at a time, with their numbers."""
        start = 0
        for path in self.files:
            with open(path, "rb") as file:
                while len(rows := np.fromfile(file, ROW_DTYPE, CHUNK_ROWS)):
                    yield slice(start, start + len(rows)), rows
                    start += len(rows)

    def partitions(self, key: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All rows in parts that fit into the memory, with their numbers, in ascending order.

        Rows with the same digest in the field `key` are in the same part.
        """
        if self.num_rows <= PART_ROWS:
            yield np.arange(self.num_rows), np.concatenate([rows for _, rows in self.chunks()])
            return
        bits = min(MAX_PART_BITS, (-(-self.num_rows // PART_ROWS) - 1).bit_length())
        with TemporaryDirectory(dir=self.spill) as folder, ExitStack() as opened:
            files = [opened.enter_context(open(Path(folder, str(i)), "w+b")) for i in range(1 << bits)]
            for span, rows in self.chunks():
                numbered = np.empty(len(rows), NUMBERED_DTYPE)
                numbered["number"], numbered["row"] = np.arange(span.start, span.stop), rows
                part = (rows[key]["high"] >> np.uint64(64 - bits)).astype(np.int64)
                ends = np.cumsum(np.bincount(part, minlength=len(files)))
                ordered = numbered[np.argsort(part, kind="stable")]
                for file, own in zip(files, np.split(ordered, ends[:-1]), strict=True):
                    file.write(own.tobytes())
            for file in files:
                file.seek(0)
                numbered = np.fromfile(file, NUMBERED_DTYPE)
                yield numbered["number"], numbered["row"]

    def column(self, dtype: DTypeLike) -> np.ndarray:
        """Zeros, one for each row, in a file whose pages the system writes and reads again as memory gets short."""
        size = self.num_rows * np.dtype(dtype).itemsize
        with TemporaryFile(dir=self.spill) as file:
            for start in range(0, size, CHUNK_ROWS):  # so that a full disk is noticed here
                file.write(bytes(min(CHUNK_ROWS, size - start)))
            file.flush()
            return np.asarray(np.memmap(file, dtype, "r+", shape=(self.num_rows,)))

    def row(self, number: int) -> np.void:
        """What is kept of one row."""
        ends = np.cumsum(self._sizes)
        index = int(np.searchsorted(ends, number, side="right"))
        offset = (number - int(ends[index]) + self._sizes[index]) * ROW_DTYPE.itemsize
        return np.fromfile(self.files[index], ROW_DTYPE, count=1, offset=offset)[0]

    def place(self, number: int) -> str:
        """Where a row is, such as `file:line`."""
        row = self.row(number)
        return self.source.place(self.source.files[row["file_index"]], int(row["lines"]))


def row_records(batch: RowBatch, file_index: int) -> np.ndarray:
    """What is kept of each row of a batch after truncation; `ROW_DTYPE`, shape (rows,)."""
    # Always 32 bits wide: a digest, and with it a side of --split_by hash, outlives a change of vocabulary size.
    bodies = memoryview(np.ascontiguousarray(batch.bodies, dtype="<u4").data).cast("B")
    ends = [0, *(4 * np.cumsum(batch.lengths)).tolist()]
    digests = [xxhash.xxh3_128_digest(bodies[start:end]) for start, end in pairwise(ends)]
    groups = [
        own if source is None else xxhash.xxh3_128_digest(source.encode())
        for own, source in zip(digests, batch.sources, strict=True)
    ]
    rows = np.empty(len(digests), ROW_DTYPE)
    rows["digests"] = np.frombuffer(b"".join(digests), dtype=DIGEST_DTYPE)
    rows["groups"] = np.frombuffer(b"".join(groups), dtype=DIGEST_DTYPE)
    rows["lines"], rows["lengths"], rows["labels"] = batch.lines, batch.lengths, batch.labels
    rows["file_index"], rows["file_splits"] = file_index, batch.splits
    return rows
