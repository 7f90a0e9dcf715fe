"""Digests of prepared data, and the check that the data are still what was prepared.

One idea: `stats.json` records a digest of the vocabulary, of the class names and of every column of every split; the
fingerprint is the digest of these. A reader computes the digests again and refuses changed rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from imagelm.tokens.grammar import BROKEN_TAIL_TEXT, Grammar
from imagelm.utils.text import first_line, printable

if TYPE_CHECKING:
    from datasets import Dataset

BATCH_ROWS = 1_000
NEEDED_COLUMNS = ("input_ids", "label")
IMAGE_COLUMN = "image"


class ColumnDigests:
    """Digests of the columns of one split; the same however its rows are cut into batches.

    Integers, lists of integers, text, bytes and images are known; of an image, its bytes count.
    """

    def __init__(self) -> None:
        self._states: dict[str, tuple[xxhash.xxh3_128, xxhash.xxh3_128]] = {}

    def add(self, table: pa.Table) -> None:
        """Adds the rows of a table to the digests of its columns."""
        for name, column in zip(table.column_names, table.columns, strict=True):
            states = self._states.setdefault(name, (xxhash.xxh3_128(), xxhash.xxh3_128()))
            for chunk in column.chunks:
                for state, part in zip(states, _lengths_and_values(chunk), strict=True):
                    state.update(part)

    def hexdigests(self) -> dict[str, str]:
        """The digest of each column so far."""
        return {
            name: xxhash.xxh3_128_hexdigest(lengths.digest() + values.digest())
            for name, (lengths, values) in self._states.items()
        }


def content_digests(grammar: Grammar, class_names: list[str], splits: dict[str, dict[str, str]]) -> dict[str, Any]:
    """What `stats.json` records as `digests`; `splits` are the `hexdigests` of each split."""
    return {"vocabulary": digest(grammar.tokens), "class_names": digest(class_names), **splits}


def fingerprint(digests: dict[str, Any]) -> str:
    """Identifies prepared data: equal vocabulary, class names, rows and splits give an equal fingerprint."""
    return digest(digests)


def changes(
    splits: dict[str, Dataset], stats: dict[str, Any], grammar: Grammar, with_images: bool = False
) -> Iterator[str]:
    """Yields a line for each way in which data aren't what was prepared; in constant memory.

    Data of earlier versions have no digests: their rows are compared with the grammar and the counts of `stats.json`.

    Args:
        splits: The splits to check, all or some.
        stats: The content of `stats.json`.
        grammar: The vocabulary beside the rows.
        with_images: Whether images, of which there may be gigabytes, are checked too.
    """
    recorded = stats.get("digests", {})
    now = content_digests(grammar, stats["class_names"], {})
    names = {"vocabulary": "the vocabulary", "class_names": "the class names in stats.json"}
    yield from (f"{words} changed" for key, words in names.items() if recorded.get(key, now[key]) != now[key])
    if recorded and stats["fingerprint"] != fingerprint(recorded):
        yield "the fingerprint in stats.json isn't that of its digests"
    for name, rows in splits.items():
        yield from (f"{name}: {line}" for line in _changes_of_split(name, rows, stats, grammar, with_images))


def _changes_of_split(
    split: str, rows: Dataset, stats: dict[str, Any], grammar: Grammar, with_images: bool
) -> Iterator[str]:
    recorded: dict[str, str] = stats.get("digests", {}).get(split, {})
    names = [name for name in sorted({*NEEDED_COLUMNS, *recorded}) if name != IMAGE_COLUMN or with_images]
    if split not in stats["num_rows"]:
        yield "preparation didn't write this split"
        return
    if missing := sorted(set(names) - set(rows.column_names)):
        yield f"column {', '.join(missing)} is missing"
        return
    if getattr(rows.features["label"], "names", None) != stats["class_names"]:
        yield "its class names aren't those of stats.json"
    digests, longest, counts = ColumnDigests(), 0, np.zeros(grammar.num_classes, np.int64)
    try:
        for table in _batches(rows, names):
            digests.add(table)
            lengths, _ = _lengths_and_values(table["input_ids"].combine_chunks())
            longest = max(longest, int(lengths.max(initial=0)))
            labels = _labels(table)
            counts += np.bincount(labels[(labels >= 0) & (labels < len(counts))], minlength=len(counts))
        found = digests.hexdigests()
        changed = sorted(name for name in recorded if name in found and found[name] != recorded[name])
        if changed or not recorded:
            yield from _first_bad_row(rows, grammar)
    except (pa.ArrowException, OSError, TypeError, ValueError) as error:
        yield f"its rows can't be read: {printable(first_line(error))}"
        return
    if len(rows) != stats["num_rows"][split]:
        yield f"{len(rows)} rows, but stats.json records {stats['num_rows'][split]}"
    if counts.tolist() != (known := stats["classes"].get(split)):
        yield f"{counts.tolist()} rows of the classes, but stats.json records {known}"
    if longest > stats["max_length"]:
        yield f"a row has {longest} tokens, but stats.json records at most {stats['max_length']}"
    if changed:
        yield f"other values, or another order of rows, in column {', '.join(changed)}"


def _first_bad_row(rows: Dataset, grammar: Grammar) -> Iterator[str]:
    """Names the first row that isn't a sentence of the grammar, if there is one."""
    start = 0
    for table in _batches(rows, NEEDED_COLUMNS):
        lengths, ids = _lengths_and_values(table["input_ids"].combine_chunks())
        lengths, ids, labels = np.maximum(lengths, 0), ids.astype(np.int64), _labels(table)
        good = (lengths > 0) & (labels >= 0) & (labels < grammar.num_classes)
        filled, known = lengths > 0, np.where((ids >= 0) & (ids < grammar.size), ids, -1)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        in_grammar, has_old_tail = grammar.check(
            known, np.append(offsets[:-1][filled], offsets[-1]), np.where(good, labels, 0)[filled]
        )
        good[filled] &= in_grammar & ~has_old_tail
        if not good.all():
            row = int(np.argmin(good))
            yield f"row {start + row}: {_explain(ids[offsets[row] : offsets[row + 1]], int(labels[row]), grammar)}"
            return
        start += len(lengths)


def _explain(ids: np.ndarray, label: int, grammar: Grammar) -> str:
    if (wrong := np.flatnonzero((ids < 0) | (ids >= grammar.size))).size:
        first = int(wrong[0])
        return f"token {first + 1} has id {ids[first]}, expected one of 0 to {grammar.size - 1}"
    problem = grammar.explain([grammar.tokens[i] for i in ids], label)
    return problem[1] if problem else f"it ends with {BROKEN_TAIL_TEXT}, which has no class"


def _batches(rows: Dataset, names: Iterable[str]) -> Iterator[pa.Table]:
    """The rows as Arrow tables; damaged offsets, which would lead out of a file's memory, raise an error."""
    for table in rows.select_columns(list(names)).with_format("arrow").iter(BATCH_ROWS):
        table.validate(full=True)
        yield table


def _labels(table: pa.Table) -> np.ndarray:
    """The labels, -1 where there is none; int64, shape (rows,)."""
    return table["label"].cast(pa.int64()).fill_null(-1).to_numpy()


def _lengths_and_values(array: pa.Array) -> tuple[np.ndarray, Any]:
    """The length of each entry (-1 for a missing one; int64) and all values, one after the other."""
    if pa.types.is_struct(array.type):
        array = pc.struct_field(array, "bytes")
    values: Any
    if pa.types.is_list(array.type):
        lengths, values = pc.list_value_length(array), array.flatten().to_numpy()
    elif pa.types.is_integer(array.type):
        lengths, values = pc.is_valid(array), array.fill_null(0).to_numpy()
    else:
        array = array.cast(pa.binary())
        lengths, values = pc.binary_length(array), b"".join(array.drop_null().to_pylist())
    return lengths.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False), values


def digest(content: Any) -> str:
    """The digest of what JSON can hold, whatever the order of its keys."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())
