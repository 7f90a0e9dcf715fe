"""A first reading of all images: size, colour, digest and which can't be read; and the format chosen from it.

One idea: a few bytes per image are enough to decide the format of all images and the split before anything is encoded.
The training images alone decide the format; the summary counts what it changes in other images.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import xxhash
from PIL import Image

from imagelm.data.arguments import PrepareArguments
from imagelm.data.image_options import parse_size
from imagelm.data.rows import DIGEST_DTYPE, ProblemLog
from imagelm.data.sources.decode import DROPPED_BITS, NUM_FRAMES, BadImage
from imagelm.data.sources.open import LabelledImages
from imagelm.data.splits import TRAIN
from imagelm.remote_code.codec_imagelm import Codec
from imagelm.remote_code.pixels_imagelm import MAX_VALUE, flatten, peak, range_problem
from imagelm.utils.errors import InputError

MAX_TOKENS = 1 << 16
MAX_PIXELS = 1 << 26
RANGES = (255, 1023, 4095, 16383, MAX_VALUE)  # of cameras and scanners with 8 to 16 bits


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
        exact: Digests of 16-bit pixels as they are stored, 0 for other images; `DIGEST_DTYPE`, shape (images,).
        shortened: Whether the decoder has dropped the lower half of 16-bit colours; bool, shape (images,).
        max_value: The value of 16-bit pixels that becomes white.
    """

    sizes: np.ndarray
    digests: np.ndarray
    readable: np.ndarray
    coloured: np.ndarray
    animated: np.ndarray
    peaks: np.ndarray
    exact: np.ndarray
    shortened: np.ndarray
    max_value: int


@dataclass(frozen=True)
class ImageFormat:
    """The one format of all images of a dataset; the fields are those of a codec's config."""

    image_size: tuple[int, int]
    channels: int
    fit: str
    background: int
    max_value: int


def scan_images(
    images: LabelledImages, background: int, max_value: int, problems: ProblemLog, share: tuple[int, int] = (0, 1)
) -> ImageScan:
    """Reads every image of a share, and reports those that can't be read.

    `background` shows through transparent pixels; `max_value` is the value of 16-bit pixels that becomes white.
    """
    count = len(images)
    readable, coloured, animated, shortened = (np.zeros(count, bool) for _ in range(4))
    sizes, peaks = np.zeros((count, 2), np.int32), np.zeros(count, np.int32)
    digests, exact = np.zeros(count, DIGEST_DTYPE), np.zeros(count, DIGEST_DTYPE)
    for start, part in images.slices("reading", share):
        for i, image in enumerate(part, start=start):
            try:
                if isinstance(image, BadImage):
                    raise ValueError(image.reason)
                pixels = _pixels(image, background, max_value)
            except ValueError as error:
                problems.add(images.place(i), None, "unreadable_image", str(error))
                continue
            readable[i], sizes[i], coloured[i] = True, pixels.shape[:2], pixels.ndim == 3
            animated[i], shortened[i] = NUM_FRAMES in image.info, DROPPED_BITS in image.info
            digests[i] = _digest(pixels)
            if highest := peak(image):
                peaks[i], exact[i] = highest, _digest(np.asarray(image).astype(np.uint16))
    return ImageScan(sizes, digests, readable, coloured, animated, peaks, exact, shortened, max_value)


def choose_range(images: LabelledImages, background: int, scan: ImageScan) -> ImageScan:
    """The scan with the range of 16-bit pixels that the first source has, which holds the training images.

    16-bit images are read again if it isn't that of the scan.
    """
    first = int(scan.peaks[: len(images.sources[0])].max(initial=0))
    chosen = next(limit for limit in RANGES if first <= limit) if first else scan.max_value
    digests = scan.digests.copy()
    if chosen != scan.max_value:
        for number in map(int, np.flatnonzero(scan.peaks)):
            digests[number] = _digest(_pixels(images.load(number), background, chosen))
    return replace(scan, digests=digests, max_value=chosen)


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
        settings = (codec.config[name] for name in ("fit", "background", "max_value"))
        chosen = ImageFormat(codec.image_size, codec.channels, *settings)
    else:
        training = sides == TRAIN
        size, coloured = _choose_size(arguments, scan.sizes[training], notes), int(scan.coloured[training].sum())
        channels = 3 if arguments.channels == "rgb" or (arguments.channels == "auto" and coloured) else 1
        if arguments.channels == "auto" and 0 < coloured < training.sum() / 2:
            notes.append(
                f"{coloured} of {training.sum()} training images are coloured, so all are read as RGB; "
                "--channels grey converts them to grey"
            )
        chosen = ImageFormat(size, channels, arguments.fit, arguments.background, scan.max_value)
    notes += notes_on_format(chosen.image_size, chosen.fit, scan.sizes[scan.readable], int(scan.animated.sum()))
    notes += _notes_on_range(scan, has_codec=codec is not None)
    if chosen.channels == 1 and (coloured := int(scan.coloured.sum())):
        notes.append(f"{coloured} coloured images are converted to grey")
    return chosen, notes


def _notes_on_range(scan: ImageScan, has_codec: bool) -> list[str]:
    """What was decided about 16-bit pixels, and which images it makes equal or cuts off."""
    notes, deep = [], scan.peaks > 0
    if not has_codec and scan.max_value < MAX_VALUE:
        notes.append(
            f"{deep.sum()} images with 16-bit pixels have values up to {scan.peaks.max()}: {scan.max_value} becomes "
            "white, and the codec records it, so that new images are scaled in the same way"
        )
    if problem := range_problem(scan.peaks.tolist(), scan.max_value):
        notes.append(problem)
    if (equal := len(np.unique(scan.exact[deep])) - len(np.unique(scan.digests[deep]))) > 0:
        notes.append(f"{equal} images with 16-bit pixels equal another one in 8 bits, and count as the same image")
    if scan.shortened.any():
        notes.append(
            f"{scan.shortened.sum()} images have colours of 16 bits, of which the upper 8 are read; if they use a part "
            "of the range only, convert them to 8 bits"
        )
    return notes


def notes_on_format(image_size: tuple[int, int], fit: str, sizes: np.ndarray, num_animated: int) -> list[str]:
    """What happens to images whose height and width in `sizes`, shape (images, 2), differ, and to animated ones."""
    (height, width), notes = image_size, []
    if others := int((sizes != (height, width)).any(1).sum()):
        done = "resized" if fit == "resize" else "padded (larger ones are shrunk first)"
        notes.append(f"{others} of {len(sizes)} images aren't {height}×{width} pixels and are {done}")
    if num_animated:
        notes.append(f"{num_animated} images have several frames; the first one is used")
    return notes


def _digest(pixels: np.ndarray) -> np.ndarray:
    digest = xxhash.xxh3_128(pixels.tobytes())
    digest.update(str(pixels.shape).encode())
    return np.frombuffer(digest.digest(), dtype=DIGEST_DTYPE)[0]


def _pixels(image: Image.Image, background: int, max_value: int) -> np.ndarray:
    """uint8, shape (height, width), or (height, width, 3) for a coloured image."""
    pixels = np.asarray(flatten(image, background, max_value))
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
