"""A first reading of all images: size, colour, digest and which can't be read; and the format chosen from it.

One idea: a few bytes per image are enough to decide the format of all images and the split before anything is encoded.
The training images alone decide the format; the summary counts what it changes in other images.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import xxhash
from PIL import Image

from imagelm.data.arguments import PrepareArguments, parse_size
from imagelm.data.rows import DIGEST_DTYPE, ProblemLog
from imagelm.data.sources.decode import NUM_FRAMES, BadImage
from imagelm.data.sources.open import LabelledImages
from imagelm.data.splits import TRAIN
from imagelm.remote_code.codec_imagelm import Codec, flatten
from imagelm.utils.errors import InputError

MAX_TOKENS = 1 << 16
MAX_PIXELS = 1 << 26


@dataclass(frozen=True)
class ImageScan:
    """What was noted of each image.

    Attributes:
        sizes: Height and width; int32, shape (images, 2).
        digests: Of the pixels, equal for equal images whatever their file format; `DIGEST_DTYPE`, shape (images,).
        readable: bool, shape (images,).
        coloured: Whether channels differ somewhere; bool, shape (images,).
        animated: Whether it has several frames, of which the first one is used; bool, shape (images,).
        peaks: The largest value of an image with 16-bit pixels, 0 for others; int32, shape (images,).
    """

    sizes: np.ndarray
    digests: np.ndarray
    readable: np.ndarray
    coloured: np.ndarray
    animated: np.ndarray
    peaks: np.ndarray


@dataclass(frozen=True)
class ImageFormat:
    """The one format of all images of a dataset; the fields are those of a codec's config."""

    image_size: tuple[int, int]
    channels: int
    fit: str
    background: int


def scan_images(images: LabelledImages, background: int, problems: ProblemLog) -> ImageScan:
    """Reads every image once, and reports those that can't be read; `background` shows through transparent pixels."""
    count = len(images)
    readable, coloured, animated = (np.zeros(count, bool) for _ in range(3))
    sizes, peaks, digests = np.zeros((count, 2), np.int32), np.zeros(count, np.int32), np.zeros(count, DIGEST_DTYPE)
    for start, part in images.slices("reading"):
        for i, image in enumerate(part, start=start):
            try:
                if isinstance(image, BadImage):
                    raise ValueError(image.reason)
                pixels = _pixels(image, background)
            except ValueError as error:
                problems.add(images.place(i), None, "unreadable_image", str(error))
                continue
            readable[i], sizes[i], coloured[i] = True, pixels.shape[:2], pixels.ndim == 3
            animated[i] = NUM_FRAMES in image.info
            peaks[i] = np.asarray(image).max() if image.mode.startswith("I;16") else 0
            digest = xxhash.xxh3_128(pixels.tobytes())
            digest.update(str(pixels.shape).encode())
            digests[i] = np.frombuffer(digest.digest(), dtype=DIGEST_DTYPE)[0]
    return ImageScan(sizes, digests, readable, coloured, animated, peaks)


def choose_image_format(
    arguments: PrepareArguments, codec: Codec | None, scan: ImageScan, sides: np.ndarray
) -> tuple[ImageFormat, list[str]]:
    """The format of all images, and what it changes in them, for the summary.

    It is the existing codec's, or else that of the training images; `sides` is the side of each image, shape (images,).

    Raises:
        InputError: The size that was given can't be cut into patches, or the images are too large.
    """
    notes: list[str] = []
    if codec:
        chosen = ImageFormat(codec.image_size, codec.channels, codec.config["fit"], codec.config["background"])
    else:
        training = sides == TRAIN
        size, coloured = _choose_size(arguments, scan.sizes[training], notes), int(scan.coloured[training].sum())
        channels = 3 if arguments.channels == "rgb" or (arguments.channels == "auto" and coloured) else 1
        if arguments.channels == "auto" and 0 < coloured < training.sum() / 2:
            notes.append(
                f"{coloured} of {training.sum()} training images are coloured, so all are read as RGB; "
                "--channels grey converts them to grey"
            )
        chosen = ImageFormat(size, channels, arguments.fit, arguments.background)
    notes += notes_on_format(chosen.image_size, chosen.fit, scan.sizes[scan.readable], int(scan.animated.sum()))
    if 0 < (peak := int(scan.peaks.max(initial=0))) < 1 << 14:
        notes.append(
            f"{np.count_nonzero(scan.peaks)} images with 16-bit pixels use values up to {peak} of 65535 only: they are "
            f"dark, with at most {round(peak / 257) + 1} grey levels, and different images may become equal; multiply "
            f"their pixels by {65535 // peak}, or convert them to 8 bits"
        )
    if chosen.channels == 1 and (coloured := int(scan.coloured.sum())):
        notes.append(f"{coloured} coloured images are converted to grey")
    return chosen, notes


def notes_on_format(image_size: tuple[int, int], fit: str, sizes: np.ndarray, num_animated: int) -> list[str]:
    """What happens to images whose height and width in `sizes`, shape (images, 2), differ, and to animated ones."""
    (height, width), notes = image_size, []
    if others := int((sizes != (height, width)).any(1).sum()):
        done = "resized" if fit == "resize" else "padded (larger ones are shrunk first)"
        notes.append(f"{others} of {len(sizes)} images aren't {height}×{width} pixels and are {done}")
    if num_animated:
        notes.append(f"{num_animated} images have several frames; the first one is used")
    return notes


def _pixels(image: Image.Image, background: int) -> np.ndarray:
    """uint8, shape (height, width), or (height, width, 3) for a coloured image."""
    pixels = np.asarray(flatten(image, background))
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        return np.ascontiguousarray(pixels[..., 0])
    return pixels


def _choose_size(arguments: PrepareArguments, sizes: np.ndarray, notes: list[str]) -> tuple[int, int]:
    """The size that was given, or else the most common one, cut into whole patches; shape of `sizes`: (images, 2)."""
    counts = Counter((height, width) for height, width in sizes.tolist())
    asked = parse_size(arguments.image_size)
    height, width = asked or max(counts, key=lambda size: (counts[size], size))
    patch_size = 1 if arguments.codebook == "unified" else arguments.patch_size
    rows, columns = _num_patches(height, patch_size, arguments.fit), _num_patches(width, patch_size, arguments.fit)
    size = rows * patch_size, columns * patch_size
    if size != (height, width):
        wrong = f"{height}×{width} pixels can't be cut into patches of {patch_size}×{patch_size}"
        if asked:
            raise InputError(f"--image_size: {wrong}; give {size[0]}x{size[1]}, or another --patch_size")
        notes.append(f"{wrong}: images are fitted to {size[0]}×{size[1]}")
    if size[0] * size[1] > MAX_PIXELS or rows * columns > MAX_TOKENS:
        # Refused here, before it fills the memory or makes rows that no transformer is trained on.
        raise InputError(
            f"an image of {size[0]}×{size[1]} pixels would take {rows * columns:,} tokens; the limits are "
            f"{MAX_TOKENS:,} tokens and {MAX_PIXELS:,} pixels, and a few hundred tokens are usual; "
            "give a smaller --image_size" + ("" if arguments.codebook == "unified" else ", or larger patches")
        )
    if arguments.codebook == "unified" and min(size) < 2:
        raise InputError(f"images of {size[0]}×{size[1]} pixels have no gradient; give an --image_size of 2x2 or more")
    return size


def _num_patches(side: int, patch_size: int, fit: str) -> int:
    """The nearest number of patches; with padding, the next larger one, so that no pixel is lost."""
    return max(1, -(-side // patch_size) if fit == "pad" else round(side / patch_size))
