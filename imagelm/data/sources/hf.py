"""Parquet, Arrow and Hub datasets as image sources.

One idea: a table from elsewhere isn't trusted. Its rows are read as they are stored, so that no library opens the files
and URLs that they name; a file is opened only where its whole path, links followed, is in a folder that was allowed.
"""

from __future__ import annotations

import glob
import io
import json
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.config import DATASET_STATE_JSON_FILENAME, DATASETDICT_JSON_FILENAME, HF_DATASETS_CACHE
from huggingface_hub.constants import HF_HUB_CACHE
from PIL import Image

from imagelm.data.arguments import is_table
from imagelm.data.sources.decode import BadImage, ImageSource, LazyImages, read_image
from imagelm.data.sources.names import IMAGE_NAMES, LABEL_NAMES, by_rank, find_split, rank
from imagelm.utils.errors import InputError
from imagelm.utils.text import first_line, normalized, printable, shorten

BINARY = ("binary", "large_binary")
STATE_FILES = (DATASET_STATE_JSON_FILENAME, DATASETDICT_JSON_FILENAME)  # of `save_to_disk`


class DatasetSource(ImageSource):
    """A Hugging Face dataset: Parquet, Arrow, `save_to_disk` or Hub.

    Args:
        name: The file, folder or id.
        image_column, label_column, split: As for `open_images`.
        image_root: Where a Parquet or Arrow file may name files; None: nowhere.
    """

    def __init__(
        self,
        name: str,
        image_column: str | None,
        label_column: str | None,
        split: str | None,
        image_root: str | None = None,
    ) -> None:
        super().__init__(name)
        self.folders = _image_folders(name, image_root)
        found = load_dataset(name)
        if isinstance(found, datasets.DatasetDict):
            if split is None:
                split = find_split(found, "train", name) or next(iter(found))
                if others := [other for other in found if other != split]:
                    self.notes.append(f"{name}: split {split} is used; it also has {', '.join(others)}")
            if split not in found:
                raise InputError(f"--images {name} has no split {split!r}; it has {', '.join(found)}")
            found = found[split]
        features = found.features
        likely = [column for column, feature in features.items() if _holds_images(feature)]
        likely.sort(key=lambda name: (rank(name, IMAGE_NAMES), not isinstance(features[name], datasets.Image)))
        self.image_column = self._choose_column(image_column, likely, list(features), "--image_column")
        if self.image_column not in likely:
            raise InputError(
                f"--images {name}: column {self.image_column!r} holds no images; choose another --image_column "
                f"({', '.join(likely) or 'none does'})"
            )
        self.images = found.select_columns([self.image_column]).with_format("arrow")  # which decodes nothing
        column = self.images[:][self.image_column]
        if not self.folders and _is_list_of_its_folder(Path(name).parent, column):
            self.folders = [image_root := str(Path(name).parent)]
        if self.folders and (count := _num_by_path(column)):
            folder = printable(image_root or name)
            self.notes.append(f"{count} of {len(found)} rows of {name} name a file, which is read from {folder}")
        self.table = found
        classes = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        named = [name for name in by_rank(features, LABEL_NAMES) if not _holds_images(features[name])]
        classes = [*named, *(name for name in classes if name not in named)]
        if label_column or classes:
            column = self._choose_column(label_column, classes, list(features), "--label_column")
            self._read_labels(column, features[column])
            self._note_columns(self.image_column, column)

    def _read_labels(self, column: str, feature: object) -> None:
        if not isinstance(feature, datasets.ClassLabel | datasets.Value):
            raise InputError(f"--images {self.origin}: column {column!r} holds no labels; see --label_column")
        values = np.asarray(self.table.with_format("numpy")[column][:])
        if values.dtype.kind == "f":  # of 32 bits, which would make large numbers equal
            values = self.table.select_columns([column]).with_format("arrow")[:][column].to_numpy()
        if isinstance(feature, datasets.ClassLabel):
            self._check_labelled(~((values >= 0) & (values < len(feature.names))))  # a missing one is −1 or NaN
            self.class_names, self.labels = list(map(normalized, feature.names)), values.astype(np.int64)
        else:
            self._number_labels(values)

    def __len__(self) -> int:
        return len(self.images)

    def load(self, start: int, stop: int) -> LazyImages:
        return LazyImages(self._read, self.images[start:stop][self.image_column].to_pylist())

    def _read(self, entry: dict | bytes | None) -> Image.Image | BadImage:
        file, path = (entry["bytes"], entry["path"]) if isinstance(entry, dict) else (entry, None)
        if file:
            return read_image(io.BytesIO(file))
        return self._read_file(path) if path else BadImage("there is no image in this row")

    def _read_file(self, path: str) -> Image.Image | BadImage:
        shown = shorten(repr(path))
        if "://" in path:
            return BadImage(f"the row holds the URL {shown} and no image; URLs aren't opened: store the images' bytes")
        if not self.folders:
            return BadImage(
                f"the row holds the path {shown} and no image; if you trust this table, name the folder that it may "
                "read files from with --image_root"
            )
        for folder in self.folders:
            if "\0" not in path and _is_inside(file := Path(folder, path), folder):
                return read_image(Path(os.path.realpath(file)))
        return BadImage(f"the path {shown} leads out of {printable(self.folders[0])}; such files aren't read")

    def extra(self, name: str) -> np.ndarray | None:
        is_plain = isinstance(self.table.features.get(name), datasets.Value)  # an image of this name would be decoded
        return np.asarray(self.table.with_format("numpy")[name][:]) if is_plain else None


def is_labelled(rows: datasets.Dataset) -> bool:
    """Whether some row has a class; the test split of a competition has −1 everywhere."""
    classes = [column for column, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)]
    return not classes or any((np.asarray(rows.with_format("numpy")[column][:]) >= 0).any() for column in classes)


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((path / name).is_file() for name in STATE_FILES)


def metadata_file(folder: Path) -> Path | None:
    """The file that lists the images of a folder without class folders."""
    files = [folder / f"metadata.{suffix}" for suffix in ("csv", "jsonl", "parquet")]
    found = next((file for file in files if file.is_file()), None)
    if found and sum(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir()) < 2:
        return found
    return None


def load_saved_dataset(folder: Path, option: str) -> datasets.Dataset | datasets.DatasetDict:
    """A folder of `save_to_disk`, whose files may name only parts inside it: a dataset from elsewhere isn't trusted.

    Raises:
        InputError: They name another file, or can't be read.
    """
    for state in [file for name in STATE_FILES for file in (folder / name, *folder.glob(f"*/{name}"))]:
        if not state.is_file():
            continue
        try:
            content = json.loads(state.read_bytes())
            names = [entry["filename"] for entry in content.get("_data_files") or []] + (content.get("splits") or [])
            outside = [name for name in names if not _is_inside(state.parent / name, folder)]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{option} {folder}: {state.name} is damaged ({type(error).__name__}: {error})") from error
        if outside:
            raise InputError(
                f"{option} {folder}: its {state.name} names {outside[0]!r} outside the folder, so nothing was read"
            )
    try:
        return datasets.load_from_disk(str(folder))
    except PermissionError:
        raise
    except Exception as error:  # the library's own, pyarrow's, OSError, KeyError, …
        raise InputError(f"{option} {folder} can't be read ({first_line(error)}); write it again") from error


def load_dataset(name: str) -> datasets.Dataset | datasets.DatasetDict:
    """A Parquet or Arrow file, a folder of `save_to_disk`, or a dataset of the Hub.

    Raises:
        InputError: There is none.
    """
    try:
        if is_table(name):
            if not Path(name).is_file():
                raise InputError(f"--images {name}: no such file")
            kind = Path(name).suffix[1:].lower()
            return datasets.load_dataset(kind, data_files=glob.escape(str(name)), split="train")
        if listed := metadata_file(Path(name)):  # alone: the library would unpack archives that lie beside it
            return datasets.load_dataset("imagefolder", data_files=glob.escape(str(listed)), split="train")
        if Path(name).exists():
            return load_saved_dataset(Path(name), "--images")
        return datasets.load_dataset(name)
    except InputError:
        raise
    except Exception as error:  # the library raises its own, pyarrow's, OSError, ConnectionError, ValueError, …
        reason = first_line(error)
        if Path(name).exists():
            raise InputError(f"--images {name} can't be read: {reason}") from error
        raise InputError(f"--images {name}: no file or folder, and no dataset that can be loaded ({reason})") from error


def _image_folders(name: str, image_root: str | None) -> list[str | Path]:
    """The folders in which the rows of a dataset may name files."""
    if is_table(name):
        return [image_root] if image_root else []
    return [name] if Path(name).exists() else [HF_DATASETS_CACHE, HF_HUB_CACHE]


def _is_list_of_its_folder(folder: Path, column: pa.ChunkedArray) -> bool:
    """Whether a table is what lists the images of its own folder: each row names an existing file in a subfolder.

    One path among images in the table itself, or a path beside the table, isn't: a stranger may guess such names.
    """
    if not len(column) or _num_by_path(column) != len(column):
        return False
    for path in pc.struct_field(column, "path").to_pylist():
        file = folder / path
        if "\0" in path or Path(path).is_absolute() or len(Path(path).parts) < 2:
            return False
        if not (_is_inside(file, folder) and file.is_file()):
            return False
    return True


def _num_by_path(column: pa.ChunkedArray) -> int:
    """The number of rows that hold the path of an image and not its bytes."""
    if not pa.types.is_struct(column.type):
        return 0
    sizes = pc.fill_null(pc.binary_length(pc.struct_field(column, "bytes").cast(pa.large_binary())), 0)
    return pc.sum(pc.and_(pc.equal(sizes, 0), pc.is_valid(pc.struct_field(column, "path")))).as_py() or 0


def _is_inside(path: str | Path, folder: str | Path) -> bool:
    """Whether a path, with all links followed, is inside a folder."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _holds_images(feature: object) -> bool:
    """Whether a column holds images: by its type, or as {bytes, path} or bytes in a Parquet file without types."""
    if isinstance(feature, dict):
        is_image = _is_value(feature.get("bytes"), *BINARY, "null")
        return is_image and _is_value(feature.get("path"), "string", "large_string", "null")
    return isinstance(feature, datasets.Image) or _is_value(feature, *BINARY)


def _is_value(feature: object, *types: str) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in types
