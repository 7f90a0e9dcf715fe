"""Tables, lists and datasets of the Hub as image sources.

One idea: a table from elsewhere isn't trusted. Its rows are read as they are stored, so that no library opens the files
and URLs that they name; a file is opened only where its whole path, links followed, is in a folder that was allowed.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.compute as pc
from datasets.config import HF_DATASETS_CACHE
from huggingface_hub.constants import HF_HUB_CACHE
from PIL import Image

from imagelm.data.sources.columns import (
    ARRAY,
    FILES,
    PATH,
    holds_labels,
    image_columns,
    image_kind,
    label_columns,
    one_each,
    paths_in,
    pixels_of,
    single,
)
from imagelm.data.sources.decode import BadImage, ImageSource, LazyImages, read_image
from imagelm.data.sources.loading import is_inside, is_slice, load_dataset
from imagelm.utils.errors import InputError
from imagelm.utils.text import normalized, printable, shorten

MANY_COLUMNS = 32  # of numbers: pixels, perhaps


class DatasetSource(ImageSource):
    """A Hugging Face dataset: Parquet, Arrow, a list of files, WebDataset, `save_to_disk` or Hub.

    Args:
        name: The file, folder or id.
        image_column, label_column, split, config_name, revision: As for `open_images`.
        image_root: Where a table or list may name files; None: nowhere.
    """

    def __init__(
        self,
        name: str,
        image_column: str | None,
        label_column: str | None,
        split: str | None,
        image_root: str | None = None,
        config_name: str | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__(name)
        self.folders = _image_folders(name, image_root)
        self.table = self._load(name, split, config_name, revision)
        self._choose_images(image_column, image_root)
        likely = label_columns(self.table.features, self.image_column)
        chosen = None
        if label_column or likely:
            chosen = self._choose_column(label_column, likely, list(self.table.features), "--label_column")
            self._read_labels(chosen, self.table.features[chosen])
        self._note_columns(self.image_column, chosen)

    def _load(self, name: str, split: str | None, config_name: str | None, revision: str | None) -> datasets.Dataset:
        found = load_dataset(name, config_name, revision, split if is_slice(split) else None)
        if isinstance(found, datasets.DatasetDict):
            if split not in found:
                raise InputError(f"--images {name} has no split {split!r}; it has {', '.join(found)}")
            found = found[split]
        return found.flatten() if isinstance(found.features.get("json"), dict) else found

    def _choose_images(self, asked: str | None, image_root: str | None) -> None:
        features, name = self.table.features, self.origin
        likely = image_columns(features)
        numbers = [column for column, feature in features.items() if image_kind(feature) is None]
        if not likely and len(numbers) >= MANY_COLUMNS:
            raise InputError(
                f"--images {name} holds numbers in {len(numbers)} columns ({', '.join(list(features)[:3])}, …), "
                "perhaps pixels; save them as images and labels with numpy.savez(…, image=…, label=…)"
            )
        self.image_column = self._choose_column(asked, likely, list(features), "--image_column")
        kind = image_kind(features[self.image_column])
        self.images = self.table.select_columns([self.image_column]).with_format("arrow")  # which decodes nothing
        column = self.images[:][self.image_column]
        paths = paths_in(column) if kind else []
        if kind is None or (kind == FILES and len(paths) == len(column)):
            raise InputError(
                f"--images {name}: column {self.image_column!r} holds no images; choose another --image_column "
                f"({', '.join(likely) or 'none does'})"
            )
        if kind == FILES and (several := np.flatnonzero(pc.greater(pc.list_value_length(column), 1).to_numpy())).size:
            raise InputError(
                f"{self.place(int(several[0]))} holds several images in {self.image_column!r}; expected one in each "
                "row: choose another --image_column, or write a row for each image"
            )
        self.kind = kind
        if not self.folders and _is_list_of_its_folder(Path(name).parent, paths, len(column)):
            self.folders = [image_root := str(Path(name).parent)]
        if self.folders and paths:
            folder = printable(image_root or name)
            self.notes.append(f"{len(paths)} of {len(column)} rows of {name} name a file, which is read from {folder}")

    def _read_labels(self, column: str, feature: object) -> None:
        if not holds_labels(feature):
            raise InputError(f"--images {self.origin}: column {column!r} holds no labels; see --label_column")
        try:
            cells = one_each(self.table.select_columns([column]).with_format("arrow")[:][column])
        except ValueError as error:
            raise InputError(f"--images {self.origin}: column {column!r} holds {error}; expected one label") from error
        values = cells if isinstance(cells, np.ndarray) else cells.to_numpy()
        kind = single(feature)
        if isinstance(kind, datasets.ClassLabel) and values.ndim == 1:
            names = kind.names
            self._check_labelled(~((values >= 0) & (values < len(names))))  # a missing one is −1 or NaN
            self.class_names, self.labels = list(map(normalized, names)), values.astype(np.int64)
        else:
            self._number_labels(values)

    def __len__(self) -> int:
        return len(self.images)

    def load(self, start: int, stop: int) -> LazyImages:
        return LazyImages(self._read, self.images[start:stop][self.image_column].to_pylist())

    def _read(self, entry: Any) -> Image.Image | BadImage:
        if self.kind == ARRAY:
            return pixels_of(entry)
        if self.kind == FILES:
            entry = entry[0] if entry else None
        if self.kind == PATH:
            entry = {"bytes": None, "path": entry}
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
            if "\0" not in path and is_inside(file := Path(folder, path), folder):
                return read_image(Path(os.path.realpath(file)))
        return BadImage(f"the path {shown} leads out of {printable(self.folders[0])}; such files aren't read")

    def extra(self, name: str) -> np.ndarray | None:
        is_plain = isinstance(self.table.features.get(name), datasets.Value)  # an image of this name would be decoded
        return np.asarray(self.table.with_format("numpy")[name][:]) if is_plain else None


def _image_folders(name: str, image_root: str | None) -> list[str | Path]:
    """The folders in which the rows of a dataset may name files."""
    if Path(name).is_file():
        return [image_root] if image_root else []
    return [name] if Path(name).exists() else [HF_DATASETS_CACHE, HF_HUB_CACHE]


def _is_list_of_its_folder(folder: Path, paths: list[str], num_rows: int) -> bool:
    """Whether a table is what lists the images of its own folder: each row names an existing file in a subfolder.

    One path among images in the table itself, or a path beside the table, isn't: a stranger may guess such names.
    """
    if not paths or len(paths) != num_rows:
        return False
    for path in paths:
        file = folder / path
        if "\0" in path or Path(path).is_absolute() or len(Path(path).parts) < 2:
            return False
        if not (is_inside(file, folder) and file.is_file()):
            return False
    return True
