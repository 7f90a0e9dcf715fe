"""Images → rows: scan, split, choose a format, fit a codec, encode.

One idea: images are read twice in constant memory. The scan notes a few bytes of each, which decide the format of all
images and the split; the codec is fitted on a sample of the training images; the second reading makes the rows.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from imagelm.codecs.kmeans import fit_patch_codec, fit_unified_codec, read_unified_codebook
from imagelm.codecs.open import open_codec
from imagelm.codecs.reconstruction import draw_codec, measure_reconstruction
from imagelm.data.arguments import PrepareArguments
from imagelm.data.augmentation import Augmentation, add_variants, parse_augmentation
from imagelm.data.image_scan import ImageFormat, ImageScan, choose_image_format, scan_images
from imagelm.data.rows import NO_SPLIT, SPLITS, ProblemLog, RowBatch, RowTable
from imagelm.data.sources.open import LabelledImages, open_labelled_images
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
from imagelm.remote_code.codec_imagelm import Codec, read_pixels
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.vocabulary import make_vocabulary
from imagelm.utils.artifacts import CODEC_FOLDER
from imagelm.utils.device import choose_device
from imagelm.utils.errors import InputError
from imagelm.utils.text import join_first, printable

MANY_TOKENS = 4096
MAX_FIT_IMAGES = 20_000
MAX_FIT_BYTES = 256 << 20
NUM_QUALITY_IMAGES = 1000


def open_image_rows(arguments: PrepareArguments, staging: Path, problems: ProblemLog) -> ImageRows:
    """Reads and splits the images, fits a codec to the training images unless one is given, and saves it in `staging`.

    Raises:
        InputError: No image can be read, labels are missing, or a split or a codebook can't be made of the images.
    """
    recipe, device = parse_augmentation(arguments.augment), str(choose_device(arguments.device))
    codec = open_codec(arguments.codec) if arguments.codec else None

    images = open_labelled_images(arguments)
    background, max_value = (
        (codec.config["background"], codec.config["max_value"]) if codec else (arguments.background, None)
    )
    scan = scan_images(images, background, max_value, problems)
    problems.stop_if(arguments.on_bad_rows)
    if not scan.readable.any():
        raise InputError(f"none of the {len(images)} images can be read\n{problems.summary()}")

    sides, split, notes = _split_images(arguments, images, scan)
    used = scan.readable
    rows = (sides[used], images.labels[used], scan.digests[used])
    sides[used], split_notes = cut_validation(*rows, images.class_names, arguments)
    image_format, format_notes = choose_image_format(arguments, codec, scan, sides)

    if arguments.centroids:
        codec = read_unified_codebook(arguments.centroids, **asdict(image_format))
    features = codec.config.get("features", []) if codec else arguments.features.split(",")
    uses_t = "t" in features and (codec is not None or arguments.codebook == "unified")
    t = _image_numbers(images) if uses_t else None
    if codec is None:
        num_values = math.prod(image_format.image_size) * image_format.channels
        limit = min(MAX_FIT_IMAGES, max(1, MAX_FIT_BYTES // num_values))
        numbers = _sample(sides, TRAIN, limit, arguments.seed)
        sample = _read(images, numbers, partial(read_pixels, **asdict(image_format)))
        codec = _fit_codec(arguments, image_format, sample, None if t is None else t[numbers], device)
    codec.save(staging / CODEC_FOLDER)
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
    return ImageRows(arguments, images, scan, sides, split, split_notes, codec, t, recipe, device, notes)


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


@dataclass
class ImageRows:
    """Images as a source of rows (`RowSource`); made by `open_image_rows`.

    Attributes:
        sides: The side of each image; int8, shape (images,).
        t: Number of each image, if the codec uses it; shape (images,).
        recipe: How much the variants of training images differ; None without variants.
        notes: What was decided, for the summary.
    """

    arguments: PrepareArguments
    images: LabelledImages
    scan: ImageScan
    sides: np.ndarray
    split: str
    split_notes: list[str]
    codec: Codec
    t: np.ndarray | None
    recipe: Augmentation | None
    device: str
    notes: list[str]
    split_by: str = "field"  # each row names its side, as the split was made from the images
    validation_size: float = 0.0

    def __post_init__(self) -> None:
        self.grammar = Grammar(make_vocabulary(self.codec.codebook_size, len(self.images.class_names)))
        self.class_names, self.files = self.images.class_names, [self.images.files]

    @property
    def identity(self) -> dict[str, object]:
        """What the images are."""
        return self.images.identity

    def place(self, file: str, line: int) -> str:
        """Where an image is, by its number."""
        return self.images.place(line)

    def batches(self) -> Iterator[RowBatch]:
        """All rows: each image that is used, and after each training image its variants."""
        for start, part in self.images.slices("encoding"):
            used = np.flatnonzero(self.sides[start : start + len(part)] != DROPPED)
            if len(used):
                pixels = [self.codec.pixels(self.images.check_readable(start + int(i), part[int(i)])) for i in used]
                yield self._rows(np.stack(pixels), start + used)

    def _rows(self, pixels: np.ndarray, numbers: np.ndarray) -> RowBatch:
        if self.recipe:
            count = np.where(self.sides[numbers] == TRAIN, self.arguments.variants, 0)
            background = self.codec.config["background"]
            pixels, origin = add_variants(pixels, numbers, count, self.recipe, self.arguments.seed, background)
            numbers = numbers[origin]
        started = time.perf_counter()
        entries = self._encode(pixels, numbers)
        seconds = time.perf_counter() - started
        return RowBatch(
            bodies=self.grammar.code_ids[entries].reshape(-1),
            lengths=np.full(len(pixels), self.codec.num_tokens),
            labels=self.images.labels[numbers],
            splits=self.sides[numbers],
            sources=[self.images.name(int(number)) for number in numbers],
            lines=numbers,
            file=self.images.files,
            num_repaired=0,
            seconds=seconds,
            images=[_png(image) for image in pixels] if self.arguments.keep_images else None,
        )

    def _encode(self, pixels: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        threads = torch.get_num_threads()
        if self.codec.kind != "learned":
            # These products are small: two threads that wait for each other take longer than one, and ten times as
            # long where another job has a core.
            torch.set_num_threads(1)
        try:
            return self.codec.encode(pixels, self.device, None if self.t is None else self.t[numbers])
        finally:
            torch.set_num_threads(threads)

    def _reconstruct(self, folder: Path) -> dict | None:
        """Figures of up to `NUM_QUALITY_IMAGES` test images, encoded and decoded; some are drawn, with the codebook.

        None if the codec keeps no colours to decode.
        """
        if not self.codec.can_decode:
            return None
        numbers = _sample(self.sides, TEST, NUM_QUALITY_IMAGES, self.arguments.seed)
        pixels = _read(self.images, numbers, self.codec.pixels)
        restored = self.codec.decode(self._encode(pixels, numbers))
        draw_codec(self.codec, pixels, restored, folder)
        return measure_reconstruction(pixels, restored)

    def describe(self, table: RowTable, kept: np.ndarray, folder: Path) -> dict:
        """What images and codec add to `stats.json`; draws the codebook and reconstructed test images."""
        notes, num_encoded = list(self.notes), len(table.lines)
        different = len(np.unique(self.scan.digests[self.sides != DROPPED]))
        if (alike := different - len(np.unique(table.lines[kept]))) > 0:
            notes.append(
                f"{alike} of {different} different images were dropped because another image has the same tokens; a "
                "larger codebook or smaller patches distinguish more of them"
            )
        return {
            "images": {"read": len(self.sides), "left_out": int((self.sides == DROPPED).sum()), "notes": notes},
            "codec": {
                "description": self.codec.describe(),
                **self.codec.config,
                "codebook_size": self.codec.codebook_size,
                "grid": list(self.codec.grid),
                "origin": _origin(self.arguments),
                "reconstruction": self._reconstruct(folder),
                "images_encoded": num_encoded,
                "encode_seconds": round(table.counts.encode_seconds, 3),
                "images_per_second": round(num_encoded / max(table.counts.encode_seconds, 1e-9), 1),
                "device": self.device,
            },
        }


def _image_numbers(images: LabelledImages) -> np.ndarray:
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


def _sample(sides: np.ndarray, side: int, limit: int, seed: int) -> np.ndarray:
    """Numbers of up to `limit` images of a side, drawn at random, in ascending order."""
    numbers = np.random.default_rng([seed, 3]).permutation(np.flatnonzero(sides == side))
    return np.sort(numbers[:limit])


def _read(images: LabelledImages, numbers: np.ndarray, to_pixels: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """Images by their numbers; uint8, shape (images, height, width, channels)."""
    return np.stack([to_pixels(images.load(int(number))) for number in numbers])


def _origin(arguments: PrepareArguments) -> str:
    """Which images the codec was fitted on, in words."""
    if arguments.codec:
        return "An existing codec (--codec); the images it was fitted on aren't known here"
    if arguments.centroids:
        return "Existing centroids (--centroids); the images they were fitted on aren't known here"
    return "Fitted on training images only"


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()
