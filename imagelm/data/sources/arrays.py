"""Images and labels in arrays: NPZ files, and NPY files beside each other.

One idea: the images stay in a file, which is mapped into memory; only labels are read as a whole. No pickle is opened.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from imagelm.data.sources.decode import ImageSource, LazyImages, channels_last, image_of_array
from imagelm.data.sources.names import IMAGE_NAMES, LABEL_NAMES, by_rank, split_kind
from imagelm.utils.errors import InputError


class ArraySource(ImageSource):
    """An array of images and, perhaps, one of labels; or such arrays for each split.

    Args:
        files: One NPZ file, or NPY files, each an array that is called as the file.
        image_key, label_key, split: As for `open_images`.
    """

    def __init__(
        self, files: Sequence[Path], image_key: str | None, label_key: str | None, split: str | None = None
    ) -> None:
        super().__init__(str(files[0] if len(files) == 1 else files[0].parent))
        self.files, names = list(files), array_names(files)
        splits = split_arrays(names)
        if split is None and image_key:
            split = _split_with(image_key, splits)
            if split and (others := [other for other in splits if other != split]):
                self.notes.append(f"{self.origin}: split {split} is used; it also has {', '.join(others)}")
        self.keys = splits[split] if split in splits else {name: name for name in names}
        likely = [self.keys[key] for key in by_rank(self.keys, IMAGE_NAMES)]
        image_key = self._choose_column(image_key, likely, names, "--image_column")
        self.images = channels_last(_load_array(self.files, image_key, on_disk=True))
        shape = self.images.shape
        kind, is_grey = self.images.dtype, len(shape) == 3 or shape[3:] == (1,)
        is_known = kind == np.uint8 or kind.kind == "f" or (kind == np.uint16 and is_grey)
        if not is_known or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3, 4)):
            raise InputError(
                f"{self.origin}: array {image_key!r} is {kind} of shape {shape}; expected uint8 of shape (images, "
                "height, width), with 1, 3 or 4 channels last or 1 or 3 first, floats from 0 to 1, or uint16 in grey"
            )
        likely = [self.keys[key] for key in by_rank(self.keys, LABEL_NAMES)]
        if label_key or likely:
            label_key = self._choose_column(label_key, likely, names, "--label_column")
            labels = _load_array(self.files, label_key)
            if labels.shape[:1] != shape[:1] or labels.ndim > 2:
                raise InputError(f"{self.origin}: {shape[0]} images, but {label_key!r} has shape {labels.shape}")
            self._number_labels(labels)
            self._note_columns(image_key, label_key)
        else:
            self._note_columns(image_key, None)

    def __len__(self) -> int:
        return len(self.images)

    def load(self, start: int, stop: int) -> LazyImages:
        return LazyImages(image_of_array, self.images[start:stop])

    def extra(self, name: str) -> np.ndarray | None:
        return _load_array(self.files, self.keys[name]) if name in self.keys else None


def array_names(files: Sequence[Path]) -> list[str]:
    """The names of the arrays; none is read."""
    if is_npy(files[0]):
        return [file.stem for file in files]
    with _array_errors(files[0]), np.load(files[0], allow_pickle=False) as archive:
        return list(archive.files)


def is_npy(name: str | Path) -> bool:
    """Whether a name is that of a file with one array."""
    return Path(name).suffix.lower() == ".npy"


def neighbours(file: Path) -> list[Path]:
    """An NPY file, and those beside it that may hold its labels; the named one comes first."""
    others = (entry for entry in file.parent.iterdir() if is_npy(entry) and entry.name != file.name)
    return [file, *sorted(others)]


def split_arrays(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """The arrays of each split, by their names without it: `x_train` (Keras) and `train_images` (MedMNIST).

    Empty if an array has a usual name of images as it is.
    """
    splits: dict[str, dict[str, str]] = {}
    for name in names:
        first, _, after = name.partition("_")
        before, _, last = name.rpartition("_")
        for split, key in ((first, after), (last, before)):
            if split_kind(split):
                splits.setdefault(split, {})[key] = name
    return {} if by_rank(names, IMAGE_NAMES) else {k: keys for k, keys in splits.items() if by_rank(keys, IMAGE_NAMES)}


def _split_with(name: str, splits: dict[str, dict[str, str]]) -> str | None:
    return next((split for split, keys in splits.items() if name in keys.values()), None)


def _load_array(files: Sequence[Path], name: str, on_disk: bool = False) -> np.ndarray:
    """One array; the others are never opened.

    With `on_disk` that of an NPZ file is unpacked to a temporary file, which is read as the array is used and deleted
    with the array.
    """
    file = next((file for file in files if is_npy(file) and file.stem == name), files[0])
    with _array_errors(file):
        if is_npy(file):
            with open(file, "rb") as stream:  # numpy would take any other file for a pickle, or an archive
                np.lib.format.read_magic(stream)
            return np.load(file, mmap_mode="r" if on_disk else None, allow_pickle=False)
        _check_size(file, name, on_disk)
        if on_disk:
            with zipfile.ZipFile(file) as archive, tempfile.TemporaryDirectory() as folder:
                return np.load(archive.extract(f"{name}.npy", folder), mmap_mode="r", allow_pickle=False)
        with np.load(file, allow_pickle=False) as arrays:
            return arrays[name]


def _check_size(path: Path, name: str, on_disk: bool) -> None:
    """Refuses an array that is too large for this machine, without unpacking it."""
    with zipfile.ZipFile(path) as archive:
        size = max((entry.file_size for entry in archive.infolist() if entry.filename == f"{name}.npy"), default=0)
    if on_disk:
        room, where = shutil.disk_usage(tempfile.gettempdir()).free, f"{tempfile.gettempdir()} has room for"
    else:
        room, where = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "this machine's memory is"
    if size > room:
        raise InputError(f"--images {path}: array {name!r} unpacks to {size:,} bytes, {where} {room:,}; split it up")


@contextmanager
def _array_errors(path: Path) -> Iterator[None]:
    """Reports whatever goes wrong while a file of arrays is read as an InputError."""
    try:
        if path.suffix.lower() == ".npz":
            with open(path, "rb") as file:
                if not zipfile.is_zipfile(file):  # numpy would take it for a pickle
                    raise ValueError("it isn't an NPZ file (a zip of arrays), or it is damaged")
        yield
    except InputError:
        raise
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise InputError(f"--images {path} can't be read: {error}") from error
    except Exception as error:  # zipfile's own, which have no common class
        raise InputError(f"--images {path} is a damaged or incomplete NPZ file: {error}") from error
