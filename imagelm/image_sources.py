"""The kinds of image sources: folders, NPZ files, datasets; and reading one picture.

One idea: a picture that can't be read is a `BadImage` with a reason in its place; it stops nothing else.
"""

from __future__ import annotations

import glob
import io
import os
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from imagelm.errors import InputError
from imagelm.untrusted import check_archive_size, check_saved_dataset, is_inside

IMAGE_KEYS = ("image", "images", "img", "x", "X", "data")
LABEL_KEYS = ("label", "labels", "y", "fine_label", "target")
TABLE_SUFFIXES = (".parquet", ".arrow")
DATASET_MARKERS = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves
DRAWN_BY_PROGRAMS = ("EPS", "WMF")
NUM_FRAMES = "num_frames"  # in `info` of a picture that has several


@dataclass(frozen=True)
class BadImage:
    """A picture that can't be read, and why."""

    reason: str


class Pictures(Sequence):
    """Pictures that are decoded when they are asked for, and not kept.

    Args:
        read: Decodes one.
        items: What each is decoded from.
    """

    def __init__(self, read: Callable, items: Sequence) -> None:
        self.read, self.items = read, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int | slice) -> Image.Image | BadImage | Pictures:
        return Pictures(self.read, self.items[i]) if isinstance(i, slice) else self.read(self.items[i])


class Files:
    """Picture files without labels."""

    def __init__(self, files: list[Path], root: Path) -> None:
        self.files, self.root = files, root
        self.class_names: list[str] | None = None
        self.labels: np.ndarray | None = None
        self.notes: list[str] = []

    def __len__(self) -> int:
        return len(self.files)

    def place(self, i: int) -> str:
        return printable(self.files[i])

    def name(self, i: int) -> str:
        return printable(self.files[i].relative_to(self.root).as_posix())

    def load(self, start: int, stop: int) -> Pictures:
        return Pictures(read_image, self.files[start:stop])

    def extra(self, name: str) -> None:
        return None


class Folder(Files):
    """A folder with a folder a class; or, without class folders, pictures without labels."""

    def __init__(self, root: Path) -> None:
        classes = sorted((e for e in root.iterdir() if e.is_dir() and _is_visible(e, root)), key=natural_key)
        found, links = [], []
        for folder in classes:
            files, unfollowed = _picture_files(folder, root)
            found.append(files)
            links += unfollowed
        loose = sorted((entry for entry in root.iterdir() if _is_picture_file(entry, root)), key=natural_key)
        if not any(found):
            if not loose:
                raise InputError(f"--images {root} holds no files; expected a folder of pictures for each class")
            if tables := [file for file in loose if file.suffix in TABLE_SUFFIXES]:
                raise InputError(f"--images {root} is a folder of data files; name them, as in {tables[0]}")
            super().__init__(loose, root)
            return
        super().__init__([file for files in found for file in files], root)
        empty = [printable(folder.name) for folder, files in zip(classes, found, strict=True) if not files]
        classes = [folder for folder, files in zip(classes, found, strict=True) if files]
        found = [files for files in found if files]
        self.class_names = [printable(folder.name) for folder in classes]
        self.labels = np.repeat(np.arange(len(classes)), [len(files) for files in found])
        if loose:
            self.notes.append(f"{root}: not used, as it lies outside the class folders: {_shown(loose, root)}")
        if links:
            self.notes.append(f"{root}: not followed, as it is a link to a folder: {_shown(links, root)}")
        if empty:
            self.notes.append(f"{root}: no picture in {', '.join(empty)}, so there is no such class")


class Arrays:
    """An NPZ file with an array of pictures and, perhaps, one of labels."""

    def __init__(self, path: Path, image_key: str | None, label_key: str | None) -> None:
        self.path, self.notes = path, []
        self.names = self._load(None)
        image_key = _choose(image_key, IMAGE_KEYS, self.names, f"--images {path}", "--image_column")
        self.images = self._load(image_key, mapped=True)
        shape = self.images.shape
        if self.images.dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3, 4)):
            raise InputError(
                f"{path}: array {image_key!r} is {self.images.dtype} of shape {shape}; expected uint8 of shape "
                "(images, height, width) or (images, height, width, 1, 3 or 4)"
            )
        self.class_names, self.labels = None, None
        if label_key or set(LABEL_KEYS) & set(self.names):
            label_key = _choose(label_key, LABEL_KEYS, self.names, f"--images {path}", "--label_column")
            labels = self._load(label_key)
            if labels.shape != shape[:1]:
                raise InputError(f"{path}: {shape[0]} images, but {label_key!r} has shape {labels.shape}")
            self.labels, self.class_names = _number(labels, self)

    def _load(self, name: str | None, mapped: bool = False) -> np.ndarray | list[str]:
        """An array, or the names of all; others are never opened.

        Args:
            name: Of the array; None for the names.
            mapped: Unpack it to a temporary file that is read piece by piece as it's used, and gone with the array.
        """
        try:
            if name is not None:
                check_archive_size(self.path, name, on_disk=mapped)
            with open(self.path, "rb") as file:
                if not zipfile.is_zipfile(file):  # numpy would take it for a pickle
                    raise ValueError("it is no NPZ file (a zip of arrays), or damaged")
            if mapped:
                with zipfile.ZipFile(self.path) as archive, tempfile.TemporaryDirectory() as folder:
                    return np.load(archive.extract(f"{name}.npy", folder), mmap_mode="r", allow_pickle=False)
            with np.load(self.path, allow_pickle=False) as archive:
                return list(archive.files) if name is None else archive[name]
        except InputError:
            raise
        except (OSError, ValueError, EOFError, KeyError) as error:
            raise InputError(f"--images {self.path} can't be read: {error}") from error
        except Exception as error:  # zipfile's own, of which there is no common class
            raise InputError(f"--images {self.path} is no whole NPZ file: {error}") from error

    def __len__(self) -> int:
        return len(self.images)

    def place(self, i: int) -> str:
        return f"{self.path}:{i}"

    def name(self, i: int) -> str:
        return f"{self.path.name}:{i}"

    def load(self, start: int, stop: int) -> Pictures:
        def read(image: np.ndarray) -> Image.Image:
            return Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)

        return Pictures(read, self.images[start:stop])

    def extra(self, name: str) -> np.ndarray | None:
        return self._load(name) if name in self.names else None


class TableOfPictures:
    """A Hugging Face dataset: Parquet, Arrow, `save_to_disk` or Hub."""

    def __init__(self, name: str, image_column: str | None, label_column: str | None, split: str | None) -> None:
        self.dataset, self.notes = name, []
        found = load_dataset(name)
        if isinstance(found, datasets.DatasetDict):
            if split is None:
                split = "train" if "train" in found else next(iter(found))
                if others := [other for other in found if other != split]:
                    self.notes.append(f"{name}: split {split} is taken; there is {', '.join(others)} too")
            if split not in found:
                raise InputError(f"--images {name} has no split {split!r}; it has {', '.join(found)}")
            found = found[split]
        features = found.features
        pictures = [column for column, feature in features.items() if _holds_pictures(feature)]
        self.image_column = _choose(image_column, tuple(pictures), list(features), f"--images {name}", "--image_column")
        if self.image_column not in pictures:
            raise InputError(
                f"--images {name}: column {self.image_column!r} holds no pictures; choose another --image_column "
                f"({', '.join(pictures) or 'none does'})"
            )
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
        if not isinstance(feature, datasets.ClassLabel | datasets.Value):
            raise InputError(f"--images {self.dataset}: column {column!r} holds no labels; see --label_column")
        values = np.asarray(self.table.with_format("numpy")[column][:])
        if isinstance(feature, datasets.ClassLabel):
            known = (values >= 0) & (values < len(feature.names))  # −1, or not a number where it's missing
            if not known.all():
                raise InputError(_no_label(self, int(np.flatnonzero(~known)[0])))
            self.class_names, self.labels = list(feature.names), values.astype(np.int64)
        else:
            self.labels, self.class_names = _number(values, self)

    def __len__(self) -> int:
        return len(self.pictures)

    def place(self, i: int) -> str:
        return f"{self.dataset}:{i}"

    def name(self, i: int) -> str:
        return f"{Path(self.dataset).name}:{i}"

    def load(self, start: int, stop: int) -> Pictures:
        return Pictures(self._read, self.pictures[start:stop][self.image_column])

    def _read(self, entry: dict | bytes | None) -> Image.Image | BadImage:
        if isinstance(entry, dict):
            entry = entry.get("bytes") or entry.get("path")
            if isinstance(entry, str) and not is_inside(
                entry, Path(self.dataset).parent, datasets.config.HF_CACHE_HOME
            ):
                return BadImage(f"its path leads out of the dataset's folder: {printable(entry)}")
        if not entry:
            return BadImage("there is no picture in this row")
        return read_image(io.BytesIO(entry) if isinstance(entry, bytes) else Path(entry))

    def extra(self, name: str) -> np.ndarray | None:
        return np.asarray(self.table.with_format("numpy")[name][:]) if name in self.table.column_names else None


def read_image(file: Path | io.BytesIO) -> Image.Image | BadImage:
    """Decodes a picture file; of an animated one the first frame."""
    if isinstance(file, Path) and file.exists() and not file.is_file():  # opening a pipe would wait for ever
        return BadImage("not a regular file")
    try:
        # By a handle: given a name, Pillow 13 maps TIFF files into memory and turns them wrongly by their EXIF note.
        with warnings.catch_warnings(), open(file, "rb") if isinstance(file, Path) else file as stream:
            # A picture of more than 89 million pixels is taken for a decompression bomb, as Pillow proposes.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)
            with Image.open(stream, formats=_formats()) as image:
                if getattr(image, "is_animated", False):  # asked before the file is closed
                    image.info[NUM_FRAMES] = image.n_frames
                image.seek(0)
                image.load()
                return image
    except FileNotFoundError:
        return BadImage("there is no such file (any more), or the link to it leads nowhere")
    except UnidentifiedImageError:
        return BadImage("not a picture of a known format, or damaged")
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombWarning) as error:
        return BadImage(f"can't be decoded: {error}")
    except Exception as error:  # a decoder's own; Pillow has no common class for them
        return BadImage(f"can't be decoded: {type(error).__name__}: {error}")


def _formats() -> list[str]:
    """All of Pillow's but those that start a program to draw the picture."""
    Image.init()
    return [name for name in Image.ID if name not in DRAWN_BY_PROGRAMS]


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of a picture as people see it, whichever way the camera was held."""
    width, height = image.size
    is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (width, height) if is_turned else (height, width)


def printable(name: object) -> str:
    """A file's name as text that can be written anywhere; bytes that aren't UTF-8 show as `\\xff`."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def natural_key(name: Path | str) -> tuple[list[tuple[bool, int | str]], str]:
    """Sorts `2` before `10`, as people do; `1` and `01`, which count as equal, by their spelling."""
    parts = [part for part in re.split(r"(\d+)", str(name)) if part]
    return [(not part.isdecimal(), int(part) if part.isdecimal() else part) for part in parts], str(name)


def _is_visible(path: Path, root: Path) -> bool:
    """Whether neither the file nor a folder on the way to it is hidden, or kept by a program for itself."""
    return not any(part.startswith((".", "__")) for part in path.relative_to(root).parts)


def _is_picture_file(path: Path, root: Path) -> bool:
    """Whether something is to be read as a picture; a pipe, or a link that leads nowhere, is named when it's read."""
    return not path.is_dir() and _is_visible(path, root) and path.name not in ("Thumbs.db", "desktop.ini")


def _shown(paths: Sequence[Path], root: Path) -> str:
    """The first of several paths by name, and how many more there are."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{printable(paths[0].relative_to(root))}{more}"


def _picture_files(folder: Path, root: Path) -> tuple[list[Path], list[Path]]:
    """All files of a class in natural order, and links to folders, which could lead to another class or in a circle.

    Raises:
        InputError: A folder can't be listed: its pictures would be missing without a word.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"--images {root}: {printable(error.filename)} can't be read: {error.strerror}") from error

    files, links = [], []
    for where, folders, names in os.walk(folder, onerror=refuse):
        files += [Path(where, name) for name in names]
        links += [Path(where, name) for name in folders if Path(where, name).is_symlink()]
    files = [file for file in files if _is_picture_file(file, root)]
    links = [link for link in links if _is_visible(link, root)]
    return sorted(files, key=natural_key), sorted(links, key=natural_key)


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((path / marker).is_file() for marker in DATASET_MARKERS)


def load_dataset(name: str) -> datasets.Dataset | datasets.DatasetDict:
    """A Parquet or Arrow file, a folder of `save_to_disk`, or a dataset of the Hub.

    Raises:
        InputError: There is none.
    """
    try:
        if Path(name).suffix in TABLE_SUFFIXES:
            if not Path(name).is_file():
                raise InputError(f"--images {name}: no such file")
            kind = Path(name).suffix[1:]
            return datasets.load_dataset(kind, data_files=glob.escape(str(name)), split="train")
        if Path(name).exists():
            check_saved_dataset(Path(name), "--images")
            return datasets.load_from_disk(str(name))
        return datasets.load_dataset(name)
    except InputError:
        raise
    except Exception as error:  # the library raises its own, pyarrow's, OSError, ConnectionError, ValueError, …
        reason = str(error).strip().split("\n")[0]
        if Path(name).exists():
            raise InputError(f"--images {name} can't be read: {reason}") from error
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


def _no_label(source: Arrays | TableOfPictures, i: int) -> str:
    return f"{source.place(i)} has no label; leave such rows out, or name another --label_column"


def _number(values: np.ndarray, source: Arrays | TableOfPictures) -> tuple[np.ndarray, list[str]]:
    """Labels from 0 in the order of the values, and the values' names."""
    missing = np.array([value is None or value != value for value in values.tolist()], dtype=bool)
    if missing.any():
        raise InputError(_no_label(source, int(np.flatnonzero(missing)[0])))
    if values.dtype.kind not in "iubUSO":
        raise InputError(f"the labels are of type {values.dtype}; expected whole numbers or strings")
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "backslashreplace")
    names = sorted({str(value) for value in values.tolist()}, key=natural_key)
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[str(value)] for value in values.tolist()], dtype=np.int64), names
