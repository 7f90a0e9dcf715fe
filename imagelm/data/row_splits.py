"""Which rows stay, and on which side of the split each one is.

One idea: a few bytes per row (digest, label, side) are on the disk, and a part of them is sorted at a time; the memory
holds a few flags of each row. So an input of any size is split, exactly as `imagelm.data.splits` splits images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from imagelm.data.arguments import PrepareArguments
from imagelm.data.rows import SPLITS, RowTable
from imagelm.data.splits import (
    DROPPED,
    TEST,
    TRAIN,
    VALIDATION,
    check_both,
    check_groups_whole,
    draw_test,
    draw_validation,
    hash_sides,
    unique_digests,
)
from imagelm.utils.errors import InputError
from imagelm.utils.text import NUM_LISTED


@dataclass(frozen=True)
class Duplicates:
    """Which rows repeat an image.

    Attributes:
        keep: Rows that stay, one for each different image; bool, shape (rows,).
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
    keep, repeats = (np.zeros(table.num_rows, dtype=bool) for _ in range(2))
    is_original = _find_originals(table)
    conflicts: list[tuple[int, int]] = []
    num_conflicts = 0
    for numbers, rows in table.partitions("digests"):
        order = np.argsort(-rows["file_splits"], kind="stable")
        first, inverse = unique_digests(rows["digests"][order])
        twin = np.empty(len(order), dtype=np.int64)
        twin[order] = order[first][inverse]
        stays = twin == np.arange(len(order))
        keep[numbers] = stays
        repeats[numbers] = ~stays & is_original[numbers] & is_original[numbers[twin]]
        conflicting = np.flatnonzero(rows["labels"] != rows["labels"][twin])
        num_conflicts += len(conflicting)
        listed = conflicting[:NUM_LISTED]
        conflicts += zip(numbers[listed].tolist(), numbers[twin[listed]].tolist(), strict=True)
    _drop_variants(keep, repeats, table)
    return Duplicates(keep, num_conflicts, sorted(conflicts)[:NUM_LISTED])


def split_rows(table: RowTable, duplicates: Duplicates, options: PrepareArguments) -> tuple[np.ndarray, list[str]]:
    """The side of each row that stays, as `assign_splits` and `cut_validation` give it, and `DROPPED` for duplicates.

    Returns:
        Index into `SPLITS`, or `DROPPED`; int8, shape (rows,); and what the validation split lacks, in words.
    """
    source, keep, notes = table.source, duplicates.keep, [*table.source.split_notes]
    if source.split_by == "field":
        notes += _check_field(table, keep)
    leads = _find_leads(table, keep)
    labels, hints = _read_leads(table, leads, options)
    if source.split_by == "stratified":
        of_group = draw_test(labels, options.test_size, options.seed, source.class_names)
    else:
        of_group = hints if source.split_by == "field" else np.where(hints == TEST, TEST, TRAIN)
    of_group = of_group.astype(np.int8)
    check_both(of_group, int(keep.sum()), source.split_by)
    if source.validation_size and not (of_group == VALIDATION).any():
        train = of_group == TRAIN
        drawn, found = draw_validation(labels[train], hints[train] == VALIDATION, source.class_names, options)
        of_group[train] = np.where(drawn, VALIDATION, TRAIN)
        notes += found
    sides = np.full(table.num_rows, DROPPED, dtype=np.int8)
    sides[leads] = of_group
    if table.has_sources:
        for numbers, first, group in _kept_groups(table, keep):
            sides[numbers] = sides[numbers[first]][group]
    return sides, notes


def _drop_variants(keep: np.ndarray, repeats: np.ndarray, table: RowTable) -> None:
    """Removes from `keep`, in place, the variants of images that another image repeats.

    An image that only equals a variant of another one keeps its own variants.
    """
    if table.has_sources and repeats.any():
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
    leads = keep.copy()
    if table.has_sources:
        for numbers, first, _ in _kept_groups(table, keep):
            leads[numbers] = False
            leads[numbers[first]] = True
    return leads


def _read_leads(table: RowTable, leads: np.ndarray, options: PrepareArguments) -> tuple[np.ndarray, np.ndarray]:
    """Of each group the class, and the side that its digest or the field gives; shape (groups,)."""
    labels, hints = [], []
    for span, rows in table.chunks():
        own = rows[leads[span]]
        labels.append(own["labels"].astype(np.min_scalar_type(table.source.grammar.num_classes)))
        is_field = table.source.split_by == "field"
        sides = (
            own["file_splits"] if is_field else hash_sides(own["groups"], options.test_size, options.validation_size)
        )
        hints.append(sides.copy())
    return np.concatenate(labels), np.concatenate(hints)


def _kept_groups(table: RowTable, keep: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The groups of rows that stay, part by part: numbers of rows, the first of each group, the group of each row."""
    for numbers, rows in table.partitions("groups"):
        stays = keep[numbers]
        yield numbers[stays], *unique_digests(rows["groups"][stays])


def _find_originals(table: RowTable) -> np.ndarray:
    """Rows that are no variant of another row; bool, shape (rows,).

    A source's first row is the image itself, the others are its variants.
    """
    is_original = np.ones(table.num_rows, dtype=bool)
    if table.has_sources:
        for numbers, first, _ in _named_groups(table):
            is_original[numbers] = False
            is_original[numbers[first]] = True
    return is_original
