"""Shifts, small rotations and scalings, flips: variants of an image before it becomes tokens.

One idea: token rows can't be augmented later, so pictures are, with one affine map each. It is drawn from the seed and
the image's number alone: neither batch size nor order changes it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch.nn import functional

from imagelm.utils.errors import InputError

MAX_VALUES = 1 << 22  # moved at once, so that memory doesn't grow with the size of images


@dataclass(frozen=True)
class Augmentation:
    """How far a variant may be from its image.

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
        """Random maps from a variant's coordinates to its image's.

        Args:
            count: How many.
            seed: What they depend on.

        Returns:
            float64, shape (count, 2, 3): angle, scale and flips as a matrix, and the shift in pixels.
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
    values: dict[str, object] = {}
    kinds = {entry.name: type(entry.default) for entry in fields(Augmentation)}
    for entry in filter(None, (text or "").split(",")):
        name, equals, value = entry.strip().partition("=")
        if name not in kinds:
            raise InputError(
                f"--augment: {name!r} is unknown; choose from {', '.join(kinds)}, such as shift=2,rotate=10"
            )
        if kinds[name] is bool and equals:
            raise InputError(f"--augment: {entry.strip()!r}: {name} takes no value; leave it out where it isn't wanted")
        try:
            values[name] = True if kinds[name] is bool else kinds[name](value)
        except ValueError:
            raise InputError(f"--augment: {entry.strip()!r} is no {kinds[name].__name__}") from None
        if not 0 <= values[name] < (1 if name == "scale" else 181):
            raise InputError(f"--augment: {entry.strip()!r} is out of range; scale is below 1, rotate up to 180")
    if text and not values:
        raise InputError(f"--augment {text!r} names nothing; choose from {', '.join(kinds)}")
    return Augmentation(**values) if values else None


def augment(images: np.ndarray, maps: np.ndarray, background: int = 0) -> np.ndarray:
    """Variants of images, by bilinear interpolation; what comes in from outside has the background's value.

    Args:
        images: uint8, shape (images, height, width, channels).
        maps: As `Augmentation.draw` gives them, one an image.
        background: 0 to 255.

    Returns:
        uint8, the shape of `images`.
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
