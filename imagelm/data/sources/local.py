"""Image folders, single files and NPZ archives."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from imagelm.data.arguments import is_table
from imagelm.data.sources.decode import ImageSource, LazyImages, image_of_array, natural_key, read_image
from imagelm.data.sources.names import IMAGE_NAMES, LABEL_NAMES, by_rank, find_split, split_kind
from imagelm.utils.errors import InputError
from imagelm.utils.text import decoded, normalized, printable

_ARCHIVE = "an archive; unpack it, and name the folder"
_LIST = (
    "a list, which isn't read; call it metadata.csv or metadata.jsonl, with a column file_name and one of labels, put "
    "it in the folder of the images, and name the folder"
)
OTHER_FILES = {  # what people have instead of images, and what to do
    **dict.fromkeys((".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar"), _ARCHIVE),
    **dict.fromkeys((".csv", ".tsv", ".json", ".jsonl"), _LIST),
    ".npy": "an array without labels; save images and labels in one file with numpy.savez(…, image=…, label=…)",
    **dict.fromkeys(
        (".h5", ".hdf5", ".mat", ".pkl", ".pt"), "of a kind that isn't read; save images and labels with numpy.savez"
    ),
}
INTERNAL = ("__MACOSX", "__pycache__")  # folders of programs; `__background__` may be a class


class FileSource(ImageSource):
    """Image files without labels."""

    def __init__(self, files: list[Path], root: Path) -> None:
        super().__init__(str(root))
        self.files, self.root = files, root

    def __len__(self) -> int:
        return len(self.files)

    def place(self, i: int) -> str:
        return printable(self.files[i])

    def name(self, i: int) -> str:
        return decoded(self.files[i].relative_to(self.root).as_posix())

    def load(self, start: int, stop: int) -> LazyImages:
        return LazyImages(read_image, self.files[start:stop])


class FolderSource(FileSource):
    """A folder with one folder per class; or, without class folders, images without labels."""

    def __init__(self, root: Path) -> None:
        folders = sorted((e for e in root.iterdir() if e.is_dir() and _is_visible(e, root)), key=natural_key)
        splits = [folder for folder in folders if split_kind(folder.name)]
        if len({split_kind(folder.name) for folder in splits}) > 1:  # else they would become classes
            shown = ", ".join(printable(folder.name) for folder in splits)
            raise InputError(f"--images {root} holds the splits {shown}; name one of them, such as {splits[0]}")
        found: dict[Path, list[Path]] = {}
        links: list[Path] = []
        for folder in folders:
            found[folder], unfollowed = _image_files(folder, root)
            links += unfollowed
        classes = [folder for folder in folders if found[folder]]
        loose = sorted((entry for entry in root.iterdir() if _is_image_file(entry, root)), key=natural_key)
        if not classes:
            if not loose:
                raise InputError(f"--images {root} holds no files; expected a folder of images for each class")
            if tables := [file for file in loose if is_table(file)]:
                raise InputError(
                    f"--images {root} is a folder of data files; name the files instead, such as {tables[0]}"
                )
            super().__init__(loose, root)
            return
        super().__init__([file for folder in classes for file in found[folder]], root)
        self.class_names = [normalized(folder.name) for folder in classes]
        self.labels = np.repeat(np.arange(len(classes)), [len(found[folder]) for folder in classes])
        empty = [printable(folder.name) for folder in folders if not found[folder]]
        if loose:
            self.notes.append(f"{root}: not used, because it is outside the class folders: {_shown(loose, root)}")
        if links:
            self.notes.append(f"{root}: not followed, because it is a link to a folder: {_shown(links, root)}")
        if empty:
            self.notes.append(f"{root}: not used as a class, because the folder holds no images: {', '.join(empty)}")


class ArraySource(ImageSource):
    """An NPZ file with an array of images and, perhaps, one of labels; or with both for each split."""

    def __init__(self, path: Path, image_key: str | None, label_key: str | None, split: str | None = None) -> None:
        super().__init__(str(path))
        self.path, names = path, array_names(path)
        splits = split_arrays(names)
        if split is None and splits:
            split = _split_with(image_key, splits) if image_key else find_split(splits, "train", str(path))
            if others := [other for other in splits if split and other != split]:
                self.notes.append(f"{path}: split {split} is used; it also has {', '.join(others)}")
        self.keys = splits[split] if split in splits else {name: name for name in names}
        likely = [self.keys[key] for key in by_rank(self.keys, IMAGE_NAMES)]
        image_key = self._choose_column(image_key, likely, names, "--image_column")
        self.images = _load_array(path, image_key, on_disk=True)
        shape = self.images.shape
        kind, is_grey = self.images.dtype, len(shape) == 3 or shape[3:] == (1,)
        is_known = kind == np.uint8 or kind.kind == "f" or (kind == np.uint16 and is_grey)
        if not is_known or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] not in (1, 3, 4)):
            raise InputError(
                f"{path}: array {image_key!r} is {kind} of shape {shape}; expected uint8 of shape (images, "
                "height, width) or (images, height, width, 1, 3 or 4), floats from 0 to 1, or uint16 in grey"
            )
        likely = [self.keys[key] for key in by_rank(self.keys, LABEL_NAMES)]
        if label_key or likely:
            label_key = self._choose_column(label_key, likely, names, "--label_column")
            labels = _load_array(path, label_key)
            if labels.shape not in (shape[:1], (shape[0], 1)):
                raise InputError(f"{path}: {shape[0]} images, but {label_key!r} has shape {labels.shape}")
            self._number_labels(labels.reshape(-1))
            self._note_columns(image_key, label_key)

    def __len__(self) -> int:
        return len(self.images)

    def load(self, start: int, stop: int) -> LazyImages:
        return LazyImages(image_of_array, self.images[start:stop])

    def extra(self, name: str) -> np.ndarray | None:
        return _load_array(self.path, self.keys[name]) if name in self.keys else None


def array_names(path: Path) -> list[str]:
    """The names of the arrays of an NPZ file; none is read."""
    with _npz_errors(path), np.load(path, allow_pickle=False) as archive:
        return list(archive.files)


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


def _load_array(path: Path, name: str, on_disk: bool = False) -> np.ndarray:
    """One array of an NPZ file; the others are never opened.

    With `on_disk` it is unpacked to a temporary file, which is read as the array is used and deleted with the array.
    """
    with _npz_errors(path):
        _check_size(path, name, on_disk)
        if on_disk:
            with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
                return np.load(archive.extract(f"{name}.npy", folder), mmap_mode="r", allow_pickle=False)
        with np.load(path, allow_pickle=False) as arrays:
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
def _npz_errors(path: Path) -> Iterator[None]:
    """Reports whatever goes wrong while an NPZ file is read as an InputError."""
    try:
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


def _is_visible(path: Path, root: Path) -> bool:
    """Whether neither the file nor a folder on the path to it is hidden or internal to a program."""
    return not any(part.startswith(".") or part in INTERNAL for part in path.relative_to(root).parts)


def _is_image_file(path: Path, root: Path) -> bool:
    """Whether to read a file as an image; a pipe or a broken link is reported when it is read."""
    return not path.is_dir() and _is_visible(path, root) and path.name not in ("Thumbs.db", "desktop.ini")


def _shown(paths: Sequence[Path], root: Path) -> str:
    """The first path, and how many more there are."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{printable(paths[0].relative_to(root))}{more}"


def _image_files(folder: Path, root: Path) -> tuple[list[Path], list[Path]]:
    """All files of a class in natural order, and links to folders, which could lead to another class or in a circle."""

    def refuse(error: OSError) -> None:  # the images of a folder that can't be listed would be missing silently
        raise InputError(f"--images {root}: {printable(error.filename)} can't be read: {error.strerror}") from error

    files: list[Path] = []
    links: list[Path] = []
    for where, folders, names in os.walk(folder, onerror=refuse):
        files += [Path(where, name) for name in names]
        links += [Path(where, name) for name in folders if Path(where, name).is_symlink()]
    files = [file for file in files if _is_image_file(file, root)]
    links = [link for link in links if _is_visible(link, root)]
    return sorted(files, key=natural_key), sorted(links, key=natural_key)
