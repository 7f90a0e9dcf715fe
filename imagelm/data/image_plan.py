"""What is decided about images before they are encoded: their splits, their format, and the codec.

One idea: a first reading notes a few bytes of each image, and all is decided from these; the codec is fitted on a
sample of the training images. Scan and plan can be saved, so that several processes read and encode the images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagelm.codecs.kmeans import fit_patch_codec, fit_unified_codec, read_unified_codebook
from imagelm.codecs.open import open_codec
from imagelm.data.arguments import PrepareArguments
from imagelm.data.image_scan import ImageFormat, ImageScan, choose_image_format, choose_range, scan_images
from imagelm.data.rows import NO_SPLIT, SPLITS, ProblemLog
from imagelm.data.sources.open import LabelledImages
from imagelm.data.splits import (
    DROPPED,
    TEST,
    TRAIN,
    assign_splits,
    cut_validation,
    drop_repeated,
    present_splits,
    split_in_words,
)
from imagelm.remote_code.codec_imagelm import Codec
from imagelm.remote_code.pixels_imagelm import MAX_VALUE, read_pixels
from imagelm.utils.artifacts import CODEC_FOLDER
from imagelm.utils.device import choose_device
from imagelm.utils.errors import InputError
from imagelm.utils.text import join_first, printable

MANY_TOKENS = 4096
MAX_FIT_IMAGES = 20_000
MAX_FIT_BYTES = 256 << 20
SCAN_FILE, PLAN_ARRAYS_FILE = "scan.npz", "plan.npz"


@dataclass(frozen=True)
class ImagePlan:
    """What was decided about the images of a dataset.

    Attributes:
        codec: Turns them into tokens.
        sides: The side of each image; int8, shape (images,).
        digests: Of the pixels of each image; `DIGEST_DTYPE`, shape (images,).
        split: How the split was made, in words.
        split_notes: What the validation split lacks, in words.
        notes: What else was decided, for the summary.
    """

    codec: Codec
    sides: np.ndarray
    digests: np.ndarray
    split: str
    split_notes: list[str]
    notes: list[str]

    def save(self, folder: Path) -> dict[str, object]:
        """Saves codec and arrays in a folder; returns the rest, for JSON."""
        self.codec.save(folder / CODEC_FOLDER)
        np.savez(folder / PLAN_ARRAYS_FILE, sides=self.sides, digests=self.digests)
        return {"split": self.split, "split_notes": self.split_notes, "notes": self.notes}


def load_plan(folder: Path, words: dict[str, Any]) -> ImagePlan:
    """The plan that `ImagePlan.save` saved, with what it returned."""
    with np.load(folder / PLAN_ARRAYS_FILE) as arrays:
        return ImagePlan(open_codec(str(folder / CODEC_FOLDER)), arrays["sides"], arrays["digests"], **words)


def scan_share(arguments: PrepareArguments, images: LabelledImages, problems: ProblemLog) -> ImageScan:
    """Reads the images of the arguments' share."""
    codec = open_codec(arguments.codec) if arguments.codec else None
    background = codec.config["background"] if codec else arguments.background
    max_value = codec.config["max_value"] if codec else MAX_VALUE
    scan = scan_images(images, background, max_value, problems, arguments.share)
    problems.stop_if(arguments.on_bad_rows)
    return scan


def save_scan(scan: ImageScan, spans: list[range], folder: Path) -> None:
    """Saves what was noted of the images in these spans."""
    own = slice(spans[0].start, spans[-1].stop) if spans else slice(0)
    arrays: dict[str, Any] = {name: value[own] for name, value in vars(scan).items() if isinstance(value, np.ndarray)}
    np.savez(folder / SCAN_FILE, **arrays, max_value=scan.max_value)


def load_scans(folders: list[Path]) -> ImageScan:
    """Several scans, one after the other."""
    scans = []
    for folder in folders:
        with np.load(folder / SCAN_FILE) as arrays:
            scans.append(dict(arrays))
    max_value = int(scans[0].pop("max_value"))
    return ImageScan(**{name: np.concatenate([scan[name] for scan in scans]) for name in scans[0]}, max_value=max_value)


def make_plan(arguments: PrepareArguments, images: LabelledImages, scan: ImageScan, problems: ProblemLog) -> ImagePlan:
    """Splits the images, chooses their format, and fits a codec to the training images unless one is given.

    Raises:
        InputError: No image could be read, or a split or a codebook can't be made of the images.
    """
    codec = open_codec(arguments.codec) if arguments.codec else None
    if codec is None:
        scan = choose_range(images, arguments.background, scan)
    if not scan.readable.any():
        raise InputError(f"none of the {len(images)} images can be read\n{problems.summary()}")

    sides, split, notes = _split_images(arguments, images, scan)
    used = scan.readable
    rows = (sides[used], images.labels[used], scan.digests[used])
    sides[used], split_notes = cut_validation(*rows, images.class_names, arguments)
    image_format, format_notes = choose_image_format(arguments, codec, scan, sides)

    if arguments.centroids:
        codec = read_unified_codebook(arguments.centroids, **asdict(image_format))
    if codec is None:
        codec = _fit_on_sample(arguments, images, sides, image_format)
    unseen = np.setdiff1d(np.arange(len(images.class_names)), images.labels[scan.readable])
    notes = [*images.notes, *notes, *format_notes]
    if len(unseen):
        notes.append(
            f"classes without a readable image: {join_first(printable(images.class_names[i]) for i in unseen)}"
        )
    if codec.num_tokens > MANY_TOKENS:
        notes.append(
            f"an image takes {codec.num_tokens} tokens, and attention's cost grows with their square; "
            "reduce them with --image_size or --patch_size"
        )
    return ImagePlan(codec, sides, scan.digests, split, split_notes, notes)


def _split_images(
    arguments: PrepareArguments, images: LabelledImages, scan: ImageScan
) -> tuple[np.ndarray, str, list[str]]:
    """The side of each image, int8, shape (images,); how the split was made, in words; and notes for the summary.

    The side is `DROPPED` for unreadable images, and for images of a split that those of a later one in `SPLITS` repeat.
    """
    sides = np.full(len(images), DROPPED, dtype=np.int8)
    usable = np.flatnonzero(scan.readable)
    notes: list[str] = []
    if images.splits:
        sides[usable] = np.repeat(list(map(SPLITS.index, images.splits)), list(map(len, images.sources)))[usable]
        notes = drop_repeated(sides, scan.digests)
        how = f"{' and '.join(name for name in present_splits(sides) if name != 'train')} images given by the user"
    else:
        how, unknown = split_in_words(arguments.split_by, arguments.seed), np.full(len(usable), NO_SPLIT)
        rule = (arguments.split_by, arguments.test_size, arguments.seed)
        sides[usable] = assign_splits(*rule, images.labels[usable], scan.digests[usable], unknown, images.class_names)
    if not (sides == TRAIN).any() or not (sides == TEST).any():
        raise InputError(": ".join(["no usable image is left in the training or the test split", *notes]))
    return sides, how, notes


def _fit_on_sample(
    arguments: PrepareArguments, images: LabelledImages, sides: np.ndarray, image_format: ImageFormat
) -> Codec:
    num_values = math.prod(image_format.image_size) * image_format.channels
    limit = min(MAX_FIT_IMAGES, max(1, MAX_FIT_BYTES // num_values))
    numbers = draw_sample(sides, TRAIN, limit, arguments.seed)
    sample = read_sample(images, numbers, partial(read_pixels, **asdict(image_format)))
    uses_t = arguments.codebook == "unified" and "t" in arguments.features.split(",")
    t = image_numbers(images)[numbers] if uses_t else None
    return _fit_codec(arguments, image_format, sample, t, str(choose_device(arguments.device)))


def _fit_codec(
    arguments: PrepareArguments, image_format: ImageFormat, sample: np.ndarray, t: np.ndarray | None, device: str
) -> Codec:
    """A codec fitted on training images, uint8, shape (images, height, width, channels); `t` is one of its features."""
    config: dict[str, Any] = {name: getattr(image_format, name) for name in ("fit", "background", "max_value")}
    size, patch_size, seed = arguments.codebook_size, arguments.patch_size, arguments.seed
    if arguments.codebook == "patch":
        return fit_patch_codec(sample, patch_size, size, seed, **config)
    if arguments.codebook == "unified":
        features = arguments.features.split(",")
        return fit_unified_codec(sample, size, seed, features, arguments.feature_scaling, t, **config)
    from imagelm.codecs.vq_autoencoder import fit_learned_codec  # late, as its library is slow to import

    return fit_learned_codec(sample, patch_size, size, seed, arguments.codec_steps, device, **config)


def image_numbers(images: LabelledImages) -> np.ndarray:
    """t of each image: a column or array of that name, or else the image's index within its class."""
    given = [(source, column) for source in images.sources if (column := source.extra("t")) is not None]
    if len(given) == len(images.sources):
        for source, column in given:
            if column.dtype.kind not in "iuf" or column.shape != (len(source),) or not np.isfinite(column).all():
                raise InputError(f"column or array t of {source.place(0)} isn't a finite number for each image")
        return np.concatenate([column for _, column in given]).astype(np.float64)
    numbers = np.empty(len(images))
    for label in range(len(images.class_names)):
        members = np.flatnonzero(images.labels == label)
        numbers[members] = np.arange(len(members))
    return numbers


def draw_sample(sides: np.ndarray, side: int, limit: int, seed: int) -> np.ndarray:
    """Numbers of up to `limit` images of a side, drawn at random, in ascending order."""
    numbers = np.random.default_rng([seed, 3]).permutation(np.flatnonzero(sides == side))
    return np.sort(numbers[:limit])


def read_sample(
    images: LabelledImages, numbers: np.ndarray, to_pixels: Callable[[Image.Image], np.ndarray]
) -> np.ndarray:
    """Images by their numbers; uint8, shape (images, height, width, channels)."""
    return np.stack([to_pixels(images.load(int(number))) for number in numbers])
