"""Folders, Parquet, Arrow, Hub datasets and NPZ → labelled images.

One idea: every source is a numbered list of images that is read a slice at a time; several sources are joined to one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from tqdm import tqdm

from imagelm.data.arguments import TABLE_SUFFIXES, PrepareArguments, is_table
from imagelm.data.sources.decode import BadImage, ImageSource, LazyImages, natural_key
from imagelm.data.sources.hf import DatasetSource, is_labelled, is_saved_dataset, load_dataset, metadata_file
from imagelm.data.sources.local import OTHER_FILES, ArraySource, FileSource, FolderSource, array_names, split_arrays
from imagelm.data.sources.names import choose_splits
from imagelm.utils.errors import InputError
from imagelm.utils.text import name_problem, printable

NO_HUB_IDS = {*Image.registered_extensions(), *TABLE_SUFFIXES, ".npz", ".zip"}  # suffixes of files
READ_SIZE = 64  # images per slice; memory holds at most their files and one decoded image


@dataclass(frozen=True)
class LabelledImages:
    """The images to prepare, numbered over one source, or over one for training and one for testing.

    Attributes:
        sources: The images to split; or the training images, then the test images.
        class_names: Names of the classes, indexed by label.
        labels: Class of each image; int64, shape (images,).
        files: The names that were given, as one text.
        notes: Decisions made while opening the sources, for the summary.
    """

    sources: tuple[ImageSource, ...]
    class_names: list[str]
    labels: np.ndarray
    files: str
    notes: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def num_first(self) -> int:
        """Images of the first source."""
        return len(self.sources[0])

    def locate(self, number: int) -> tuple[ImageSource, int]:
        """The source of an image, and the image's number in it."""
        return (self.sources[0], number) if number < self.num_first else (self.sources[1], number - self.num_first)

    def place(self, number: int) -> str:
        """Where an image is, for messages."""
        source, own = self.locate(number)
        return source.place(own)

    def name(self, number: int) -> str:
        """Identifies an image in the published rows, without the folders of this machine."""
        source, own = self.locate(number)
        return f"{number}:{source.name(own)}"

    def load(self, number: int) -> Image.Image:
        """Decodes one image, which the scan could read."""
        source, own = self.locate(number)
        return self.check_readable(number, source.load(own, own + 1)[0])

    def check_readable(self, number: int, image: Image.Image | BadImage) -> Image.Image:
        """The image, if it can still be read; else an InputError."""
        if isinstance(image, BadImage):
            raise InputError(f"{self.place(number)} changed while it was prepared ({image.reason}); start again")
        return image

    def slices(self, description: str) -> Iterator[tuple[int, Sequence[Image.Image | BadImage]]]:
        """All images in slices, test images last, each slice with the number of its first image."""
        first = 0
        with tqdm(total=len(self), unit=" images", desc=description, disable=None) as progress:
            for source in self.sources:
                for start, images in batches(source):
                    yield first + start, images
                    progress.update(len(images))
                first += len(source)


def open_labelled_images(arguments: PrepareArguments) -> LabelledImages:
    """Opens `--images` and `--test_images`.

    Raises:
        InputError: There are no images, labels or classes, or the options contradict each other.
    """
    train, test, notes = arguments.images or [], arguments.test_images, []
    splits: tuple[str | None, str | None] = (None, None)
    columns = arguments.image_column, arguments.label_column
    one_array = any(columns) and _is_archive(Path(train[0]))  # which is of one split
    if test is None and not one_array and (found := train_and_test(train)):
        train, test, splits, note = found
        notes.append(note)
    useless = [entry.flag for entry in arguments.changed() if entry.name in ("test_size", "split_by")]
    if test is not None and useless:
        raise InputError(f"{useless[0]} has no effect where test images are given; remove it")
    sides = [(names, split) for names, split in zip((train, test), splits, strict=True) if names is not None]
    sources = [open_images(names, *columns, split, arguments.image_root) for names, split in sides]
    for source, (names, _) in zip(sources, sides, strict=True):
        if not len(source):
            raise InputError(f"{', '.join(names)} holds no images")
        if source.labels is None:
            raise InputError(
                f"{source.place(0)} has no label; expected a folder for each class, or a label column or array "
                "(see --label_column)"
            )
        notes += [*source.notes, *source.columns]
    class_names = sources[0].class_names or []
    if len(class_names) < 2:
        raise InputError(f"all images are of one class ({printable(class_names[0])}); expected two or more")
    if arguments.split_by == "field" and test is None:
        raise InputError("--split_by field: images have no such field; name the test images with --test_images")
    labels = np.concatenate([relabel(source, class_names) for source in sources])
    files = ", ".join([*(arguments.images or []), *(arguments.test_images or [])])
    return LabelledImages(tuple(sources), class_names, labels, files, notes)


def open_images(
    names: Sequence[str],
    image_column: str | None = None,
    label_column: str | None = None,
    split: str | None = None,
    image_root: str | None = None,
) -> ImageSource:
    """Opens image folders (one folder per class), single files, Parquet/Arrow/Hub datasets or NPZ files as one list.

    Args:
        names: Files, folders, or ids of datasets on the Hub.
        image_column, label_column: Columns or NPZ arrays; found by type and name by default.
        split: Which split of a dataset with several; None takes the only one, or "train".
        image_root: Where Parquet and Arrow files may name image files; None: nowhere.

    Raises:
        InputError: A name doesn't exist or holds no images.
    """
    try:
        sources = [_open(name, image_column, label_column, split, image_root) for name in names]
    except OSError as error:
        raise InputError(f"--images: {error.strerror}: {error.filename}") from error
    for source in sources:
        _check_class_names(source)
    if len(sources) == 1:
        return sources[0]
    joined = _JoinedSource(sources)
    _check_class_names(joined)
    return joined


def batches(source: ImageSource, size: int = READ_SIZE) -> Iterator[tuple[int, Sequence[Image.Image | BadImage]]]:
    """The images in slices, each with the number of its first one."""
    for start in range(0, len(source), size):
        yield start, source.load(start, min(start + size, len(source)))


def train_and_test(names: Sequence[str]) -> tuple[list[str], list[str], tuple[str | None, str | None], str] | None:
    """The names to open for training and for testing, their splits, and a note, if a single name holds both.

    That is a folder with folders such as `train` and `val`, or a dataset with such splits; else None.

    Raises:
        InputError: Several splits could be the one to use.
    """
    path = Path(names[0])
    if len(names) == 1 and _is_archive(path):
        offered = list(split_arrays(array_names(path)))
        chosen = choose_splits(offered, names[0])
        return ([*names], [*names], chosen, _note_on_splits(names[0], chosen, offered)) if chosen else None
    if len(names) != 1 or not names[0] or is_table(path) or path.is_file():
        return None
    if path.is_dir() and not is_saved_dataset(path):
        offered = sorted(entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        if chosen := choose_splits(offered, names[0]):
            train, held_out = (str(path / name) for name in chosen)
            return [train], [held_out], (None, None), _note_on_splits(names[0], chosen, offered)
        return None
    if not path.exists() and not _may_be_hub_id(names[0]):
        return None
    found = load_dataset(names[0])
    if not isinstance(found, datasets.DatasetDict):
        return None
    labelled = [split for split, rows in found.items() if is_labelled(rows)]
    if chosen := choose_splits(labelled, names[0]):
        offered = [split if split in labelled else f"{split} (it has no labels)" for split in found]
        return [names[0]], [names[0]], chosen, _note_on_splits(names[0], chosen, offered)
    return None


def _note_on_splits(where: str, chosen: tuple[str, str], offered: Sequence[str]) -> str:
    unused = ", ".join(printable(name) for name in offered if name not in chosen)
    note = f"{where} has a {chosen[0]} and a {chosen[1]} split, which are used as they are"
    return f"{note}; not used: {unused}" if unused else note


def relabel(source: ImageSource, class_names: list[str]) -> np.ndarray:
    """The labels of a labelled source as indices of other class names; an InputError if one of its own isn't there."""
    own, labels = source.class_names or [], np.asarray(source.labels)
    number = {name: i for i, name in enumerate(class_names)}
    for label in np.unique(labels):
        if own[label] not in number:
            example = source.place(int(np.flatnonzero(labels == label)[0]))
            known = ", ".join(map(printable, class_names))
            raise InputError(f"{example} is of class {own[label]!r}, which isn't among {known}")
    return np.array([number.get(name, -1) for name in own])[labels]


def _check_class_names(source: ImageSource) -> None:
    if problem := name_problem(source.class_names or []):
        raise InputError(f"--images {source.origin}: {problem}; rename one, or choose another --label_column")


def _open(
    name: str, image_column: str | None, label_column: str | None, split: str | None, image_root: str | None
) -> ImageSource:
    path = Path(name)
    if not name:
        raise InputError("--images holds an empty name; is a variable unset?")
    if _is_archive(path):
        return ArraySource(path, image_column, label_column, split)
    if is_table(path) or is_saved_dataset(path) or metadata_file(path):
        return DatasetSource(name, image_column, label_column, split, image_root)
    if path.is_file() and (other := OTHER_FILES.get(path.suffix.lower())):
        raise InputError(f"--images {name} is {other}")
    if path.exists() and (asked := image_column or label_column):
        raise InputError(f"--images {name} has no columns, so none is named {asked!r}; remove the option")
    if path.is_dir():
        return FolderSource(path)
    if path.is_file():
        return FileSource([path], path.parent)
    if _may_be_hub_id(name):
        return DatasetSource(name, image_column, label_column, split)
    raise InputError(f"--images {name}: no such file or folder")


def _is_archive(path: Path) -> bool:
    return path.suffix.lower() == ".npz" and path.is_file()


def _may_be_hub_id(name: str) -> bool:
    return bool(re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name)) and Path(name).suffix.lower() not in NO_HUB_IDS


class _JoinedSource(ImageSource):
    """Several sources, one after the other; labels are joined by class name."""

    def __init__(self, sources: list[ImageSource]) -> None:
        super().__init__(", ".join(source.origin for source in sources))
        self.sources = sources
        self.starts = np.cumsum([0, *map(len, sources)])
        self.notes = [note for source in sources for note in source.notes]
        self.columns = [note for source in sources for note in source.columns]
        named = [source.class_names for source in sources if source.class_names is not None]
        if len(named) == len(sources):
            names = list(dict.fromkeys(name for own in named for name in own))
            self.class_names = names if all(own == names for own in named) else sorted(names, key=natural_key)
            self.labels = np.concatenate([relabel(source, self.class_names) for source in sources])
        elif named:
            first = next(source for source in sources if source.class_names is None)
            raise InputError(f"--images: {first.place(0)} has no label, but other images have one")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _source_of(self, i: int) -> tuple[ImageSource, int]:
        number = int(np.searchsorted(self.starts, i, side="right")) - 1
        return self.sources[number], i - int(self.starts[number])

    def place(self, i: int) -> str:
        source, own = self._source_of(i)
        return source.place(own)

    def name(self, i: int) -> str:
        source, own = self._source_of(i)
        return source.name(own)

    def load(self, start: int, stop: int) -> LazyImages:
        places = [self._source_of(i) for i in range(start, stop)]
        return LazyImages(lambda place: place[0].load(place[1], place[1] + 1)[0], places)

    def extra(self, name: str) -> np.ndarray | None:
        parts = [column for source in self.sources if (column := source.extra(name)) is not None]
        return np.concatenate(parts) if len(parts) == len(self.sources) else None
