"""Pictures → rows: form, split, codec, variants.

One idea: pictures are read twice in constant memory. The first reading notes a few bytes of each, from which the form
of all images and the split are settled; the codec is fitted on a sample of the training side; the second reading makes
rows, in the very form in which raw JSONL comes.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from imagelm.codecs.kmeans import fit_patch_codec, fit_unified_codec, read_unified_codebook
from imagelm.codecs.open import open_codec
from imagelm.codecs.reconstruction import draw_codec, measure_reconstruction
from imagelm.data.arguments import PrepareArguments
from imagelm.data.augmentation import augment, parse_augmentation
from imagelm.data.image_form import choose_image_format
from imagelm.data.image_scan import survey
from imagelm.data.rows import NO_SPLIT, ProblemLog, RowBatch
from imagelm.data.sources.decode import BadImage
from imagelm.data.sources.open import ImageSource, batches, open_images, relabel, train_and_test
from imagelm.data.splits import TEST, TRAIN, assign_splits, split_in_words
from imagelm.remote_code.codec_imagelm import Codec, read_pixels
from imagelm.tokens.grammar import Grammar, make_vocabulary
from imagelm.utils.artifacts import CODEC_FOLDER
from imagelm.utils.device import choose_device
from imagelm.utils.errors import InputError

LEFT_OUT = -1
MANY_TOKENS = 4096
MAX_FIT_IMAGES = 20_000
MAX_FIT_BYTES = 256 << 20
NUM_QUALITY_IMAGES = 1000


class ImageRows:
    """Pictures as a source of rows; made for `imagelm.data.prepare.prepare`.

    Args:
        options: What the user said.
        staging: The output folder that is being written.
        problems: Where pictures that can't be read are reported.

    Attributes:
        grammar: Vocabulary of codec and classes.
        codec: The codec, also saved in `staging`.
        class_names: Names of the classes, indexed by label.
        split_by: "field": the rows say themselves on which side they stand.

    Raises:
        InputError: No picture can be read, there are no labels, or a split or a codebook can't be made of them.
    """

    split_by = "field"

    def __init__(self, options: PrepareArguments, staging: Path, problems: ProblemLog) -> None:
        self.options, self.about, self.staging = options, options, staging
        self.recipe = parse_augmentation(self.about.augment)
        self.device = str(choose_device(self.about.device))
        self.notes: list[str] = []
        self.codec = open_codec(options.codec) if options.codec else None
        self._open()
        self._survey(problems)
        self._split()
        self.form, notes = choose_image_format(self.about, self.codec, self.found, self.sides)
        self.notes += notes
        self.t = self._numbers_in_class() if "t" in self._features() else None
        self.codec = self.codec or self._fit()
        self.codec.save(staging / CODEC_FOLDER)
        if self.codec.num_tokens > MANY_TOKENS:
            self.notes.append(
                f"an image takes {self.codec.num_tokens} tokens, and attention's cost grows with their square; "
                "--image_size and --patch_size make it fewer"
            )
        self.grammar = Grammar(make_vocabulary(self.codec.codebook_size, len(self.class_names)))
        self.num_encoded, self.seconds = 0, 0.0

    def place(self, file: str, number: int) -> str:
        """Where a picture stands, by its number over both sides."""
        source, own = self._locate(number)
        return source.place(own)

    @property
    def split(self) -> str:
        """How the split was made, in words."""
        if len(self.sources) == 2:
            return "as given, with the test images apart"
        return split_in_words(self.options.split_by, self.options.seed)

    @property
    def files(self) -> list[str]:
        """The names that were given; rows number their pictures over all of them."""
        return [", ".join([*self.about.images, *(self.about.test_images or [])])]

    def batches(self) -> Iterator[RowBatch]:
        """All rows: each readable picture, and after each training picture its variants."""
        for start, pictures in self._pictures("encoding"):
            used = np.flatnonzero(self.sides[start : start + len(pictures)] != LEFT_OUT)
            if len(used):
                images = np.stack([read_pixels(pictures[i], **self.form) for i in used])
                yield self._rows(images, start + used)

    def statistics(self, used: np.ndarray) -> dict:
        """What pictures and codec add to `stats.json`; draws the codec into the output folder.

        Args:
            used: Numbers of the pictures whose rows stay, perhaps several times.
        """
        different = len(np.unique(self.found.digests[self.sides != LEFT_OUT]))
        if (alike := different - len(np.unique(used))) > 0:
            self.notes.append(
                f"{alike} of {different} different pictures have the tokens of another one and were dropped; a larger "
                "codebook or smaller patches tell more of them apart"
            )
        reconstruction = None
        if self.codec.can_decode:
            numbers = self._choose(TEST, NUM_QUALITY_IMAGES)
            held_out = self._read(numbers)
            restored = self.codec.decode(self._encode(held_out, numbers))
            draw_codec(self.codec, held_out, restored, self.staging)
            reconstruction = measure_reconstruction(held_out, restored)
        return {
            "images": {
                "read": len(self.sides),
                "left_out": int((self.sides == LEFT_OUT).sum()),
                "notes": self.notes,
            },
            "codec": {
                "description": self.codec.describe(),
                **self.codec.config,
                "codebook_size": self.codec.codebook_size,
                "grid": list(self.codec.grid),
                "origin": self._origin(),
                "reconstruction": reconstruction,
                "images_encoded": self.num_encoded,
                "encode_seconds": round(self.seconds, 3),
                "images_per_second": round(self.num_encoded / max(self.seconds, 1e-9), 1),
                "device": self.device,
            },
        }

    def _origin(self) -> str:
        """Which images the codec has seen, in words."""
        if self.options.codec:
            return "The codec was there already (--codec); which images it has seen isn't known here"
        if self.about.centroids:
            return "The centroids were there already (--centroids); what they were fitted on isn't known here"
        return "It has seen training images alone"

    def _open(self) -> None:
        columns = {"image_column": self.about.image_column, "label_column": self.about.label_column}
        train, test, splits = self.about.images, self.about.test_images, (None, None)
        if test is None and (found := train_and_test(train)):
            self.notes.append(f"{train[0]} has a train and a test split of its own; both are taken as they are")
            train, test, splits = found
        if test is not None and (self.options.test_size, self.options.split_by) != (0.2, "stratified"):
            raise InputError("--test_size and --split_by have no effect where test images are given; leave them out")
        self.sources = [open_images(train, **columns, split=splits[0])]
        if test is not None:
            self.sources.append(open_images(test, **columns, split=splits[1]))
        for source, names in zip(self.sources, (train, test), strict=False):
            if not len(source):
                raise InputError(f"{', '.join(names)}: there are no pictures in it")
            if source.labels is None:
                raise InputError(
                    f"{source.place(0)} has no label; expected a folder for each class, or a label column or array "
                    "(see --label_column)"
                )
            self.notes += source.notes
        self.class_names = self.sources[0].class_names
        if len(self.class_names) < 2:
            raise InputError(f"all pictures are of one class ({self.class_names[0]}); expected two or more")
        if self.options.split_by == "field" and test is None:
            raise InputError("--split_by field: pictures have no such field; name the held-out ones with --test_images")
        self.labels = np.concatenate([relabel(source, self.class_names) for source in self.sources])

    def _pictures(self, what: str) -> Iterator[tuple[int, Sequence[Image.Image | BadImage]]]:
        """All pictures in slices, those to hold out last, each slice with the number of its first one."""
        first = 0
        with tqdm(total=len(self.labels), unit=" images", desc=what, disable=None) as progress:
            for source in self.sources:
                for start, pictures in batches(source):
                    yield first + start, pictures
                    progress.update(len(pictures))
                first += len(source)

    def _survey(self, problems: ProblemLog) -> None:
        slices = self._pictures("reading")
        count = len(self.labels)
        background = self.codec.config["background"] if self.codec else self.about.background
        self.found = survey(slices, count, background, problems, lambda i: self.place("", i))
        problems.stop_if(self.options.on_bad_rows)
        if not self.found.readable.any():
            raise InputError(f"none of the {count} pictures can be read\n{problems.summary()}")

    def _split(self) -> None:
        """The side of each picture; `LEFT_OUT` for those that can't be read or would stand on both sides."""
        self.sides = np.full(len(self.labels), LEFT_OUT, dtype=np.int8)
        usable = np.flatnonzero(self.found.readable)
        digests = self.found.digests
        if len(self.sources) == 1:
            labels, unknown = self.labels[usable], np.full(len(usable), NO_SPLIT)
            how = (self.options.split_by, self.options.test_size, self.options.seed)
            self.sides[usable] = assign_splits(*how, labels, digests[usable], unknown, self.class_names)
            return
        self.sides[usable] = np.where(usable < len(self.sources[0]), TRAIN, TEST)
        held_out = set(map(bytes, digests[self.sides == TEST]))
        twice = [i for i in np.flatnonzero(self.sides == TRAIN) if bytes(digests[i]) in held_out]
        self.sides[twice] = LEFT_OUT
        if twice:
            # Their variants would stand on the training side.
            self.notes.append(f"{len(twice)} training pictures stand among the test pictures too and were left out")
        if not (self.sides == TRAIN).any() or not (self.sides == TEST).any():
            raise InputError(
                "no usable picture is left in the training or the test split"
                + (f": {len(twice)} training pictures stand among the test pictures" if twice else "")
            )

    def _features(self) -> list[str]:
        """The features of a unified codec; none of another."""
        if self.codec:
            return self.codec.config.get("features", [])
        if self.about.codebook != "unified":
            return []
        height, width = self.form["image_size"]
        if min(height, width) < 2:
            raise InputError(f"images of {height}×{width} pixels have no gradient; give an --image_size from 2x2 on")
        if self.about.centroids:
            return read_unified_codebook(self.about.centroids, **self.form).config["features"]
        return self.about.features.split(",")

    def _fit(self) -> Codec:
        """A codec that has seen training pictures alone."""
        about, seed = self.about, self.options.seed
        if about.centroids:
            return read_unified_codebook(about.centroids, **self.form)
        (height, width), channels = self.form["image_size"], self.form["channels"]
        numbers = self._choose(TRAIN, min(MAX_FIT_IMAGES, max(1, MAX_FIT_BYTES // (height * width * channels))))
        images = self._read(numbers)
        how = {name: self.form[name] for name in ("fit", "background")}
        if about.codebook == "patch":
            return fit_patch_codec(images, about.patch_size, about.codebook_size, seed, **how)
        if about.codebook == "unified":
            t = None if self.t is None else self.t[numbers]
            features = self._features()
            return fit_unified_codec(images, about.codebook_size, seed, features, about.feature_scaling, t, **how)
        from imagelm.codecs.vq_autoencoder import fit_learned_codec  # late, as its library is slow to import

        sizes = (about.patch_size, about.codebook_size)
        return fit_learned_codec(images, *sizes, seed, about.codec_steps, self.device, **how)

    def _numbers_in_class(self) -> np.ndarray:
        """t of each picture: a column or array of that name, or else the picture's index within its class."""
        given = [source.extra("t") for source in self.sources]
        if all(numbers is not None for numbers in given):
            for numbers, source in zip(given, self.sources, strict=True):
                if numbers.dtype.kind not in "iuf" or numbers.shape != (len(source),) or not np.isfinite(numbers).all():
                    raise InputError(f"t beside {source.place(0)} isn't a finite number for each of its pictures")
            return np.concatenate(given).astype(np.float64)
        numbers = np.empty(len(self.labels))
        for label in range(len(self.class_names)):
            members = np.flatnonzero(self.labels == label)
            numbers[members] = np.arange(len(members))
        return numbers

    def _choose(self, side: int, limit: int) -> np.ndarray:
        """Numbers of up to `limit` pictures of a side, drawn at random, in their order."""
        numbers = np.random.default_rng([self.options.seed, 3]).permutation(np.flatnonzero(self.sides == side))
        return np.sort(numbers[:limit])

    def _read(self, numbers: np.ndarray) -> np.ndarray:
        """Pictures by their numbers; uint8, shape (images, height, width, channels)."""
        places = [self._locate(int(number)) for number in numbers]
        return np.stack([read_pixels(source.load(i, i + 1)[0], **self.form) for source, i in places])

    def _locate(self, number: int) -> tuple[ImageSource, int]:
        first = len(self.sources[0])
        return (self.sources[0], number) if number < first else (self.sources[1], number - first)

    def _source_id(self, number: int) -> str:
        """What tells a picture from all others in the published rows, without the folders of this machine."""
        source, own = self._locate(number)
        return f"{number}:{source.name(own)}"

    def _encode(self, images: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        features = {} if self.t is None else {"t": self.t[numbers]}
        threads = torch.get_num_threads()
        if self.codec.kind != "learned":
            # These products are small: two threads that wait for each other take longer than one, and ten times as
            # long where another job has a core.
            torch.set_num_threads(1)
        try:
            return self.codec.encode(images, self.device, **features)
        finally:
            torch.set_num_threads(threads)

    def _rows(self, images: np.ndarray, numbers: np.ndarray) -> RowBatch:
        images, origin = self._with_variants(images, numbers)
        numbers = numbers[origin]
        started = time.perf_counter()
        entries = self._encode(images, numbers)
        self.seconds += time.perf_counter() - started
        self.num_encoded += len(images)
        return RowBatch(
            bodies=self.grammar.code_ids[entries].reshape(-1),
            lengths=np.full(len(images), self.codec.num_tokens),
            labels=self.labels[numbers],
            splits=self.sides[numbers],
            sources=[self._source_id(int(number)) for number in numbers],
            lines=numbers,
            file=self.files[0],
            num_repaired=0,
            images=[_png(image) for image in images] if self.about.keep_images else None,
        )

    def _with_variants(self, images: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each picture, a training picture followed by its variants; and which picture each was made from."""
        if self.recipe is None:
            return images, np.arange(len(images))
        count, is_train = self.about.variants, self.sides[numbers] == TRAIN
        repeats = np.where(is_train, 1 + count, 1)
        origin = np.repeat(np.arange(len(images)), repeats)
        is_variant = np.ones(len(origin), dtype=bool)
        is_variant[np.cumsum(repeats) - repeats] = False
        rows = images[origin]
        if is_variant.any():
            seeds = [(self.options.seed, int(number)) for number in numbers[is_train]]
            maps = np.concatenate([self.recipe.draw(count, seed) for seed in seeds])
            rows[is_variant] = augment(rows[is_variant], maps, self.form["background"])
        return rows, origin


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()
