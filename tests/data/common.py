"""What the tests of prepared images share: images that a codec keeps, and how rows and images are compared."""

from __future__ import annotations

import re

import datasets
import numpy as np

from tests.images import random_images


def few_levels(count: int, levels: int = 4, seed: int = 0, size: tuple[int, int] = (6, 8)) -> np.ndarray:
    """Grey images of a few brightnesses: a codebook of as many entries and patches of 1 keeps them as they are."""
    return (random_images(count, size, seed=seed) % levels * (255 // levels)).astype(np.uint8)


def keys(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in np.asarray(images)}


def number_of(source: str) -> int:
    """The number in a name such as `…/12.png`."""
    return int(re.search(r"(\d+)\.\w+$", source).group(1))


def rows_of(data: datasets.DatasetDict) -> list[dict]:
    return [row for split in data.values() for row in split]
