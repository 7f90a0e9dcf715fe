"""What every image source offers, and how one image file is decoded.

One idea: an image that can't be read is a `BadImage` with the reason; all other images are still read.
"""

from __future__ import annotations

import io
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from imagelm.data.sources.kinds import NUM_FIRST_BYTES, kind_of_bytes, register_plugins
from imagelm.remote_code.pixels_imagelm import image_formats, image_from_array
from imagelm.utils.errors import InputError
from imagelm.utils.text import normalized, printable

NUM_FRAMES = "num_frames"  # in `info` of an image that has several
DROPPED_BITS = "dropped_bits"  # in `info` of a colour image of which Pillow keeps 8 of 16 bits


class UnlabelledError(InputError):
    """No image of a source has a label, as in the test split of a competition."""


@dataclass(frozen=True)
class BadImage:
    """An image that can't be read, and why."""

    reason: str


class LazyImages(Sequence[Image.Image | BadImage]):
    """Images that are decoded by `read`, each from its item, when they are accessed; they are not kept."""

    def __init__(self, read: Callable[[Any], Image.Image | BadImage], items: Sequence[Any] | np.ndarray) -> None:
        self.read, self.items = read, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: Any) -> Any:
        return LazyImages(self.read, self.items[i]) if isinstance(i, slice) else self.read(self.items[i])


class ImageSource(ABC):
    """A numbered list of images that are decoded when they are needed.

    Attributes:
        origin: The file or dataset, as the user named it.
        class_names: Names of the classes, indexed by label; None without labels.
        labels: Class of each image, int64, shape (images,); None without labels.
        notes: Decisions made while opening the source, for the summary.
        columns: Which columns are read, likewise.
    """

    class_names: list[str] | None = None
    labels: np.ndarray | None = None

    def __init__(self, origin: str) -> None:
        self.origin, self.short_origin = origin, Path(origin).name
        self.notes: list[str] = []
        self.columns: list[str] = []

    @abstractmethod
    def __len__(self) -> int: ...

    def place(self, i: int) -> str:
        """Where image `i` is, for messages."""
        return printable(f"{self.origin}:{i}")

    def name(self, i: int) -> str:
        """The name of image `i` within its source, without the path to the source."""
        return f"{self.short_origin}:{i}"

    @abstractmethod
    def load(self, start: int, stop: int) -> LazyImages:
        """The images from `start` to before `stop`, each decoded when it is accessed."""

    def extra(self, name: str) -> np.ndarray | None:
        """An additional column of numbers, shape (images,); None if the source has no column of this name."""
        return None

    def _choose_column(self, asked: str | None, likely: Sequence[str], columns: Sequence[str], option: str) -> str:
        """The column or array to read: the one that was asked for with `option`, or else the first likely one."""
        where = f"--images {self.origin}"
        if asked:
            if asked not in columns:
                raise InputError(f"{where} has no {asked!r}; it has {', '.join(columns)}; see {option}")
            return asked
        found = [name for name in likely if name in columns]
        if not found:
            raise InputError(f"{where} holds {', '.join(columns) or 'nothing'}; choose one of them with {option}")
        if found[1:]:
            self.notes.append(printable(f"{self.origin}: {found[0]} is used, not {', '.join(found[1:])}; see {option}"))
        return found[0]

    def _note_columns(self, images: str, labels: str | None) -> None:
        note = f"{self.origin}: the images are in {images}"
        self.columns.append(printable(f"{note}, the labels in {labels}" if labels else note))

    def _number_labels(self, values: np.ndarray) -> None:
        """Numbers the labels from 0 in the order of the values, which become the class names.

        The shape of `values` is (images,) or (images, 1); or (images, classes) with one 1 a row.
        """
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
        elif values.ndim == 2:
            if not (np.isin(values, (0, 1)).all() and (values.sum(axis=1) == 1).all()):
                raise InputError(f"{self.place(0)} has {values.shape[1]} labels; expected one for each image")
            values = values.argmax(axis=1)
        self._check_labelled(np.array([value in (None, "") or value != value for value in values.tolist()], dtype=bool))
        if values.dtype.kind == "f" and all(map(float.is_integer, values.tolist())):
            values = values.astype(np.int64)  # pandas stores whole numbers beside missing values as 0.0, 1.0
        if values.dtype.kind not in "iubUSO":
            raise InputError(f"the labels are of type {values.dtype}; expected whole numbers or strings")
        if values.dtype.kind == "S":
            values = np.char.decode(values, "utf-8", "backslashreplace")
        names = [normalized(value) for value in values.tolist()]
        self.class_names = sorted(set(names), key=natural_key)
        number = {name: i for i, name in enumerate(self.class_names)}
        self.labels = np.array([number[name] for name in names], dtype=np.int64)

    def _check_labelled(self, missing: np.ndarray) -> None:
        """Raises an InputError that names the first image without a label; `missing` is bool, shape (images,)."""
        if missing.any():
            place = self.place(int(np.flatnonzero(missing)[0]))
            kind = UnlabelledError if missing.all() else InputError
            raise kind(f"{place} has no label; remove such rows, or choose another --label_column")


def read_image(file: Path | io.BytesIO) -> Image.Image | BadImage:
    """Decodes an image file; of an animated one the first frame."""
    register_plugins()
    start = b""
    try:
        if isinstance(file, Path) and file.exists() and not file.is_file():  # opening a pipe would wait for ever
            return BadImage("not a regular file")
        # By a handle: given a name, Pillow 13 maps TIFF files into memory and turns them wrongly by their EXIF note.
        with warnings.catch_warnings(), open(file, "rb") if isinstance(file, Path) else file as stream:
            # An image of more than 89 million pixels counts as a decompression bomb, as Pillow proposes.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)
            start = stream.read(NUM_FIRST_BYTES)  # Pillow starts at the beginning again
            with Image.open(stream, formats=image_formats()) as image:
                if getattr(image, "is_animated", False):  # read before the file is closed
                    image.info[NUM_FRAMES] = getattr(image, "n_frames", 1)
                image.seek(0)
                if image.mode.startswith(("RGB", "LA")) and any(";16" in str(tile) for tile in image.tile):
                    image.info[DROPPED_BITS] = 8
                image.load()
                return image
    except FileNotFoundError:
        return BadImage("the file no longer exists, or its link is broken")
    except UnidentifiedImageError:
        return BadImage(kind_of_bytes(start) or "not an image of a known format, or damaged")
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombWarning) as error:
        kind = kind_of_bytes(start) if "cannot find loader" in str(error) else None  # known to Pillow, but not read
        return BadImage(kind or f"can't be decoded: {error}")
    except Exception as error:  # a decoder's own; Pillow has no common class for them
        return BadImage(f"can't be decoded: {type(error).__name__}: {error}")


def channels_last(images: np.ndarray) -> np.ndarray:
    """A view of (images, channels, height, width), as torch has them, as (images, height, width, channels)."""
    is_first = images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[3] not in (1, 3, 4)
    return np.moveaxis(images, 1, -1) if is_first else images


def image_of_array(pixels: np.ndarray) -> Image.Image | BadImage:
    """An image of pixels, as `image_from_array` reads them."""
    try:
        return image_from_array(np.ascontiguousarray(pixels))
    except ValueError as error:
        return BadImage(str(error))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width of an image as people see it, whichever way the camera was held."""
    width, height = image.size
    is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (width, height) if is_turned else (height, width)


def natural_key(name: Path | str) -> tuple[list[tuple[bool, int | str]], str]:
    """Sorts `2` before `10`, as people do; `1` and `01`, which count as equal, by their spelling."""
    parts = [part for part in re.split(r"(\d+)", str(name)) if part]
    return [(not part.isdecimal(), int(part) if part.isdecimal() else part) for part in parts], str(name)
