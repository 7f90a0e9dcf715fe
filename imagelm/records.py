"""Raw JSONL → checked rows; every problem with its file and line.

One idea: a row in the grammar has exactly one form, so a whole chunk of rows is compared with that form at once (token
look-up by pyarrow, comparison by numpy). Only rows that differ take the slow path, which says in words what is wrong.
"""

from __future__ import annotations

import glob
import gzip
import io
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import zstandard
from tqdm import tqdm

from imagelm.errors import InputError
from imagelm.sequence import CLS, EOS, IMG, IMG_END, NUM_FRAME_TOKENS, Grammar

CHUNK_BYTES = 8 << 20
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
        num_mended: Rows with the predecessor's tail `<CLS> <CLS> <EOS>`.
        images: PNG file of each row's image, where they are kept; length rows.
    """

    bodies: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    sources: list[str | None]
    lines: np.ndarray
    file: str
    num_mended: int
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
            text: The whole line.
        """
        self.counts[kind] += 1
        if len(self.shown) < NUM_SHOWN_PROBLEMS:
            self.shown.append(f"{file if line is None else f'{file}:{line}'}: {reason}")
        if self.keep is not None:
            entry = {"file": file, "line": line, "kind": kind, "reason": reason}
            if text is not None:
                entry["text"] = text.rstrip(b"\r\n").decode("utf-8", errors="backslashreplace")
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


def expand_files(patterns: list[str]) -> list[Path]:
    """The files behind names and glob patterns, each once, in the order given (those of a pattern sorted).

    Raises:
        InputError: A name or pattern matches no file.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        if not pattern:
            raise InputError("--data_files holds an empty name; is a variable unset?")
        found = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise InputError(f"--data_files {pattern}: no such file")
        for name in found:
            if Path(name).is_dir():
                raise InputError(f"--data_files {name} is a folder; name its files, such as '{name}/*.jsonl'")
            files[Path(name)] = None
    return list(files)


def read_rows(files: list[Path], grammar: Grammar, problems: ProblemLog, need_split: bool) -> Iterator[RowBatch]:
    """Reads and checks every row of JSONL files (plain, .gz or .zst), a chunk at a time.

    A row is a JSON object with `tokens` (one string with spaces, or a list of strings) and `label` (int). Optional:
    `split` ("train" or "test") and `source` (str or int, the image that this row is a variant of). Blank lines are
    passed over.

    Args:
        files: What to read.
        grammar: What rows must look like.
        problems: Where rows that don't are reported; they are left out of what is yielded.
        need_split: Whether a row without `split` is a problem.

    Raises:
        InputError: A file can't be read or decompressed.
    """
    checker = _Checker(grammar, problems, need_split)
    total = sum(file.stat().st_size for file in files)
    with tqdm(total=total, unit="B", unit_scale=True, desc="reading", disable=None) as progress:
        for file in files:
            for first_line, lines in line_chunks(file, progress):
                yield checker.check(str(file), first_line, lines)


class _Checker:
    """Compares chunks of lines with the grammar; holds the look-up tables."""

    def __init__(self, grammar: Grammar, problems: ProblemLog, need_split: bool) -> None:
        self.grammar = grammar
        self.problems = problems
        self.need_split = need_split
        self.token_set = pa.array(grammar.tokens)
        self.tail = np.array([grammar.id(token) for token in (IMG_END, CLS, EOS)])

    def check(self, file: str, first_line: int, lines: list[bytes]) -> RowBatch:
        texts, counts, labels, splits, sources, numbers = [], [], [], [], [], []
        bad: dict[int, tuple[str, str]] = {}
        for number, line in enumerate(lines, start=first_line):
            if line.isspace():
                continue
            try:
                text, count, label, split, source = self._parse(line)
            except _BadRow as error:
                bad[number] = error.kind, error.reason
                continue
            texts.append(text)
            counts.append(count)
            labels.append(label)
            splits.append(split)
            sources.append(source)
            numbers.append(number)

        labels = np.array(labels, dtype=np.int64)
        words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(pa.array(texts, type=pa.large_string())))
        ids, offsets = self._look_up(words)
        good, mended = self._compare(ids, offsets, labels, np.array(counts, dtype=np.int64))
        for i in np.flatnonzero(~good):
            bad[numbers[i]] = self._explain(words[i].as_py(), counts[i], int(labels[i]))
        for number, (kind, reason) in sorted(bad.items()):
            self.problems.add(file, number, kind, reason, lines[number - first_line])

        lengths = np.diff(offsets)
        inside = np.repeat(good, lengths)
        inside[offsets[:-1][good]] = False
        for distance in range(1, NUM_FRAME_TOKENS):
            inside[offsets[1:][good] - distance] = False
        return RowBatch(
            bodies=ids[inside],
            lengths=lengths[good] - NUM_FRAME_TOKENS,
            labels=labels[good],
            splits=np.array(splits, dtype=np.int8)[good],
            sources=[sources[i] for i in np.flatnonzero(good)],
            lines=np.array(numbers, dtype=np.int64)[good],
            file=file,
            num_mended=int((good & mended).sum()),
        )

    def _parse(self, line: bytes) -> tuple[str, int, int, int, str | None]:
        """Text of the tokens, their number (-1 where only the text tells), label, split, source."""
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise _BadRow("invalid_json", f"not JSON ({error}), expected an object with tokens and label") from None
        if type(row) is not dict:
            raise _BadRow("not_an_object", f"a JSON {_json_type(row)}, expected an object with tokens and label")
        for key in ("tokens", "label"):
            if key not in row:
                raise _BadRow("missing_key", f"no key {key!r}, expected tokens and label; found {_shorten(list(row))}")
        tokens, count = row["tokens"], -1
        if type(tokens) is list:
            count = len(tokens)
            try:
                tokens = " ".join(tokens)
            except TypeError:
                wrong = next(token for token in tokens if type(token) is not str)
                raise _BadRow("wrong_type", f"tokens holds a {_json_type(wrong)}, expected strings only") from None
        elif type(tokens) is not str:
            raise _BadRow("wrong_type", f"tokens is a {_json_type(tokens)}, expected a string or a list of strings")
        label = row["label"]
        if type(label) is not int:
            raise _BadRow("wrong_type", f"label is {_shorten(label)} ({_json_type(label)}), expected a whole number")
        if not 0 <= label < self.grammar.num_classes:
            raise _BadRow("label_out_of_range", f"label {label}, expected 0 to {self.grammar.num_classes - 1}")
        return tokens, count, label, self._split(row), _source(row)

    def _split(self, row: dict) -> int:
        if not self.need_split:
            return NO_SPLIT
        if "split" not in row:
            raise _BadRow("missing_key", 'no key \'split\', expected "train" or "test" as --split_by is field')
        if row["split"] not in SPLITS:
            raise _BadRow("wrong_split", f'split is {_shorten(row["split"])}, expected "train" or "test"')
        return SPLITS.index(row["split"])

    def _look_up(self, words: pa.LargeListArray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all rows one after the other (-1 for unknown tokens), and the rows' offsets."""
        offsets = words.offsets.to_numpy()
        ids = pc.fill_null(pc.index_in(words.values, value_set=self.token_set), -1).to_numpy()
        return ids, offsets.astype(np.int64)

    def _compare(
        self, ids: np.ndarray, offsets: np.ndarray, labels: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which rows have exactly the grammar's form, and which of them only after mending the tail; bool, (rows,)."""
        grammar, lengths = self.grammar, np.diff(offsets)
        good = (lengths > NUM_FRAME_TOKENS) & ((counts == -1) | (counts == lengths))
        if not len(ids):
            return good, good.copy()
        # Rows that are too short stay out by `good`; clipping only keeps their look-ups inside the array.
        at = [ids[np.clip(offsets[1:] - distance, 0, len(ids) - 1)] for distance in range(NUM_FRAME_TOKENS)]
        image_end, cls, eos = self.tail
        good &= (at[4] == image_end) & (at[3] == cls) & (at[1] == eos)
        good &= ids[np.clip(offsets[:-1], 0, len(ids) - 1)] == grammar.id(IMG)
        mended = at[2] == cls
        good &= mended | (at[2] == grammar.class_ids[labels])
        num_codes = np.concatenate([[0], np.cumsum((ids >= 0) & grammar.is_code[ids])])
        good &= num_codes[offsets[1:]] - num_codes[offsets[:-1]] == lengths - NUM_FRAME_TOKENS
        return good, mended

    def _explain(self, tokens: list[str], count: int, label: int) -> tuple[str, str]:
        if tokens == [""]:
            return "empty_row", f"no token at all, expected {IMG} … {EOS}"
        if count not in (-1, len(tokens)):
            return "wrong_type", "an entry of tokens is empty or has a space in it, expected one token an entry"
        found = self.grammar.explain(tokens, label)
        if found is None:
            raise AssertionError(f"the fast and the slow check disagree on {tokens} with label {label}")
        return found


class _BadRow(Exception):
    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


def _source(row: dict) -> str | None:
    source = row.get("source")
    if source is None or type(source) is str:
        return source
    if type(source) is not int:
        raise _BadRow("wrong_type", f"source is a {_json_type(source)}, expected a string or a whole number")
    return str(source)


def line_chunks(file: Path, progress: tqdm) -> Iterator[tuple[int, list[bytes]]]:
    """Lists of lines of about `CHUNK_BYTES`, each with the number of its first line."""
    number = 1
    with _open(file) as (stream, raw):
        done = 0
        while True:
            try:
                lines = stream.readlines(CHUNK_BYTES)
            except (OSError, EOFError, zstandard.ZstdError) as error:
                raise InputError(f"{file}: can't be read after line {number - 1}: {error}") from error
            progress.update(raw.tell() - done)
            done = raw.tell()
            if not lines:
                return
            if number == 1:
                lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")  # a byte order mark, as some editors write it
            yield number, lines
            number += len(lines)


@contextmanager
def _open(file: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    try:
        raw = open(file, "rb")  # noqa: SIM115 (closed by the with below)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    with raw:
        if file.suffix == ".gz":
            yield gzip.GzipFile(fileobj=raw), raw
        elif file.suffix == ".zst":
            yield io.BufferedReader(_ZstdFile(raw), buffer_size=1 << 20), raw
        else:
            yield raw, raw


class _ZstdFile(io.RawIOBase):
    """Decompressed bytes of a .zst file; the library's own reader takes a file that was cut off for one that ends."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw, self.frame, self.pending = raw, None, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self.pending:
            data = self.frame.unused_data if self.frame is not None and self.frame.eof else b""
            data = data or self.raw.read(1 << 18)
            if not data:
                if self.frame is not None and not self.frame.eof:
                    raise EOFError("the archive is cut off")
                return 0
            if self.frame is None or self.frame.eof:
                self.frame = zstandard.ZstdDecompressor().decompressobj()
            self.pending = self.frame.decompress(data)
        count = min(len(buffer), len(self.pending))
        buffer[:count], self.pending = self.pending[:count], self.pending[count:]
        return count


def _json_type(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _shorten(value: object) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 80 else text[:79] + "…"
