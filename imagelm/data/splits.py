"""Which side of the split each image is on.

One idea: pure functions on digest, label and side. No image, and no source image, is ever in two splits. The test
images are drawn as if there were no validation split, whose images are then taken out of the training images.
"""

from __future__ import annotations

import numpy as np

from imagelm.data.arguments import PrepareArguments
from imagelm.data.rows import SPLITS
from imagelm.utils.errors import InputError
from imagelm.utils.text import join_first, number_of, printable

TRAIN, VALIDATION, TEST = range(len(SPLITS))
DROPPED = -1
COUNTED = 1 << 20  # labels at once


def split_in_words(split_by: str, seed: int) -> str:
    """How a split is made; the seed if it has an effect."""
    return f"stratified, seed {seed}" if split_by == "stratified" else f"by {split_by}"


def present_splits(sides: np.ndarray) -> dict[str, int]:
    """The splits that have rows, in order, with their index into `SPLITS`."""
    return {name: side for side, name in enumerate(SPLITS) if (sides == side).any()}


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
        check_groups_whole(sides, group_of_row)
    elif split_by == "hash":
        sides = hash_sides(groups, test_size)
    else:
        sides = draw_test(labels[first], test_size, seed, class_names)[group_of_row]
    check_both(sides, len(sides), split_by)
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
    if not options.validation_size or (sides == VALIDATION).any():
        return sides, []
    train = np.flatnonzero(sides == TRAIN)
    first, group_of_row = _number_groups(groups[train])
    hashed = hash_sides(groups[train][first], options.test_size, options.validation_size) == VALIDATION
    drawn, notes = draw_validation(labels[train][first], hashed, class_names, options)
    sides = sides.copy()
    sides[train[drawn[group_of_row]]] = VALIDATION
    return sides, notes


def draw_validation(
    labels: np.ndarray, hashed: np.ndarray, class_names: list[str], options: PrepareArguments
) -> tuple[np.ndarray, list[str]]:
    """Which training groups go to the validation split, none if there are too few; and what is missing, in words.

    `labels` is the class of each group, and `hashed` what `--split_by hash` gives to the split; shape (groups,).
    """
    share, present = options.validation_size, np.unique(labels)
    if options.split_by == "hash":
        drawn, needed = hashed, 1
    else:
        drawn, needed = _draw(labels, int(np.ceil(share * len(labels))), options.seed), len(present)
        for label in present:
            if drawn[members := labels == label].all():
                drawn[np.argmax(members)] = False
    if drawn.sum() < needed or drawn.all():
        return np.zeros(len(labels), dtype=bool), [
            f"no validation split: {len(labels)} training images of {number_of(len(present), 'class')} are "
            f"too few for a share of {share:g}, so training chooses best_model on the test rows; give more images, or "
            "a larger --validation_size"
        ]
    lacking = [printable(class_names[label]) for label in np.setdiff1d(present, labels[drawn])]
    few = f"too few training images for a share of {share:g} in the validation split, which has none of these classes"
    return drawn, [f"{few}: {join_first(lacking)}"] if lacking else []


def hash_sides(groups: np.ndarray, test_size: float, validation_size: float = 0.0) -> np.ndarray:
    """The side of each group by its digest; the validation split's part of the digests follows that of the test split.

    int8, shape (groups,).
    """
    limits = test_size, test_size + (1 - test_size) * validation_size
    is_test, is_held_out = (groups["high"] < np.uint64(limit * 2**64) for limit in limits)
    return np.where(is_test, TEST, np.where(is_held_out, VALIDATION, TRAIN)).astype(np.int8)


def check_both(sides: np.ndarray, num_rows: int, split_by: str) -> None:
    """Raises an InputError if the training or the test split is empty."""
    for side in (TRAIN, TEST):
        if not (sides == side).any():
            what = f"the {SPLITS[side]} split is empty"
            raise InputError(f"{what} ({num_rows} rows, --split_by {split_by}); give more rows")


def unique_digests(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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
    first, group_of_row = unique_digests(groups)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return np.sort(first), rank[group_of_row]


def draw_test(labels: np.ndarray, test_size: float, seed: int, class_names: list[str]) -> np.ndarray:
    """The side of each group: `TEST` for a share of each class, else `TRAIN`; `labels` is the class of each group.

    Raises:
        InputError: A class is too small.
    """
    counts = _count(labels)
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
    counts = _count(labels)
    present = np.flatnonzero(counts)
    generator = np.random.RandomState(seed)
    num_left_of = _share_out(counts[present], len(labels) - num_drawn, generator)
    num_drawn_of = _share_out(counts[present] - num_left_of, num_drawn, generator)
    drawn = np.zeros(len(labels), dtype=bool)
    for label, skipped, taken in zip(present, num_left_of, num_drawn_of, strict=True):
        rows = np.flatnonzero(labels == label)
        drawn[rows[generator.permutation(len(rows))[skipped : skipped + taken]]] = True
    return drawn


def _count(labels: np.ndarray) -> np.ndarray:
    """`np.bincount`, which makes a copy of eight bytes a value, in parts."""
    parts, size = np.array_split(labels, -(-len(labels) // COUNTED)), int(labels.max()) + 1
    return np.sum([np.bincount(part, minlength=size) for part in parts], axis=0)


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


def check_groups_whole(sides: np.ndarray, group_of_row: np.ndarray) -> None:
    """Raises an InputError if a group has rows on two sides."""
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
