"""Folders, Parquet, Arrow, Hub datasets and NPZ → labelled pictures.

One idea: every source is a numbered list of pictures that is read a slice at a time, and several are one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import datasets
import numpy as np
from PIL import Image

from imagelm.data.sources.decode import TABLE_SUFFIXES, BadImage, Pictures, natural_key
from imagelm.data.sources.hf import TableOfPictures, is_saved_dataset, load_dataset
from imagelm.data.sources.local import Arrays, Files, Folder
from imagelm.utils.errors import InputError

NO_HUB_IDS = {*Image.registered_extensions(), *TABLE_SUFFIXES, ".npz", ".zip"}  # what files end with
READ_SIZE = 64  # pictures of a slice; in memory are their files at most, and one decoded picture


class ImageSource(Protocol):
    """A numbered list of pictures.

    Attributes:
        class_names: Names of the classes, indexed by label; None where there are no labels.
        labels: Class of each picture, int64, shape (pictures,); None where there are none.
        notes: What was decided while opening, for people.
    """

    class_names: list[str] | None
    labels: np.ndarray | None
    notes: list[str]

    def __len__(self) -> int: ...

    def place(self, i: int) -> str:
        """Where picture `i` stands, for messages and as the id of the image its rows were made from."""

    def name(self, i: int) -> str:
        """The picture's name within its source, without the way to it."""

    def load(self, start: int, stop: int) -> Sequence[Image.Image | BadImage]:
        """The pictures from `start` to before `stop`, each decoded when it is asked for."""

    def extra(self, name: str) -> np.ndarray | None:
        """A further column of numbers, shape (pictures,); None where there is none of this name."""


def open_images(
    names: Sequence[str], image_column: str | None = None, label_column: str | None = None, split: str | None = None
) -> ImageSource:
    """Opens image folders (a folder a class), single files, Parquet/Arrow/Hub datasets or NPZ files as one list.

    Args:
        names: Files, folders, or ids of datasets on the Hub.
        image_column: Column or NPZ array that holds the pictures; found by its type where it isn't given.
        label_column: The same for the labels.
        split: Which split of a dataset with several; None takes the only one, or "train".

    Raises:
        InputError: A name leads nowhere, or what is there holds no pictures.
    """
    try:
        sources = [_open(name, image_column, label_column, split) for name in names]
    except OSError as error:
        raise InputError(f"--images: {error.strerror}: {error.filename}") from error
    return sources[0] if len(sources) == 1 else _Joined(sources)


def batches(source: ImageSource, size: int = READ_SIZE) -> Iterator[tuple[int, Sequence[Image.Image | BadImage]]]:
    """The pictures in slices, each with the number of its first one."""
    for start in range(0, len(source), size):
        yield start, source.load(start, min(start + size, len(source)))


def train_and_test(names: Sequence[str]) -> tuple[list[str], list[str], tuple[str | None, str | None]] | None:
    """What to open for training and for testing, and which splits of it, where a single name leads to both.

    That is a folder with the folders `train` and `test`, or a dataset with splits of these names; else None.
    """
    path = Path(names[0])
    if len(names) != 1 or not names[0] or path.suffix in TABLE_SUFFIXES or path.is_file():
        return None
    if path.is_dir() and not is_saved_dataset(path):
        folders = [path / "train", path / "test"]
        return ([str(folders[0])], [str(folders[1])], (None, None)) if all(map(Path.is_dir, folders)) else None
    if not path.exists() and not _may_be_hub_id(names[0]):
        return None
    found = load_dataset(names[0])
    both = isinstance(found, datasets.DatasetDict) and {"train", "test"} <= set(found)
    return ([names[0]], [names[0]], ("train", "test")) if both else None


def _open(name: str, image_column: str | None, label_column: str | None, split: str | None) -> ImageSource:
    path = Path(name)
    if not name:
        raise InputError("--images holds an empty name; is a variable unset?")
    if path.suffix == ".npz" and path.is_file():
        return Arrays(path, image_column, label_column)
    if path.suffix in TABLE_SUFFIXES or is_saved_dataset(path):
        return TableOfPictures(name, image_column, label_column, split)
    if path.exists() and (asked := image_column or label_column):
        raise InputError(f"--images {name} has no columns, so none is named {asked!r}; leave the option out")
    if path.is_dir():
        return Folder(path)
    if path.is_file():
        return Files([path], path.parent)
    if _may_be_hub_id(name):
        return TableOfPictures(name, image_column, label_column, split)
    raise InputError(f"--images {name}: no such file or folder")


def _may_be_hub_id(name: str) -> bool:
    return bool(re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name)) and Path(name).suffix.lower() not in NO_HUB_IDS


class _Joined:
    """Several sources, one after the other; labels are joined by class name."""

    def __init__(self, sources: list[ImageSource]) -> None:
        self.sources = sources
        self.starts = np.cumsum([0, *map(len, sources)])
        self.notes = [note for source in sources for note in source.notes]
        labelled = [source.labels is not None for source in sources]
        self.class_names, self.labels = None, None
        if all(labelled):
            names = list(dict.fromkeys(name for source in sources for name in source.class_names))
            same = all(source.class_names == names for source in sources)
            self.class_names = names if same else sorted(names, key=natural_key)
            self.labels = np.concatenate([relabel(source, self.class_names) for source in sources])
        elif any(labelled):
            first = sources[labelled.index(False)]
            raise InputError(f"--images: {first.place(0)} has no label, but other pictures have one")

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

    def load(self, start: int, stop: int) -> Pictures:
        places = [self._source_of(i) for i in range(start, stop)]
        return Pictures(lambda place: place[0].load(place[1], place[1] + 1)[0], places)

    def extra(self, name: str) -> np.ndarray | None:
        parts = [source.extra(name) for source in self.sources]
        return None if any(part is None for part in parts) else np.concatenate(parts)


def relabel(source: ImageSource, class_names: list[str]) -> np.ndarray:
    """The labels of a source as numbers of other class names.

    Raises:
        InputError: One of its classes isn't among them.
    """
    number = {name: i for i, name in enumerate(class_names)}
    for label in np.unique(source.labels):
        if source.class_names[label] not in number:
            example = source.place(int(np.flatnonzero(source.labels == label)[0]))
            raise InputError(
                f"{example} is of class {source.class_names[label]!r}, which isn't among {', '.join(class_names)}"
            )
    table = np.array([number.get(name, -1) for name in source.class_names])
    return table[source.labels]
