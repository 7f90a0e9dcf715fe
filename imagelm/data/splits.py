"""Which rows stay, and on which side of the split each one is.

One idea: pure functions on a few bytes per row (digest, label, side), so that an input of any size is split without
holding its tokens in memory. No image, and no source image, is ever in two splits. The test rows are drawn as if there
were no validation split, whose rows are then taken out of the training rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imagelm.data.arguments import PrepareArguments
from imagelm.data.rows import SPLITS, RowTable
from imagelm.utils.errors import InputError
from imagelm.utils.text import join_first, number_of, printable

TRAIN, VALIDATION, TEST = range(len(SPLITS))
DROPPED = -1


@dataclass(frozen=True)
class Duplicates:
    """Which rows repeat an image.

    Attributes:
        keep: Rows that stay, one for each different image; bool, shape (rows,).
        kept_twin: For each row the row that stays for its image; int64, shape (rows,).
        conflicting: Rows whose image stays under another label; bool, shape (rows,).
    """

    keep: np.ndarray
    kept_twin: np.ndarray
    conflicting: np.ndarray


def split_in_words(split_by: str, seed: int) -> str:
    """How a split is made; the seed if it has an effect."""
    return f"stratified, seed {seed}" if split_by == "stratified" else f"by {split_by}"


def present_splits(sides: np.ndarray) -> dict[str, int]:
    """The splits that have rows, in order, with their index into `SPLITS`."""
    return {name: side for side, name in enumerate(SPLITS) if (sides == side).any()}


def find_duplicates(table: RowTable) -> Duplicates:
    """Finds identical images; the first row of each stays, a test row before a validation and a training row.

    If the file names the split, an image that is in several stays in the test split and leaves the other ones: a given
    test set keeps its rows, and none of them is seen in training. The variants of a dropped image are dropped with it;
    otherwise they would stay, perhaps under a wrong label.
    """
    order = np.argsort(-table.file_splits, kind="stable")
    first, inverse = _unique(table.digests[order])
    kept_twin = np.empty(len(order), dtype=np.int64)
    kept_twin[order] = order[first][inverse]
    keep = kept_twin == np.arange(len(order))
    _drop_variants(keep, kept_twin, table.groups, table.digests)
    return Duplicates(keep, kept_twin, conflicting=table.labels != table.labels[kept_twin])


def drop_repeated(sides: np.ndarray, digests: np.ndarray) -> list[str]:
    """Drops, in place, images that an image of a later split repeats; gives notes for the summary.

    This comes before they are augmented: their variants would stay in the training split.

    Args:
        sides: The side of each image; shape (images,).
        digests: Of each image; `DIGEST_DTYPE`, shape (images,).
    """
    notes: list[str] = []
    for side, name in ((VALIDATION, "validation"), (TRAIN, "training")):
        for later in range(TEST, side, -1):
            theirs = set(map(bytes, digests[sides == later]))
            repeated = [i for i in np.flatnonzero(sides == side) if bytes(digests[i]) in theirs]
            sides[repeated] = DROPPED
            if repeated:
                notes.append(f"{len(repeated)} {name} images are {SPLITS[later]} images too and were dropped")
    return notes


def split_rows(table: RowTable, duplicates: Duplicates, options: PrepareArguments) -> tuple[np.ndarray, list[str]]:
    """The side of each row that stays, by `assign_splits` and `cut_validation`, and `DROPPED` for duplicates.

    Returns:
        Index into `SPLITS`, or `DROPPED`; int8, shape (rows,); and what the validation split lacks, in words.
    """
    source, keep, notes = table.source, duplicates.keep, [*table.source.split_notes]
    labels, groups, file_splits = table.labels[keep], table.groups[keep], table.file_splits[keep]
    if source.split_by == "field":
        for side, name in enumerate(SPLITS):
            if (table.file_splits == side).any() and not (file_splits == side).any():
                problem = f"every {name} image has the same tokens as another image"
                if side != VALIDATION:
                    raise InputError(f"{problem}; use a larger codebook or smaller patches")
                notes.append(f"{problem} and was dropped")
    sides = np.full(len(keep), DROPPED, dtype=np.int8)
    how = (source.split_by, options.test_size, options.seed)
    sides[keep] = assign_splits(*how, labels, groups, file_splits, source.class_names)
    if source.validation_size:
        sides[keep], found = cut_validation(sides[keep], labels, groups, source.class_names, options)
        notes += found
    return sides, notes


def assign_splits(
    split_by: str,
    test_size: float,
    seed: int,
    labels: np.ndarray,
    groups: np.ndarray,
    file_splits: np.ndarray,
    class_names: list[str],
) -> np.ndarray:
    """The side of each row, all rows of a group on the same one.

    Args:
        split_by: "stratified" draws at random within each class; "hash" derives the side from the group's digest, so
            that it never changes as the data grow; "field" takes the split that the file names.
        test_size: Share of test groups, between 0 and 1.
        seed: Of the draw; used by "stratified" alone.
        labels, file_splits: Class of each row, and the split that the file names; shape (rows,).
        groups: Digest of each row's source image (of its own image if none is named); `DIGEST_DTYPE`, shape (rows,).
        class_names: For error messages, indexed by label.

    Returns:
        Index into `SPLITS`; int8, shape (rows,).

    Raises:
        InputError: A side would be empty, a class is too small to be stratified, or a source image is on both sides.
    """
    first, group_of_row = _number_groups(groups)
    if split_by == "field":
        sides = file_splits
        _check_groups_whole(sides, group_of_row)
    elif split_by == "hash":
        sides = np.where(groups["high"] < np.uint64(test_size * 2**64), TEST, TRAIN)
    else:
        sides = _stratified(labels[first], test_size, seed, class_names)[group_of_row]
    for side in (TRAIN, TEST):
        if not (sides == side).any():
            what = f"the {SPLITS[side]} split is empty"
            raise InputError(f"{what} ({len(sides)} rows, --split_by {split_by}); give more rows")
    return sides.astype(np.int8)


def cut_validation(
    sides: np.ndarray, labels: np.ndarray, groups: np.ndarray, class_names: list[str], options: PrepareArguments
) -> tuple[np.ndarray, list[str]]:
    """Moves a share of the training groups, `--validation_size`, to the validation split, unless there is one.

    Groups are drawn within each class by the seed, or by their digest with `--split_by hash`. A class keeps at least
    one training group.

    Args:
        sides: The side of each row, as `assign_splits` gives it; shape (rows,).
        labels, groups, class_names: As for `assign_splits`.

    Returns:
        The sides, and what is missing, in words: classes, or the whole split where there are too few training groups.
    """
    share = options.validation_size
    if not share or (sides == VALIDATION).any():
        return sides, []
    train = np.flatnonzero(sides == TRAIN)
    first, group_of_row = _number_groups(groups[train])
    label_of_group = labels[train][first]
    present = np.unique(label_of_group)
    if options.split_by == "hash":  # the part of the digests that follows that of the test split
        limit, needed = options.test_size + (1 - options.test_size) * share, 1
        drawn = groups[train]["high"][first] < np.uint64(limit * 2**64)
    else:
        num_drawn, needed = int(np.ceil(share * len(first))), len(present)
        drawn = _draw(label_of_group, num_drawn, options.seed)
        for label in present:
            if drawn[members := label_of_group == label].all():
                drawn[np.argmax(members)] = False
    if drawn.sum() < needed or drawn.all():
        return sides, [
            f"no validation split: {len(first)} training images of {number_of(len(present), 'class')} are "
            f"too few for a share of {share:g}, so training chooses best_model on the test rows; give more images, or "
            "a larger --validation_size"
        ]
    sides = sides.copy()
    sides[train[drawn[group_of_row]]] = VALIDATION
    lacking = [printable(class_names[label]) for label in np.setdiff1d(present, label_of_group[drawn])]
    few = f"too few training images for a share of {share:g} in the validation split, which has none of these classes"
    return sides, [f"{few}: {join_first(lacking)}"] if lacking else []


def _drop_variants(keep: np.ndarray, kept_twin: np.ndarray, groups: np.ndarray, digests: np.ndarray) -> None:
    """Removes from `keep`, in place, the variants of images that another image repeats.

    A source's first row is the image itself, the others are its variants. An image that only equals a variant of
    another one keeps its own variants.
    """
    named = np.flatnonzero(groups != digests)
    first, source = _unique(groups[named])
    is_original = np.ones(len(groups), dtype=bool)
    is_original[named] = False
    is_original[named[first]] = True
    repeats = ~keep & is_original & is_original[kept_twin]
    keep[named] &= ~repeats[named[first]][source]


def _unique(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`np.unique`'s index of the first of each, and inverse; its comparison of two fields at a time is slow."""
    order = np.lexsort((digests["low"], digests["high"]))
    high, low = digests["high"][order], digests["low"][order]
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    inverse = np.empty(len(order), dtype=np.int64)
    inverse[order] = np.cumsum(is_new) - 1
    return order[is_new], inverse


def _number_groups(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first row of each group, and the group of each row, numbered in the order of their first rows.

    So a draw among them depends on the data alone.
    """
    first, group_of_row = _unique(groups)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return np.sort(first), rank[group_of_row]


def _stratified(labels: np.ndarray, test_size: float, seed: int, class_names: list[str]) -> np.ndarray:
    counts = np.bincount(labels)
    present = np.flatnonzero(counts)
    smallest = present[np.argmin(counts[present])]
    if counts[smallest] < 2:
        raise InputError(
            f"class {printable(class_names[smallest])} has 1 image, and a stratified split needs 2 of each class; "
            "add images of it, drop the class, or use --split_by hash"
        )
    num_test = int(np.ceil(test_size * len(labels)))
    if min(num_test, len(labels) - num_test) < len(present):
        raise InputError(
            f"{len(labels)} images at --test_size {test_size} give {num_test} test rows and "
            f"{len(labels) - num_test} training rows, fewer than the {len(present)} classes; "
            "add images or change --test_size"
        )
    return np.where(_draw(labels, num_test, seed), TEST, TRAIN)


def _draw(labels: np.ndarray, num_drawn: int, seed: int) -> np.ndarray:
    """Draws at random within each class, each class its share; bool, the shape of `labels`."""
    counts = np.bincount(labels)
    present = np.flatnonzero(counts)
    generator = np.random.RandomState(seed)
    num_left_of = _share_out(counts[present], len(labels) - num_drawn, generator)
    num_drawn_of = _share_out(counts[present] - num_left_of, num_drawn, generator)
    drawn = np.zeros(len(labels), dtype=bool)
    for label, skipped, taken in zip(present, num_left_of, num_drawn_of, strict=True):
        rows = np.flatnonzero(labels == label)
        drawn[rows[generator.permutation(len(rows))[skipped : skipped + taken]]] = True
    return drawn


def _share_out(counts: np.ndarray, num_draws: int, generator: np.random.RandomState) -> np.ndarray:
    """How many draws each class gets: its share, the rest to the largest remainders, ties at random.

    Draw for draw what scikit-learn's `StratifiedShuffleSplit` does, whose import takes longer than 100,000 rows.
    """
    exact = counts / counts.sum() * num_draws
    shares = np.floor(exact)
    rest = int(num_draws - shares.sum())
    remainders = exact - shares
    for value in np.unique(remainders)[::-1] if rest > 0 else ():
        tied = np.flatnonzero(remainders == value)
        chosen = generator.choice(tied, size=min(len(tied), rest), replace=False)
        shares[chosen] += 1
        rest -= len(chosen)
        if rest == 0:
            break
    return shares.astype(int)


def _check_groups_whole(sides: np.ndarray, group_of_row: np.ndarray) -> None:
    num_groups = group_of_row.max(initial=-1) + 1
    lowest, highest = np.full(num_groups, len(SPLITS)), np.full(num_groups, -1)
    np.minimum.at(lowest, group_of_row, sides)
    np.maximum.at(highest, group_of_row, sides)
    torn = np.flatnonzero(lowest < highest)
    if len(torn):
        first, second = SPLITS[lowest[torn[0]]], SPLITS[highest[torn[0]]]
        raise InputError(
            f"{len(torn)} source images have rows in two splits, such as {first} and {second}; "
            "give all rows with the same source the same split"
        )
