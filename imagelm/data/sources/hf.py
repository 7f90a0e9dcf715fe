"""Parquet, Arrow and Hub datasets as image sources."""

from __future__ import annotations

import glob
import io
import json
import os
from pathlib import Path

import datasets
import numpy as np
from datasets.config import DATASET_STATE_JSON_FILENAME, DATASETDICT_JSON_FILENAME, HF_CACHE_HOME
from PIL import Image

from imagelm.data.sources.decode import LABEL_KEYS, TABLE_SUFFIXES, BadImage, ImageSource, LazyImages, read_image
from imagelm.utils.errors import InputError
from imagelm.utils.text import first_line, printable

STATE_FILES = (DATASET_STATE_JSON_FILENAME, DATASETDICT_JSON_FILENAME)  # of `save_to_disk`


class DatasetSource(ImageSource):
    """A Hugging Face dataset: Parquet, Arrow, `save_to_disk` or Hub."""

    def __init__(self, name: str, image_column: str | None, label_column: str | None, split: str | None) -> None:
        super().__init__(name)
        found = load_dataset(name)
        if isinstance(found, datasets.DatasetDict):
            if split is None:
                split = "train" if "train" in found else next(iter(found))
                if others := [other for other in found if other != split]:
                    self.notes.append(f"{name}: split {split} is used; it also has {', '.join(others)}")
            if split not in found:
                raise InputError(f"--images {name} has no split {split!r}; it has {', '.join(found)}")
            found = found[split]
        features = found.features
        likely = [column for column, feature in features.items() if _holds_images(feature)]
        self.image_column = self._choose_column(image_column, likely, list(features), "--image_column")
        if self.image_column not in likely:
            raise InputError(
                f"--images {name}: column {self.image_column!r} holds no images; choose another --image_column "
                f"({', '.join(likely) or 'none does'})"
            )
        self.images = found.select_columns([self.image_column])
        if isinstance(features[self.image_column], datasets.Image):
            self.images = self.images.cast_column(self.image_column, datasets.Image(decode=False))
        self.table = found
        classes = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        classes += [column for column in LABEL_KEYS if column in features and column not in classes]
        if label_column or classes:
            column = self._choose_column(label_column, classes, list(features), "--label_column")
            self._read_labels(column, features[column])

    def _read_labels(self, column: str, feature: object) -> None:
        if not isinstance(feature, datasets.ClassLabel | datasets.Value):
            raise InputError(f"--images {self.origin}: column {column!r} holds no labels; see --label_column")
        values = np.asarray(self.table.with_format("numpy")[column][:])
        if isinstance(feature, datasets.ClassLabel):
            self._check_labelled(~((values >= 0) & (values < len(feature.names))))  # a missing one is −1 or NaN
            self.class_names, self.labels = list(feature.names), values.astype(np.int64)
        else:
            self._number_labels(values)

    def __len__(self) -> int:
        return len(self.images)

    def load(self, start: int, stop: int) -> LazyImages:
        return LazyImages(self._read, self.images[start:stop][self.image_column])

    def _read(self, entry: dict | bytes | None) -> Image.Image | BadImage:
        if isinstance(entry, dict):
            entry = entry.get("bytes") or entry.get("path")
            if isinstance(entry, str) and not _is_inside(entry, Path(self.origin).parent, HF_CACHE_HOME):
                return BadImage(f"its path leads out of the dataset's folder: {printable(entry)}")
        if not entry:
            return BadImage("there is no image in this row")
        return read_image(io.BytesIO(entry) if isinstance(entry, bytes) else Path(entry))

    def extra(self, name: str) -> np.ndarray | None:
        return np.asarray(self.table.with_format("numpy")[name][:]) if name in self.table.column_names else None


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((path / name).is_file() for name in STATE_FILES)


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
        if Path(name).suffix in TABLE_SUFFIXES:
            if not Path(name).is_file():
                raise InputError(f"--images {name}: no such file")
            kind = Path(name).suffix[1:]
            return datasets.load_dataset(kind, data_files=glob.escape(str(name)), split="train")
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


def _is_inside(path: str | Path, *folders: str | Path) -> bool:
    """Whether a path, with all links followed, is inside one of the folders."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(folder)) for folder in folders)


def _holds_images(feature: object) -> bool:
    """Whether a column holds images: by its type, or as {bytes, path} or bytes in a Parquet file without types."""
    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, dict):
        return {"bytes", "path"} <= set(feature)
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
