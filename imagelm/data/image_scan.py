"""What a first reading of the pictures notes: size, colour, digest, and which can't be read.

One idea: a few bytes a picture are enough to decide on the form of all images and on the split before anything is
encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from PIL import Image

from imagelm.data.rows import ProblemLog
from imagelm.data.sources.decode import NUM_FRAMES, BadImage
from imagelm.data.splits import DIGEST_DTYPE
from imagelm.remote_code.codec_imagelm import flatten


@dataclass
class ImageScan:
    """What was noted of each picture.

    Attributes:
        sizes: Height and width; int32, shape (pictures, 2).
        digests: Of the pixels, equal for equal images whatever their file format; `DIGEST_DTYPE`, shape (pictures,).
        readable: bool, shape (pictures,).
        coloured: Whether channels differ somewhere; bool, shape (pictures,).
        num_animated: Pictures of several frames, of which the first one counts.
    """

    sizes: np.ndarray
    digests: np.ndarray
    readable: np.ndarray
    coloured: np.ndarray
    num_animated: int = 0


def survey(
    slices: Iterable[tuple[int, Sequence[Image.Image | BadImage]]],
    count: int,
    background: int,
    problems: ProblemLog,
    place: Callable[[int], str],
) -> ImageScan:
    """Reads every picture once.

    Args:
        slices: The pictures, each slice with the number of its first one.
        count: How many there are.
        background: Brightness under transparent pixels.
        problems: Where those that can't be read are reported.
        place: Names a picture by its number.
    """
    readable, coloured = np.zeros(count, bool), np.zeros(count, bool)
    found = ImageScan(np.zeros((count, 2), np.int32), np.zeros(count, DIGEST_DTYPE), readable, coloured)
    for start, pictures in slices:
        for i, picture in enumerate(pictures, start=start):
            pixels = _pixels(picture, background)
            if isinstance(pixels, BadImage):
                problems.add(place(i), None, "unreadable_image", pixels.reason)
                continue
            found.readable[i] = True
            found.sizes[i] = pixels.shape[:2]
            found.coloured[i] = pixels.ndim == 3
            found.num_animated += NUM_FRAMES in picture.info
            digest = xxhash.xxh3_128(pixels.tobytes())
            digest.update(str(pixels.shape).encode())
            found.digests[i] = np.frombuffer(digest.digest(), dtype=DIGEST_DTYPE)[0]
    return found


def _pixels(picture: Image.Image | BadImage, background: int) -> np.ndarray | BadImage:
    """uint8, shape (height, width), or (height, width, 3) where it's coloured; or why there is none."""
    if isinstance(picture, BadImage):
        return picture
    try:
        pixels = np.asarray(flatten(picture, background))
    except ValueError as error:
        return BadImage(str(error))
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        return np.ascontiguousarray(pixels[..., 0])
    return pixels
