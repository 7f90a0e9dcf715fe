"""Folders, Parquet, Arrow, Hub datasets and NPZ → labelled pictures.

One idea: every source is a numbered list of pictures that is read a slice at a time. A picture that can't be read is a
`BadImage` with a reason in its place; it stops nothing else.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import datasets
import numpy as np
from PIL import Image, UnidentifiedImageError

from imagelm.errors import InputError

READ_SIZE = 256  # pictures decoded at a time
IMAGE_KEYS = ("image", "images", "img", "x", "X", "data")
LABEL_KEYS = ("label", "labels", "y", "fine_label", "target")
TABLE_SUFFIXES = (".parquet", ".arrow")
DATASET_MARKERS = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves


@dataclass(frozen=True)
class BadImage:
    """A picture that can't be read, and why."""

    reason: str


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

    def load(self, start: int, stop: int) -> list[Image.Image | BadImage]:
        """The pictures from `start` to before `stop`."""

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
    sources = [_open(name, image_column, label_column, split) for name in names]
    return sources[0] if len(sources) == 1 else _Joined(sources)


def batches(source: ImageSource, size: int = READ_SIZE) -> Iterator[tuple[int, list[Image.Image | BadImage]]]:
    """The pictures in slices, each with the number of its first one."""
    for start in range(0, len(source), size):
        yield start, source.load(start, min(start + size, len(source)))


def train_and_test(names: Sequence[str]) -> tuple[list[str], list[str], str | None] | None:
    """What to open for training, for testing, and which split of that, where a single name leads to both.

    That is a folder with the folders `train` and `test`, or a dataset with splits of these names; else None.
    """
    if len(names) != 1 or _is_table(names[0]):
        return None
    path = Path(names[0])
    if path.is_dir() and not _is_saved_dataset(path):
        folders = [path / "train", path / "test"]
        return ([str(folders[0])], [str(folders[1])], None) if all(map(Path.is_dir, folders)) else None
    if path.is_file():
        return None
    found = _load_dataset(names[0])
    both = isinstance(found, datasets.DatasetDict) and {"train", "test"} <= set(found)
    return ([names[0]], [names[0]], "test") if both else None


def _open(name: str, image_column: str | None, label_column: str | None, split: str | None) -> ImageSource:
    path = Path(name)
    if not name:
        raise InputError("--images holds an empty name; is a variable unset?")
    if path.suffix == ".npz" and path.is_file():
        return _Arrays(path, image_column, label_column)
    if _is_table(name) or _is_saved_dataset(path):
        return _Dataset(name, image_column, label_column, split)
    if path.is_dir():
        return _Folder(path)
    if path.is_file():
        return _Files([path], path.parent)
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not path.suffix and not name.startswith("."):
        return _Dataset(name, image_column, label_column, split)
    raise InputError(f"--images {name}: no such file or folder")


def _is_table(name: str) -> bool:
    return Path(name).suffix in TABLE_SUFFIXES


def _is_saved_dataset(path: Path) -> bool:
    return any((path / marker).is_file() for marker in DATASET_MARKERS)


class _Files:
    """Picture files without labels."""

    def __init__(self, files: list[Path], root: Path) -> None:
        self.files, self.root = files, root
        self.class_names: list[str] | None = None
        self.labels: np.ndarray | None = None
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self.files)

    def place(self, i: int) -> str:
        return str(self.files[i])

    def name(self, i: int) -> str:
        return self.files[i].relative_to(self.root).as_posix()

    def load(self, start: int, stop: int) -> list[Image.Image | BadImage]:
        return [read_image(file) for file in self.files[start:stop]]

    def extra(self, name: str) -> None:
        return None


class _Folder(_Files):
    """A folder with a folder a class; or, without class folders, pictures without labels."""

    def __init__(self, root: Path) -> None:
        classes = sorted(filter(_is_visible, (entry for entry in root.iterdir() if entry.is_dir())), key=natural_key)
        found = [[file for file in sorted(folder.rglob("*"), key=natural_key) if _is_file(file)] for folder in classes]
        loose = sorted(filter(_is_file, root.iterdir()), key=natural_key)
        if not any(found):
            if not loose:
                raise InputError(f"--images {root} holds no files; expected a folder of pictures for each class")
            super().__init__(loose, root)
            return
        super().__init__([file for files in found for file in files], root)
        empty = [folder.name for folder, files in zip(classes, found, strict=True) if not files]
        self.class_names = [folder.name for folder in classes]
        self.labels = np.repeat(np.arange(len(classes)), [len(files) for files in found])
        if loose:
            self.notes.append(f"{root}: {len(loose)} files outside the class folders aren't used ({loose[0].name}, …)")
        if empty:
            self.notes.append(f"{root}: no picture of class {', '.join(empty)}")


class _Arrays:
    """An NPZ file with an array of pictures and, perhaps, one of labels."""

    def __init__(self, path: Path, image_key: str | None, label_key: str | None) -> None:
        self.path, self.notes = path, []
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise InputError(f"--images {path} can't be read: {error}") from error
        except Exception as error:  # zipfile's own, of which there is no common class
            raise InputError(f"--images {path} is no whole NPZ file: {error}") from error
        self.arrays = arrays
        image_key = _choose(image_key, IMAGE_KEYS, list(arrays), f"--images {path}", "--image_column")
        self.images = arrays[image_key]
        shape = self.images.shape
        if self.images.dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3, 4)):
            raise InputError(
                f"{path}: array {image_key!r} is {self.images.dtype} of shape {shape}; expected uint8 of shape "
                "(images, height, width) or (images, height, width, 1, 3 or 4)"
            )
        self.class_names, self.labels = None, None
        if label_key or set(LABEL_KEYS) & arrays.keys():
            label_key = _choose(label_key, LABEL_KEYS, list(arrays), f"--images {path}", "--label_column")
            if arrays[label_key].shape != shape[:1]:
                raise InputError(f"{path}: {shape[0]} images, but {label_key!r} has shape {arrays[label_key].shape}")
            self.labels, self.class_names = _number(arrays[label_key])

    def __len__(self) -> int:
        return len(self.images)

    def place(self, i: int) -> str:
        return f"{self.path}:{i}"

    def name(self, i: int) -> str:
        return f"{self.path.name}:{i}"

    def load(self, start: int, stop: int) -> list[Image.Image | BadImage]:
        return [
            Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image) for image in self.images[start:stop]
        ]

    def extra(self, name: str) -> np.ndarray | None:
        return self.arrays.get(name)


class _Dataset:
    """A Hugging Face dataset: Parquet, Arrow, `save_to_disk` or Hub."""

    def __init__(self, name: str, image_column: str | None, label_column: str | None, split: str | None) -> None:
        self.dataset, self.notes = name, []
        found = _load_dataset(name)
        if isinstance(found, datasets.DatasetDict):
            split = split or ("train" if "train" in found else next(iter(found)))
            if split not in found:
                raise InputError(f"--images {name} has no split {split!r}; it has {', '.join(found)}")
            found = found[split]
        features = found.features
        pictures = [column for column, feature in features.items() if _holds_pictures(feature)]
        self.image_column = _choose(image_column, tuple(pictures), list(features), f"--images {name}", "--image_column")
        self.pictures = found.select_columns([self.image_column])
        if isinstance(features[self.image_column], datasets.Image):
            self.pictures = self.pictures.cast_column(self.image_column, datasets.Image(decode=False))
        self.table = found
        self.class_names, self.labels = None, None
        classes = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        classes += [column for column in LABEL_KEYS if column in features and column not in classes]
        if label_column or classes:
            column = _choose(label_column, tuple(classes), list(features), f"--images {name}", "--label_column")
            self._take_labels(column, features[column])

    def _take_labels(self, column: str, feature: object) -> None:
        values = self.table.with_format("numpy")[column][:]
        if isinstance(feature, datasets.ClassLabel):
            self.class_names, self.labels = list(feature.names), np.asarray(values, dtype=np.int64)
            if (wrong := np.flatnonzero((self.labels < 0) | (self.labels >= len(self.class_names)))).size:
                raise InputError(f"{self.place(wrong[0])} has no label; leave such rows out of the dataset")
        else:
            self.labels, self.class_names = _number(np.asarray(values))

    def __len__(self) -> int:
        return len(self.pictures)

    def place(self, i: int) -> str:
        return f"{self.dataset}:{i}"

    def name(self, i: int) -> str:
        return f"{Path(self.dataset).name}:{i}"

    def load(self, start: int, stop: int) -> list[Image.Image | BadImage]:
        return [self._read(entry) for entry in self.pictures[start:stop][self.image_column]]

    def _read(self, entry: dict | bytes | None) -> Image.Image | BadImage:
        if isinstance(entry, dict):
            entry = entry.get("bytes") or entry.get("path")
        if not entry:
            return BadImage("there is no picture in this row")
        return read_image(io.BytesIO(entry) if isinstance(entry, bytes) else Path(entry))

    def extra(self, name: str) -> np.ndarray | None:
        return np.asarray(self.table.with_format("numpy")[name][:]) if name in self.table.column_names else None


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

    def load(self, start: int, stop: int) -> list[Image.Image | BadImage]:
        pictures = []
        for source, first in zip(self.sources, self.starts, strict=False):
            low, high = max(start - first, 0), min(stop - first, len(source))
            if low < high:
                pictures += source.load(int(low), int(high))
        return pictures

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


def read_image(file: Path | io.BytesIO) -> Image.Image | BadImage:
    """Decodes a picture file; of an animated one the first frame."""
    try:
        with warnings.catch_warnings():
            # A picture of more than 89 million pixels is taken for a decompression bomb, as Pillow proposes.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)
            with Image.open(file) as image:
                image.load()
                return image
    except UnidentifiedImageError:
        return BadImage("not a picture of a known format, or damaged")
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombWarning) as error:
        return BadImage(f"can't be decoded: {error}")
    except Exception as error:  # a decoder's own; Pillow has no common class for them
        return BadImage(f"can't be decoded: {type(error).__name__}: {error}")


def natural_key(name: Path | str) -> list[tuple[bool, int | str]]:
    """Sorts `2` before `10`, as people do."""
    return [
        (not part.isdecimal(), int(part) if part.isdecimal() else part)
        for part in re.split(r"(\d+)", str(name))
        if part
    ]


def _is_visible(path: Path) -> bool:
    return not path.name.startswith((".", "__"))


def _is_file(path: Path) -> bool:
    return _is_visible(path) and path.is_file() and path.name not in ("Thumbs.db", "desktop.ini")


def _load_dataset(name: str) -> datasets.Dataset | datasets.DatasetDict:
    try:
        if _is_table(name):
            if not Path(name).is_file():
                raise InputError(f"--images {name}: no such file")
            kind = Path(name).suffix[1:]
            return datasets.load_dataset(kind, data_files=str(name), split="train")
        if Path(name).exists():
            return datasets.load_from_disk(str(name))
        return datasets.load_dataset(name)
    except InputError:
        raise
    except Exception as error:  # the library raises its own, pyarrow's, OSError, ConnectionError, ValueError, …
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"--images {name}: no file or folder, and no dataset that can be loaded ({reason})") from error


def _holds_pictures(feature: object) -> bool:
    """Images, or what they are without the library's own note in a Parquet file: {bytes, path}, or bytes."""
    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, dict):
        return {"bytes", "path"} <= set(feature)
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def _choose(asked: str | None, likely: tuple[str, ...], there: list[str], where: str, option: str) -> str:
    if asked:
        if asked not in there:
            raise InputError(f"{where} has no {asked!r}; it has {', '.join(there)}; see {option}")
        return asked
    found = [name for name in likely if name in there]
    if not found:
        raise InputError(f"{where} holds {', '.join(there) or 'nothing'}; say which it is with {option}")
    return found[0]


def _number(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Labels from 0 in the order of the values, and the values' names."""
    if values.dtype.kind not in "iubUSO":
        raise InputError(f"the labels are of type {values.dtype}; expected whole numbers or strings")
    names = sorted({str(value) for value in values.tolist()}, key=natural_key)
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[str(value)] for value in values.tolist()], dtype=np.int64), names
