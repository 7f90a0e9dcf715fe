"""Which rows stay, and on which side of the split each one is.

One idea: pure functions on a few bytes per row (digest, label, side), so that an input of any size is split without
holding its tokens in memory. No image, and no source image, is ever on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from imagelm.data.rows import SPLITS, RowTable
from imagelm.utils.errors import InputError
from imagelm.utils.text import printable

TRAIN, TEST = SPLITS.index("train"), SPLITS.index("test")
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


def find_duplicates(table: RowTable) -> Duplicates:
    """Finds identical images; the first row of each stays, a test row before a training row.

    If the file names the split, an image that is on both sides stays in the test split and leaves the training split:
    a given test set keeps its rows, and none of them is seen in training. The variants of a dropped image are dropped
    with it; otherwise they would stay, perhaps under a wrong label.
    """
    order = np.argsort(table.file_splits != TEST, kind="stable")
    first, inverse = _unique(table.digests[order])
    kept_twin = np.empty(len(order), dtype=np.int64)
    kept_twin[order] = order[first][inverse]
    keep = kept_twin == np.arange(len(order))
    _drop_variants(keep, kept_twin, table.groups, table.digests)
    return Duplicates(keep, kept_twin, conflicting=table.labels != table.labels[kept_twin])


def split_rows(table: RowTable, duplicates: Duplicates, test_size: float, seed: int) -> np.ndarray:
    """The side of each row that stays, by `assign_splits`, and `DROPPED` for duplicates; int8, shape (rows,)."""
    keep, split_by = duplicates.keep, table.source.split_by
    if split_by == "field":
        for side, name in enumerate(SPLITS):
            if (table.file_splits == side).any() and not (table.file_splits[keep] == side).any():
                raise InputError(
                    f"every {name} image has the same tokens as another image; use a larger codebook or smaller patches"
                )
    labels, groups, file_splits = table.labels[keep], table.groups[keep], table.file_splits[keep]
    sides = np.full(len(keep), DROPPED, dtype=np.int8)
    sides[keep] = assign_splits(split_by, test_size, seed, labels, groups, file_splits, table.source.class_names)
    return sides


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
    first, group_of_row = _unique(groups)
    if split_by == "field":
        sides = file_splits
        _check_groups_whole(sides, group_of_row)
    elif split_by == "hash":
        sides = np.where(groups["high"] < np.uint64(test_size * 2**64), TEST, TRAIN)
    else:
        # Groups are numbered in the order of their first row, so that the draw depends on the data alone.
        rank = np.empty(len(first), dtype=np.int64)
        rank[np.argsort(first, kind="stable")] = np.arange(len(first))
        group_of_row = rank[group_of_row]
        sides = _stratified(labels[np.sort(first)], test_size, seed, class_names)[group_of_row]
    for side, name in enumerate(SPLITS):
        if not (sides == side).any():
            raise InputError(f"the {name} split is empty ({len(sides)} rows, --split_by {split_by}); give more rows")
    return sides.astype(np.int8)


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
    generator = np.random.RandomState(seed)
    num_train_of = _share_out(counts[present], len(labels) - num_test, generator)
    num_test_of = _share_out(counts[present] - num_train_of, num_test, generator)
    sides = np.full(len(labels), TRAIN)
    for label, skipped, taken in zip(present, num_train_of, num_test_of, strict=True):
        rows = np.flatnonzero(labels == label)
        sides[rows[generator.permutation(len(rows))[skipped : skipped + taken]]] = TEST
    return sides


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
    num_test = np.bincount(group_of_row, weights=sides == TEST, minlength=num_groups)
    num_rows = np.bincount(group_of_row, minlength=num_groups)
    torn = np.flatnonzero((num_test > 0) & (num_test < num_rows))
    if len(torn):
        raise InputError(
            f"{len(torn)} source images have rows in both the train and the test split; "
            "give all rows with the same source the same split"
        )
