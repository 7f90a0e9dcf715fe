"""Raw JSONL → checked rows; every problem with its file and line.

One idea: a row in the grammar has exactly one form, so a whole chunk of rows is compared with that form at once. Chunks
of rows that all stand in the plainest spelling are decoded as words of bytes; the others are split by pyarrow and
compared by numpy; and only rows that differ take the slow path, which says in words what is wrong.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from imagelm.data.jsonl import lines
from imagelm.data.jsonl.fixed_width import BodyDecoder
from imagelm.data.rows import NO_SPLIT, SPLITS, ProblemLog, RowBatch
from imagelm.tokens.grammar import CLS, EOS, IMG, IMG_END, NUM_FRAME_TOKENS, Grammar, class_token

ORJSON_MAX_DEPTH = 1024  # what it refuses by itself


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
            for first_line, chunk in lines.line_chunks(file, progress):
                yield checker.check(str(file), first_line, chunk)


class _Checker:
    """Compares chunks of lines with the grammar; holds the look-up tables."""

    def __init__(self, grammar: Grammar, problems: ProblemLog, need_split: bool) -> None:
        self.grammar = grammar
        self.problems = problems
        self.need_split = need_split
        self.token_set = pa.array(grammar.tokens)
        self.tail = np.array([grammar.id(token) for token in (IMG_END, CLS, EOS)])
        self.decoder = BodyDecoder(grammar)
        self.tail_texts = [f"{IMG_END} {CLS} {class_token(label)} {EOS}" for label in range(grammar.num_classes)]

    def check(self, file: str, first_line: int, chunk: list[bytes]) -> RowBatch:
        return self._check_plain(file, first_line, chunk) or self._check_any(file, first_line, chunk)

    def _check_plain(self, file: str, first_line: int, chunk: list[bytes]) -> RowBatch | None:
        """The rows of a chunk where every row is in the grammar, one space between tokens of one width; else None."""
        bodies, labels, splits, sources, num_repaired = [], [], [], [], 0
        loads, need_split = orjson.loads, self.need_split
        tails, start = self.tail_texts, f"{IMG} "
        before, mended = len(start), f"{IMG_END} {CLS} {CLS} {EOS}"
        try:
            for line in chunk:
                row = loads(line)
                text, label = row["tokens"], row["label"]
                if type(text) is not str or type(label) is not int or label < 0 or text[:before] != start:
                    return None
                tail = tails[label]
                if not text.endswith(tail):
                    if not text.endswith(mended):
                        return None
                    tail, num_repaired = mended, num_repaired + 1
                if len(row) != 2 or line.count(b'"') != 6:
                    _check_unique(line, row)
                bodies.append(text[before : -len(tail)])
                labels.append(label)
                if need_split:
                    splits.append(self._split(row))
                sources.append(_source(row) if "source" in row else None)
        except (orjson.JSONDecodeError, KeyError, TypeError, IndexError, _BadRow):
            return None
        text = "".join(bodies)
        widths = np.fromiter(map(len, bodies), dtype=np.int64, count=len(bodies))
        ids = self.decoder.decode(text)
        if ids is None or (widths % self.decoder.stride).any() or not widths.all():
            return None
        return RowBatch(
            bodies=ids,
            lengths=widths // self.decoder.stride,
            labels=np.array(labels, dtype=np.int64),
            splits=np.array(splits or [NO_SPLIT] * len(labels), dtype=np.int8),
            sources=sources,
            lines=np.arange(first_line, first_line + len(labels)),
            file=file,
            num_repaired=num_repaired,
        )

    def _check_any(self, file: str, first_line: int, chunk: list[bytes]) -> RowBatch:
        texts, counts, labels, splits, sources, numbers = [], [], [], [], [], []
        bad: dict[int, tuple[str, str]] = {}
        for number, line in enumerate(chunk, start=first_line):
            if not line or line.isspace():  # empty: a byte order mark and nothing more
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
            self.problems.add(file, number, kind, reason, chunk[number - first_line])

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
            num_repaired=int((good & mended).sum()),
        )

    def _parse(self, line: bytes) -> tuple[str, int, int, int, str | None]:
        """Text of the tokens, their number (-1 where only the text tells), label, split, source."""
        if len(line) > lines.MAX_LINE_BYTES:
            raise _BadRow("line_too_long", f"longer than {lines.MAX_LINE_BYTES:,} bytes, expected a row a line")
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
        _check_unique(line, row)
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


def _check_unique(line: bytes, row: dict) -> None:
    """Refuses a key that stands twice: parsers differ in which one they take.

    Counting quotes tells it at once: a plain row has two for each key and each string.
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
        raise _BadRow("invalid_json", f"not JSON that can be read everywhere ({error})") from None
    finally:
        sys.setrecursionlimit(limit)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _BadRow("duplicate_key", f"key {_shorten(counts.most_common(1)[0][0])} stands twice, expected once")
    return content


def _source(row: dict) -> str | None:
    source = row.get("source")
    if source is None or type(source) is str:
        return source
    if type(source) is not int:
        raise _BadRow("wrong_type", f"source is a {_json_type(source)}, expected a string or a whole number")
    return str(source)


def _json_type(value: object) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _shorten(value: object) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 80 else text[:79] + "…"
