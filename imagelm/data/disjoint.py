"""The check that no image is in two splits.

One idea: the images of the splits that are evaluated are few, and 8 bytes of each are kept, sorted; the training rows,
which may be many, or a stream, pass by.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, combinations, islice

import numpy as np
from datasets import Dataset, DatasetDict

from imagelm.data.load import PREPARE_AGAIN, image_bodies
from imagelm.data.training_images import image_digests
from imagelm.utils.errors import InputError

BLOCK_ROWS = 10_000


def check_disjoint(dataset: DatasetDict) -> np.ndarray:
    """Checks that no image is in two splits, by 64-bit digests of their tokens.

    Of 10⁷ training and 10⁶ other rows, two different images have the same digest with a chance of 5·10⁻⁷.

    Returns:
        The digests of all images but the training split's, sorted; int64, shape (images,).

    Raises:
        InputError: An image is in two splits; the folder wasn't written by `prepare`, or was changed since.
    """
    sizes = {name: len(rows) for name, rows in dataset.items() if name != "train"}
    digests = np.empty(sum(sizes.values()), dtype=np.int64)  # sorted in place: there may be millions
    held_out = dict(zip(sizes, np.split(digests, np.cumsum([*sizes.values()])[:-1]), strict=True))
    for name, own in held_out.items():
        for start, block in zip(range(0, len(own), BLOCK_ROWS), _blocks(dataset[name]), strict=True):
            own[start : start + len(block)] = block
        own.sort()
    shared: dict[tuple[str, str], set[int]] = {pair: set() for pair in combinations(dataset, 2)}
    train = (("train", block) for block in (_blocks(dataset["train"]) if "train" in dataset else ()))
    for name, part in chain(train, held_out.items()):  # the training rows once, for all other splits
        for pair, both in shared.items():
            if name == ("train" if "train" in pair else pair[0]):
                (other,) = set(pair) - {name}
                both.update(part[are_among(part, held_out[other])].tolist())
    for (first, second), both in shared.items():
        if both:
            raise InputError(
                f"{len(both)} images are in both the {first} and the {second} split, so the figures would be too good; "
                f"{PREPARE_AGAIN}"
            )
    digests.sort()
    return digests


def are_among(digests: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which digests are among the known ones, which are sorted and at least one; bool, the shape of `digests`.

    `np.isin` would sort all of them for each block.
    """
    places = np.searchsorted(known, digests)
    return known[np.minimum(places, len(known) - 1)] == digests


def _blocks(rows: Dataset) -> Iterator[np.ndarray]:
    """`image_digests` of the rows, some at a time."""
    bodies = image_bodies(rows)
    while len(digests := image_digests(islice(bodies, BLOCK_ROWS))):
        yield digests
