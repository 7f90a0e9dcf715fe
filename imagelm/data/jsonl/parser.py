"""Raw JSONL → checked rows; every problem with its file and line.

One idea: a whole chunk of rows is compared with the grammar at once. Chunks of rows in the plainest spelling are
decoded as words of bytes; all others are split by pyarrow and checked by numpy; only bad rows take the slow path, which
explains what is wrong.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from imagelm.data.jsonl import lines
from imagelm.data.jsonl.fixed_width import BodyDecoder
from imagelm.data.rows import NO_SPLIT, SPLITS, ProblemLog, RowBatch
from imagelm.tokens.grammar import BROKEN_TAIL_TEXT, HEAD_TEXT, NUM_FRAME_TOKENS, BadRow, Grammar
from imagelm.utils.text import shorten

SPLIT_NAMES = ", ".join(f'"{name}"' for name in SPLITS)
ORJSON_MAX_DEPTH = 1024  # orjson refuses deeper nesting


def read_rows(
    files: list[Path], grammar: Grammar, problems: ProblemLog, need_split: bool, share: tuple[int, int] = (0, 1)
) -> Iterator[RowBatch]:
    """Reads and checks every row of a share of JSONL files (plain, .gz or .zst), a chunk at a time.

    A row is a JSON object with `tokens` (one string with spaces, or a list of strings) and `label` (int). Optional:
    `split` (one of `SPLITS`) and `source` (str or int, the image that this row is a variant of). Blank lines are
    skipped. Bad rows go to `problems`; with `need_split` a row without `split` is one.

    Raises:
        InputError: A file can't be read or decompressed.
    """
    checker = RowChecker(grammar, problems, need_split)
    parts = list(lines.share_of_files(files, share))
    total = sum(file.stat().st_size if stop is None else stop * lines.CHUNK_BYTES for file, _, stop in parts)
    with tqdm(total=total, unit="B", unit_scale=True, desc="reading", disable=None) as progress:
        for file, first, stop in parts:
            for first_line, chunk in lines.line_chunks(file, progress, first, stop):
                yield checker.check(str(file), first_line, chunk)


class RowChecker:
    """Compares chunks of lines with the grammar; holds the look-up tables. The arguments are those of `read_rows`."""

    def __init__(self, grammar: Grammar, problems: ProblemLog, need_split: bool) -> None:
        self.grammar, self.problems, self.need_split = grammar, problems, need_split
        self.token_set = pa.array(grammar.tokens)
        self.decoder = BodyDecoder(grammar)
        self.tail_texts = [grammar.tail_text(label) for label in range(grammar.num_classes)]

    def check(self, file: str, first_line: int, chunk: list[bytes]) -> RowBatch:
        """The good rows of a chunk; its bad ones are reported."""
        return self.check_plain(file, first_line, chunk) or self.check_any(file, first_line, chunk)

    def check_plain(self, file: str, first_line: int, chunk: list[bytes]) -> RowBatch | None:
        """The rows of a chunk if all are in the grammar with one space between tokens of one width; else None."""
        bodies: list[str] = []
        labels: list[int] = []
        splits: list[int] = []
        sources: list[str | None] = []
        num_repaired = 0
        loads, need_split = orjson.loads, self.need_split
        tails, start = self.tail_texts, f"{HEAD_TEXT} "
        before = len(start)
        try:
            for line in chunk:
                row = loads(line)
                text, label = row["tokens"], row["label"]
                if type(text) is not str or type(label) is not int or label < 0 or text[:before] != start:
                    return None
                tail = tails[label]
                if not text.endswith(tail):
                    if not text.endswith(BROKEN_TAIL_TEXT):
                        return None
                    tail, num_repaired = BROKEN_TAIL_TEXT, num_repaired + 1
                if len(row) != 2 or line.count(b'"') != 6:
                    _check_unique(line, row)
                bodies.append(text[before : -len(tail)])
                labels.append(label)
                if need_split:
                    splits.append(self._split(row))
                sources.append(_source(row) if "source" in row else None)
        except (orjson.JSONDecodeError, KeyError, TypeError, IndexError, BadLine):
            return None
        text = "".join(bodies)
        widths = np.fromiter(map(len, bodies), dtype=np.int64, count=len(bodies))
        ids = self.decoder.decode(text)
        stride = self.decoder.stride
        if ids is None or (widths % stride).any() or not widths.all():
            return None
        return RowBatch(
            bodies=ids,
            lengths=widths // stride,
            labels=np.array(labels, dtype=np.int64),
            splits=np.array(splits or [NO_SPLIT] * len(labels), dtype=np.int8),
            sources=sources,
            lines=np.arange(first_line, first_line + len(labels)),
            file=file,
            num_repaired=num_repaired,
        )

    def check_any(self, file: str, first_line: int, chunk: list[bytes]) -> RowBatch:
        """The good rows of a chunk in any spelling; its bad ones are reported."""
        rows: list[_RawRow] = []
        bad: dict[int, tuple[str, str]] = {}
        for number, line in enumerate(chunk, start=first_line):
            if not line or line.isspace():  # empty: a byte order mark and nothing more
                continue
            try:
                rows.append(self._parse(line, number))
            except BadLine as error:
                bad[number] = error.problem
        labels = np.array([row.label for row in rows], dtype=np.int64)
        counts = np.array([row.num_tokens for row in rows], dtype=np.int64)
        texts = pa.array([row.text for row in rows], type=pa.large_string())
        words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(texts))
        offsets = words.offsets.to_numpy().astype(np.int64)
        ids = pc.fill_null(pc.index_in(words.values, value_set=self.token_set), -1).to_numpy()  # -1: unknown
        lengths = np.diff(offsets)
        good, repaired = self.grammar.check(ids, offsets, labels)
        good &= (counts == -1) | (counts == lengths)
        for i in np.flatnonzero(~good):
            bad[rows[i].line] = self._explain(words[i].as_py(), rows[i])
        for number, (kind, reason) in sorted(bad.items()):
            self.problems.add(file, number, kind, reason, chunk[number - first_line])

        ids = ids[np.repeat(good, lengths)]
        return RowBatch(
            bodies=ids[self.grammar.is_code[ids]],
            lengths=lengths[good] - NUM_FRAME_TOKENS,
            labels=labels[good],
            splits=np.array([row.split for row in rows], dtype=np.int8)[good],
            sources=[rows[i].source for i in np.flatnonzero(good)],
            lines=np.array([row.line for row in rows], dtype=np.int64)[good],
            file=file,
            num_repaired=int((good & repaired).sum()),
        )

    def _parse(self, line: bytes, number: int) -> _RawRow:
        if len(line) > lines.MAX_LINE_BYTES:
            raise BadLine("line_too_long", f"longer than {lines.MAX_LINE_BYTES:,} bytes, expected one row per line")
        row, text, count = parse_object(line, ("tokens", "label"))
        label = row["label"]
        if type(label) is not int:
            raise BadLine("wrong_type", f"label is {_shorten(label)}, expected a whole number")
        if not 0 <= label < self.grammar.num_classes:
            raise BadLine("label_out_of_range", f"label {label}, expected 0 to {self.grammar.num_classes - 1}")
        _check_unique(line, row)
        return _RawRow(text, count, label, self._split(row), _source(row), number)

    def _split(self, row: dict) -> int:
        if not self.need_split:
            return NO_SPLIT
        if "split" not in row:
            raise BadLine("missing_key", f"no key 'split', expected {SPLIT_NAMES} because --split_by is field")
        if row["split"] not in SPLITS:
            raise BadLine("wrong_split", f"split is {_shorten(row['split'])}, expected {SPLIT_NAMES}")
        return SPLITS.index(row["split"])

    def _explain(self, tokens: list[str], row: _RawRow) -> tuple[str, str]:
        if any(tokens) and row.num_tokens not in (-1, len(tokens)):
            return "wrong_type", "an entry of tokens is empty or contains a space, expected one token per entry"
        found = self.grammar.explain(tokens, row.label)
        assert found is not None, f"the fast and the slow check disagree on {tokens} with label {row.label}"
        return found


class _RawRow(NamedTuple):
    """A row as its line gives it; `num_tokens` is the length of a list of tokens, -1 for a text."""

    text: str
    num_tokens: int
    label: int
    split: int
    source: str | None
    line: int


class BadLine(BadRow):
    """A line that isn't a row: the kind of its problem, and the reason."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.problem = (kind, reason)


def parse_object(line: bytes | str, keys: tuple[str, ...]) -> tuple[dict, str, int]:
    """A line's object, which holds these keys; its `tokens` as text; and how many there are, -1 if they aren't a list.

    Raises:
        BadLine: It isn't such an object.
    """
    expected = f"expected an object with {' and '.join(keys)}"
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise BadLine("invalid_json", f"not JSON ({error}), {expected}") from None
    if type(row) is not dict:
        raise BadLine("not_an_object", f"{_shorten(row)}, {expected}")
    for key in keys:
        if key not in row:
            raise BadLine("missing_key", f"no key {key!r}, {expected}; found {_shorten(list(row))}")
    tokens = row["tokens"]
    if type(tokens) is str:
        return row, tokens, -1
    if type(tokens) is not list:
        raise BadLine("wrong_type", f"tokens is {_shorten(tokens)}, expected a string or a list of strings")
    try:
        return row, " ".join(tokens), len(tokens)
    except TypeError:
        wrong = next(token for token in tokens if type(token) is not str)
        raise BadLine("wrong_type", f"tokens holds {_shorten(wrong)}, expected strings only") from None


def _check_unique(line: bytes, row: dict) -> None:
    """Refuses a key that occurs twice, because parsers differ in which one they take.

    Counting quotes is enough for most rows: a plain row has two for each key and each string.
    """
    strings = sum(type(value) is str for value in row.values())
    tokens = len(row["tokens"]) if type(row["tokens"]) is list else 0
    if line.count(b'"') == 2 * (len(row) + strings + tokens):
        return
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + 4 * ORJSON_MAX_DEPTH)
    try:
        json.loads(line, object_pairs_hook=_unique)
    except ValueError as error:  # a number of thousands of digits
        raise BadLine("invalid_json", f"not JSON that can be read everywhere ({error})") from None
    finally:
        sys.setrecursionlimit(limit)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise BadLine("duplicate_key", f"key {_shorten(counts.most_common(1)[0][0])} occurs twice, expected once")
    return content


def _source(row: dict) -> str | None:
    source = row.get("source")
    if source is None or type(source) is str:
        return source
    if type(source) is not int:
        raise BadLine("wrong_type", f"source is {_shorten(source)}, expected a string or a whole number")
    return str(source)


def _shorten(value: object) -> str:
    return shorten(orjson.dumps(value).decode(), 80)
