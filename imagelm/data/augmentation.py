"""Shifts, small rotations and scalings, flips: variants of an image before it becomes tokens.

One idea: token rows can't be augmented, so images are, each by one affine map. The map depends on the seed, the
image's number and the epoch alone: batch size, order, workers and a resumed run don't change it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from torch.nn import functional

from imagelm.remote_code.codec_imagelm import Codec
from imagelm.tokens.grammar import BODY, Grammar
from imagelm.utils.errors import InputError

MAX_VALUES = 1 << 22  # transformed at once, so that memory doesn't grow with the size of images


@dataclass(frozen=True)
class Augmentation:
    """How much a variant may differ from its image.

    Attributes:
        shift: Largest shift along each side, in whole pixels.
        rotate: Largest angle, in degrees.
        scale: Largest change of size, as a share: 0.1 is 0.9 to 1.1 times.
        hflip, vflip: Whether half of the variants are mirrored left to right, top to bottom.
    """

    shift: int = 0
    rotate: float = 0.0
    scale: float = 0.0
    hflip: bool = False
    vflip: bool = False

    def draw(self, count: int, seed: tuple[int, ...]) -> np.ndarray:
        """Random maps from a variant's coordinates to its image's; float64, shape (count, 2, 3).

        Each is angle, scale and flips as a matrix, and the shift in pixels.
        """
        rng = np.random.default_rng(seed)
        angle = np.radians(rng.uniform(-self.rotate, self.rotate, count))
        size = rng.uniform(1 - self.scale, 1 + self.scale, count)
        shift = rng.integers(-self.shift, self.shift, (count, 2), endpoint=True)
        flips = np.where(rng.random((count, 2)) < 0.5, -1.0, 1.0)
        mirror_x = flips[:, 0] if self.hflip else 1.0
        mirror_y = flips[:, 1] if self.vflip else 1.0
        cos, sin = np.cos(angle) / size, np.sin(angle) / size
        rows = [[cos * mirror_x, sin * mirror_x, shift[:, 0]], [-sin * mirror_y, cos * mirror_y, shift[:, 1]]]
        return np.stack([np.stack(np.broadcast_arrays(*row), -1) for row in rows], axis=1)


def parse_augmentation(text: str | None) -> Augmentation | None:
    """`"shift=2,rotate=10,scale=0.1,hflip"` → the augmentation; None for none.

    Raises:
        InputError: A name is unknown or a value out of range.
    """
    kinds: dict[str, type] = {name: type(value) for name, value in vars(Augmentation()).items()}
    values: dict[str, Any] = {}
    for entry in filter(None, (text or "").split(",")):
        name, equals, value = entry.strip().partition("=")
        if name not in kinds:
            raise InputError(
                f"--augment: {name!r} is unknown; choose from {', '.join(kinds)}, such as shift=2,rotate=10"
            )
        if kinds[name] is bool and equals:
            raise InputError(f"--augment: {entry.strip()!r}: {name} takes no value; remove it to switch it off")
        try:
            values[name] = True if kinds[name] is bool else kinds[name](value)
        except ValueError:
            raise InputError(f"--augment: {entry.strip()!r} isn't a valid {kinds[name].__name__}") from None
        if not 0 <= values[name] < (1 if name == "scale" else 181):
            raise InputError(f"--augment: {entry.strip()!r} is out of range; scale is below 1, rotate up to 180")
    if text and not values:
        raise InputError(f"--augment {text!r} names nothing; choose from {', '.join(kinds)}")
    return Augmentation(**values) if values else None


def add_variants(
    images: np.ndarray, numbers: np.ndarray, count: np.ndarray, recipe: Augmentation, seed: int, background: int
) -> tuple[np.ndarray, np.ndarray]:
    """Each image, followed by its variants; and the index of the image that each row was made from, shape (rows,).

    Args:
        images: uint8, shape (images, height, width, channels), as the result.
        numbers: The images' numbers, which their maps are drawn from; shape (images,).
        count: How many variants each image gets; shape (images,).
    """
    repeats = 1 + count
    origin = np.repeat(np.arange(len(images)), repeats)
    is_variant = np.ones(len(origin), dtype=bool)
    is_variant[np.cumsum(repeats) - repeats] = False
    rows = images[origin]
    if is_variant.any():
        maps = [recipe.draw(int(n), (seed, int(number))) for n, number in zip(count, numbers, strict=True) if n]
        rows[is_variant] = augment(rows[is_variant], np.concatenate(maps), background)
    return rows, origin


def augment(images: np.ndarray, maps: np.ndarray, background: int = 0) -> np.ndarray:
    """Variants of images, by bilinear interpolation; pixels from outside the image have the background's value.

    Args:
        images: uint8, shape (images, height, width, channels), as the result.
        maps: As `Augmentation.draw` gives them, one per image.
    """
    if images.size > MAX_VALUES and len(images) > 1:
        parts = np.array_split(np.arange(len(images)), min(len(images), -(-images.size // MAX_VALUES)))
        return np.concatenate([augment(images[part], maps[part], background) for part in parts])
    _, height, width, _ = images.shape
    # affine_grid counts in half sides, so that x and y are measured differently where the image isn't square.
    half = np.array([width / 2, height / 2])
    theta = maps.copy()
    theta[:, :, :2] *= half[None, None, :] / half[None, :, None]
    theta[:, :, 2] /= half
    signal = torch.from_numpy(images).permute(0, 3, 1, 2).double() - background
    grid = functional.affine_grid(torch.from_numpy(theta), list(signal.shape), align_corners=False)
    moved = functional.grid_sample(signal, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return (moved + background).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


class AugmentedRows(torch.utils.data.Dataset):
    """Training rows whose images are augmented and encoded again in each epoch, as the rows are read.

    `rows` has the columns `input_ids` and `image`.
    """

    def __init__(self, rows: Dataset, codec: Codec, grammar: Grammar, recipe: Augmentation, seed: int) -> None:
        self.rows = rows.select_columns(["input_ids", "image"]).cast_column("image", ImageFeature(decode=False))
        self.codec, self.grammar, self.recipe, self.seed = codec, grammar, recipe, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.rows)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next rows."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, np.ndarray]]:
        """Several rows at once, as torch's loader reads them."""
        found = self.rows[indices]
        images = np.stack([self._pixels(image["bytes"]) for image in found["image"]])
        maps = np.concatenate([self.recipe.draw(1, (self.seed, self.epoch, int(index))) for index in indices])
        codes = self.grammar.code_ids[self.codec.encode(augment(images, maps, self.codec.config["background"]))]
        rows = np.array(found["input_ids"])
        rows[:, BODY] = codes
        return [{"input_ids": row} for row in rows]

    def _pixels(self, file: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(file))).reshape(*self.codec.image_size, self.codec.channels)
