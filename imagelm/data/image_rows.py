"""Images → rows: plan, encode, describe.

One idea: images are read twice in constant memory. The first reading makes the plan; the second one makes the rows.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from imagelm.codecs.reconstruction import draw_codec, measure_reconstruction
from imagelm.data.arguments import PrepareArguments
from imagelm.data.augmentation import add_variants, parse_augmentation
from imagelm.data.image_plan import (
    ImagePlan,
    draw_sample,
    image_numbers,
    load_plan,
    load_scans,
    make_plan,
    read_sample,
    save_scan,
    scan_share,
)
from imagelm.data.rows import ProblemLog, RowBatch, RowTable
from imagelm.data.shards import SavedPlan, check_input
from imagelm.data.sources.open import LabelledImages, open_labelled_images
from imagelm.data.splits import DROPPED, TEST, TRAIN
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.vocabulary import make_vocabulary
from imagelm.utils.artifacts import CODEC_FOLDER
from imagelm.utils.device import choose_device

NUM_QUALITY_IMAGES = 1000


def open_image_rows(
    arguments: PrepareArguments, staging: Path, problems: ProblemLog, saved: SavedPlan | None
) -> ImageRows:
    """Opens the images, and makes their plan unless one is saved; the codec is saved in `staging`.

    Raises:
        InputError: No image can be read, labels are missing, or a split or a codebook can't be made of the images; or
            the images aren't those of the saved plan.
    """
    images = _open_images(arguments)
    if saved:
        check_input(saved.record["input"], images.identity, saved.folder)
        plan = load_plan(saved.folder, saved.record["words"])
    else:
        plan = make_plan(arguments, images, scan_share(arguments, images, problems), problems)
    plan.codec.save(staging / CODEC_FOLDER)
    return ImageRows(arguments, images, plan, {} if saved is None else {"plan": saved.digest})


def scan_images_of_shard(arguments: PrepareArguments, folder: Path, problems: ProblemLog) -> dict[str, object]:
    """Reads a share of the images, saves what the plan needs of them, and returns what all images are."""
    images = _open_images(arguments)
    save_scan(scan_share(arguments, images, problems), images.spans(arguments.share), folder)
    return images.identity


def plan_scanned_images(
    arguments: PrepareArguments, scans: list[Path], folder: Path, problems: ProblemLog
) -> dict[str, Any]:
    """Makes the plan of images that were read into several folders, saves it, and returns the rest, for JSON."""
    images = _open_images(arguments)
    words = make_plan(arguments, images, load_scans(scans), problems).save(folder)
    return {"words": words, "input": images.identity}


def _open_images(arguments: PrepareArguments) -> LabelledImages:
    parse_augmentation(arguments.augment)
    choose_device(arguments.device)  # both are refused before anything is read
    return open_labelled_images(arguments)


@dataclass
class ImageRows:
    """Images as a source of rows (`RowSource`)."""

    arguments: PrepareArguments
    images: LabelledImages
    plan: ImagePlan
    plan_identity: dict[str, object]
    split_by: str = "field"  # each row names its side, as the split was made from the images
    validation_size: float = 0.0

    def __post_init__(self) -> None:
        self.codec, self.sides = self.plan.codec, self.plan.sides
        self.split, self.split_notes = self.plan.split, self.plan.split_notes
        self.recipe, self.device = parse_augmentation(self.arguments.augment), str(choose_device(self.arguments.device))
        self.t = image_numbers(self.images) if "t" in self.codec.config.get("features", []) else None
        self.grammar = Grammar(make_vocabulary(self.codec.codebook_size, len(self.images.class_names)))
        self.class_names, self.files = self.images.class_names, [self.images.files]

    @property
    def identity(self) -> dict[str, object]:
        """What the images are, and their plan if it is a saved one."""
        return self.images.identity | self.plan_identity

    def place(self, file: str, line: int) -> str:
        """Where an image is, by its number."""
        return self.images.place(line)

    def batches(self) -> Iterator[RowBatch]:
        """All rows: each image that is used, and after each training image its variants."""
        for start, part in self.images.slices("encoding", self.arguments.share):
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
        numbers = draw_sample(self.sides, TEST, NUM_QUALITY_IMAGES, self.arguments.seed)
        pixels = read_sample(self.images, numbers, self.codec.pixels)
        restored = self.codec.decode(self._encode(pixels, numbers))
        draw_codec(self.codec, pixels, restored, folder)
        return measure_reconstruction(pixels, restored)

    def describe(self, table: RowTable, sides: np.ndarray, folder: Path) -> dict:
        """What images and codec add to `stats.json`; draws the codebook and reconstructed test images."""
        notes, num_encoded = list(self.plan.notes), table.num_rows
        stays = np.zeros(len(self.sides), dtype=bool)
        for span, rows in table.chunks():
            stays[rows["lines"][sides[span] != DROPPED]] = True
        different = len(np.unique(self.plan.digests[self.sides != DROPPED]))
        if (alike := different - int(stays.sum())) > 0:
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
