"""The kinds of image sources: folders, NPZ files, datasets; and reading one picture.

One idea: a picture that can't be read is a `BadImage` with a reason in its place; it stops nothing else.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from imagelm.utils.errors import InputError

IMAGE_KEYS = ("image", "images", "img", "x", "X", "data")
LABEL_KEYS = ("label", "labels", "y", "fine_label", "target")
TABLE_SUFFIXES = (".parquet", ".arrow")
DRAWN_BY_PROGRAMS = ("EPS", "WMF")
NUM_FRAMES = "num_frames"  # in `info` of a picture that has several


class HasPlaces(Protocol):
    """A source that can name the place of each of its pictures."""

    def place(self, i: int) -> str: ...


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


def natural_key(name: Path | str) -> tuple[list[tuple[bool, int | str]], str]:
    """Sorts `2` before `10`, as people do; `1` and `01`, which count as equal, by their spelling."""
    parts = [part for part in re.split(r"(\d+)", str(name)) if part]
    return [(not part.isdecimal(), int(part) if part.isdecimal() else part) for part in parts], str(name)


def _choose(asked: str | None, likely: tuple[str, ...], there: list[str], where: str, option: str) -> str:
    if asked:
        if asked not in there:
            raise InputError(f"{where} has no {asked!r}; it has {', '.join(there)}; see {option}")
        return asked
    found = [name for name in likely if name in there]
    if not found:
        raise InputError(f"{where} holds {', '.join(there) or 'nothing'}; say which it is with {option}")
    return found[0]


def _no_label(source: HasPlaces, i: int) -> str:
    return f"{source.place(i)} has no label; leave such rows out, or name another --label_column"


def _number(values: np.ndarray, source: HasPlaces) -> tuple[np.ndarray, list[str]]:
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
