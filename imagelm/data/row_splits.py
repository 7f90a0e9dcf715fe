"""Which rows stay, and on which side of the split each one is.

One idea: a few bytes per row (digest, label, side, flags) are on the disk, and a part of them is in memory at a time.
So an input of any size is split, exactly as `imagelm.data.splits` splits images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from imagelm.data.arguments import PrepareArguments
from imagelm.data.rows import SPLITS, RowTable
from imagelm.data.splits import (
    DROPPED,
    TRAIN,
    VALIDATION,
    check_both,
    check_groups_whole,
    draw_test,
    draw_validation,
    hash_sides,
    num_on,
    unique_digests,
)
from imagelm.utils.errors import InputError
from imagelm.utils.text import NUM_LISTED


@dataclass(frozen=True)
class Duplicates:
    """Which rows repeat an image.

    Attributes:
        keep: Rows that stay, one for each different image; bool, shape (rows,), in a file.
        num_conflicts: Rows whose image stays under another label.
        conflicts: The first of these, each with the row that stays.
    """

    keep: np.ndarray
    num_conflicts: int
    conflicts: list[tuple[int, int]]


def find_duplicates(table: RowTable) -> Duplicates:
    """Finds identical images; the first row of each stays, a test row before a validation and a training row.

    If the file names the split, an image that is in several stays in the test split and leaves the other ones: a given
    test set keeps its rows, and none of them is seen in training. The variants of a dropped image are dropped with it;
    otherwise they would stay, perhaps under a wrong label.
    """
    keep, is_original = table.column(bool), _find_originals(table)
    repeats = None if is_original is None else table.column(bool)
    conflicts: list[tuple[int, int]] = []
    num_conflicts = 0
    for numbers, rows in table.partitions("digests"):
        order = np.argsort(-rows["file_splits"], kind="stable")
        first, inverse = unique_digests(rows["digests"][order])
        twin = np.empty(len(order), dtype=np.int64)
        twin[order] = order[first][inverse]
        stays = twin == np.arange(len(order))
        keep[numbers] = stays
        if is_original is not None and repeats is not None:
            repeats[numbers] = ~stays & is_original[numbers] & is_original[numbers[twin]]
        conflicting = np.flatnonzero(rows["labels"] != rows["labels"][twin])
        num_conflicts += len(conflicting)
        listed = conflicting[:NUM_LISTED]
        conflicts += zip(numbers[listed].tolist(), numbers[twin[listed]].tolist(), strict=True)
    if repeats is not None:
        _drop_variants(keep, repeats, table)
    return Duplicates(keep, num_conflicts, sorted(conflicts)[:NUM_LISTED])


def split_rows(table: RowTable, duplicates: Duplicates, options: PrepareArguments) -> tuple[np.ndarray, list[str]]:
    """The side of each row that stays, as `assign_splits` and `cut_validation` give it, and `DROPPED` for duplicates.

    Returns:
        Index into `SPLITS`, or `DROPPED`, in a file; int8, shape (rows,); and what the validation split lacks, in
        words.
    """
    source, keep, notes = table.source, duplicates.keep, [*table.source.split_notes]
    if source.split_by == "field":
        notes += _check_field(table, keep)
    sides, labels = _read_leads(table, _find_leads(table, keep))
    if source.split_by == "hash":
        _set_hashed(sides, table, options.test_size, 0.0)
    elif source.split_by == "stratified":
        draw_test(sides, labels, options.test_size, options.seed, source.class_names)
    check_both(sides, int(np.count_nonzero(keep)), source.split_by)
    if source.validation_size and not num_on(sides, VALIDATION):
        if source.split_by == "hash":
            _set_hashed(sides, table, options.test_size, options.validation_size)
        notes += draw_validation(sides, labels, source.class_names, options)
    if table.has_sources:
        for numbers, first, group in _kept_groups(table, keep):
            sides[numbers] = sides[numbers[first]][group]
    return sides, notes


def _drop_variants(keep: np.ndarray, repeats: np.ndarray, table: RowTable) -> None:
    """Removes from `keep`, in place, the variants of images that another image repeats.

    An image that only equals a variant of another one keeps its own variants.
    """
    if repeats.any():
        for numbers, first, source in _named_groups(table):
            keep[numbers] &= ~repeats[numbers[first]][source]


def _named_groups(table: RowTable) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """As `_kept_groups`, of all rows that name their source."""
    for numbers, rows in table.partitions("groups"):
        named = rows["groups"] != rows["digests"]
        yield numbers[named], *unique_digests(rows["groups"][named])


def _check_field(table: RowTable, keep: np.ndarray) -> list[str]:
    """Refuses a split of which no row stays, and a source image with rows in two splits; gives notes."""
    notes, (given, kept) = [], np.zeros((2, len(SPLITS)), dtype=np.int64)
    for span, rows in table.chunks():
        given += np.bincount(rows["file_splits"], minlength=len(SPLITS))
        kept += np.bincount(rows["file_splits"][keep[span]], minlength=len(SPLITS))
    for side, name in enumerate(SPLITS):
        if given[side] and not kept[side]:
            problem = f"every {name} image has the same tokens as another image"
            if side != VALIDATION:
                raise InputError(f"{problem}; use a larger codebook or smaller patches")
            notes.append(f"{problem} and was dropped")
    if table.has_sources:
        for numbers, rows in table.partitions("groups"):
            own = rows[keep[numbers]]
            check_groups_whole(own["file_splits"], unique_digests(own["groups"])[1])
    return notes


def _find_leads(table: RowTable, keep: np.ndarray) -> np.ndarray:
    """The first row that stays of each group; bool, shape (rows,)."""
    if not table.has_sources:
        return keep
    leads = table.column(bool)
    for numbers, first, _ in _kept_groups(table, keep):
        leads[numbers[first]] = True
    return leads


def _read_leads(table: RowTable, leads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The side of each group's first row, that of the field or `TRAIN` (of other rows `DROPPED`), and each row's class.

    Both of shape (rows,), in files.
    """
    sides = table.column(np.int8)
    labels = table.column(np.min_scalar_type(table.source.grammar.num_classes))
    for span, rows in table.chunks():
        side = rows["file_splits"] if table.source.split_by == "field" else TRAIN
        sides[span] = np.where(leads[span], side, DROPPED)
        labels[span] = rows["labels"]
    return sides, labels


def _set_hashed(sides: np.ndarray, table: RowTable, test_size: float, validation_size: float) -> None:
    """Sets the sides of `hash_sides`, in place, where rows aren't `DROPPED`."""
    for span, rows in table.chunks():
        hashed = hash_sides(rows["groups"], test_size, validation_size)
        sides[span] = np.where(sides[span] == DROPPED, DROPPED, hashed)


def _kept_groups(table: RowTable, keep: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The groups of rows that stay, part by part: numbers of rows, the first of each group, the group of each row."""
    for numbers, rows in table.partitions("groups"):
        stays = keep[numbers]
        yield numbers[stays], *unique_digests(rows["groups"][stays])


def _find_originals(table: RowTable) -> np.ndarray | None:
    """Rows that are no variant of another row; bool, shape (rows,). None for all, if no row names its source.

    A source's first row is the image itself, the others are its variants.
    """
    if not table.has_sources:
        return None
    is_original = table.column(bool)
    for span, rows in table.chunks():
        is_original[span] = rows["groups"] == rows["digests"]
    for numbers, first, _ in _named_groups(table):
        is_original[numbers[first]] = True
    return is_original
