"""Which side of the split each image is on.

One idea: functions on digest, label and side. No image, and no source image, is ever in two splits. The test images are
drawn as if there were no validation split, whose images are then taken out of the training images. Draws change the
sides in place, some at a time, as there may be so many that they are in a file.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from imagelm.data.arguments import PrepareArguments
from imagelm.data.rows import SPLITS
from imagelm.utils.errors import InputError
from imagelm.utils.text import join_first, number_of, printable

TRAIN, VALIDATION, TEST = range(len(SPLITS))
DROPPED = -1
BLOCK = 1 << 18  # sides at once


def split_in_words(split_by: str, seed: int) -> str:
    """How a split is made; the seed if it has an effect."""
    return f"stratified, seed {seed}" if split_by == "stratified" else f"by {split_by}"


def present_splits(sides: np.ndarray) -> dict[str, int]:
    """The splits that have rows, in order, with their index into `SPLITS`."""
    return {name: side for side, name in enumerate(SPLITS) if num_on(sides, side)}


def num_on(sides: np.ndarray, side: int) -> int:
    """How many are on a side."""
    return sum(int(np.count_nonzero(sides[span] == side)) for span in _spans(sides))


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
        of_group = np.full(len(first), TRAIN, dtype=np.int8)
        draw_test(of_group, labels[first], test_size, seed, class_names)
        sides = of_group[group_of_row]
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
    of_group = np.full(len(first), TRAIN, dtype=np.int8)
    if options.split_by == "hash":
        hashed = hash_sides(groups[train][first], options.test_size, options.validation_size)
        of_group[hashed == VALIDATION] = VALIDATION
    notes = draw_validation(of_group, labels[train][first], class_names, options)
    sides = sides.copy()
    sides[train] = of_group[group_of_row]
    return sides, notes


def draw_validation(
    sides: np.ndarray, labels: np.ndarray, class_names: list[str], options: PrepareArguments
) -> list[str]:
    """Moves a share of the training groups to the validation split, in place, none if there are too few.

    Args:
        sides: The side of each group; with `--split_by hash`, those of the validation split are there already.
        labels: The class of each group.

    Returns:
        What is missing, in words.
    """
    share, is_hashed = options.validation_size, options.split_by == "hash"
    present = _count(sides, labels, TRAIN) + _count(sides, labels, VALIDATION)
    num_groups, num_classes = int(present.sum()), int((present > 0).sum())
    if not is_hashed:
        _draw(sides, labels, VALIDATION, int(np.ceil(share * num_groups)), options.seed)
        for label in np.flatnonzero((present > 0) & (present == _count(sides, labels, VALIDATION))).tolist():
            _put_first_back(sides, labels, label)
    drawn = _count(sides, labels, VALIDATION)
    if drawn.sum() < (1 if is_hashed else num_classes) or drawn.sum() == num_groups:
        for span in _spans(sides):
            sides[span][sides[span] == VALIDATION] = TRAIN
        return [
            f"no validation split: {num_groups} training images of {number_of(num_classes, 'class')} are "
            f"too few for a share of {share:g}, so training chooses best_model on the test rows; give more images, or "
            "a larger --validation_size"
        ]
    lacking = [printable(class_names[label]) for label in np.flatnonzero((present > 0) & (drawn == 0))]
    few = f"too few training images for a share of {share:g} in the validation split, which has none of these classes"
    return [f"{few}: {join_first(lacking)}"] if lacking else []


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
        if not num_on(sides, side):
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


def draw_test(sides: np.ndarray, labels: np.ndarray, test_size: float, seed: int, class_names: list[str]) -> None:
    """Moves a share of the training groups of each class to the test split, in place.

    Args:
        sides: The side of each group; those that are neither training nor validation groups stay out.
        labels: The class of each group.

    Raises:
        InputError: A class is too small.
    """
    counts = _count(sides, labels, TRAIN)
    present, num_groups = np.flatnonzero(counts), int(counts.sum())
    smallest = present[np.argmin(counts[present])]
    if counts[smallest] < 2:
        raise InputError(
            f"class {printable(class_names[smallest])} has 1 image, and a stratified split needs 2 of each class; "
            "add images of it, drop the class, or use --split_by hash"
        )
    num_test = int(np.ceil(test_size * num_groups))
    if min(num_test, num_groups - num_test) < len(present):
        raise InputError(
            f"{num_groups} images at --test_size {test_size} give {num_test} test rows and "
            f"{num_groups - num_test} training rows, fewer than the {len(present)} classes; "
            "add images or change --test_size"
        )
    _draw(sides, labels, TEST, num_test, seed)


def _draw(sides: np.ndarray, labels: np.ndarray, to: int, num_drawn: int, seed: int) -> None:
    """Moves training groups to another side, drawn at random within each class, each class its share."""
    counts = _count(sides, labels, TRAIN)
    present = np.flatnonzero(counts)
    generator = np.random.RandomState(seed)
    num_left_of = _share_out(counts[present], int(counts.sum()) - num_drawn, generator)
    num_drawn_of = _share_out(counts[present] - num_left_of, num_drawn, generator)
    for label, skipped, taken in zip(present, num_left_of, num_drawn_of, strict=True):
        # As `permutation`, which numbers with 8 bytes; the draws don't depend on the type.
        order = np.arange(counts[label], dtype=np.min_scalar_type(counts[label]))
        generator.shuffle(order)
        is_drawn = np.zeros(len(order), dtype=bool)
        is_drawn[order[skipped : skipped + taken]] = True
        start = 0
        for span in _spans(sides):
            members = np.flatnonzero((labels[span] == label) & (sides[span] == TRAIN))
            sides[span][members[is_drawn[start : start + len(members)]]] = to
            start += len(members)


def _put_first_back(sides: np.ndarray, labels: np.ndarray, label: int) -> None:
    """Makes the first validation group of a class a training group."""
    for span in _spans(sides):
        members = np.flatnonzero((labels[span] == label) & (sides[span] == VALIDATION))
        if len(members):
            sides[span][members[0]] = TRAIN
            return


def _count(sides: np.ndarray, labels: np.ndarray, side: int) -> np.ndarray:
    """How many groups of each class are on a side; int64, shape (classes,)."""
    num_classes = 1 + max(int(labels[span].max()) for span in _spans(labels))
    parts = (labels[span][sides[span] == side] for span in _spans(sides))
    return np.sum([np.bincount(part, minlength=num_classes) for part in parts], axis=0)


def _spans(values: np.ndarray) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, len(values), BLOCK))


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
