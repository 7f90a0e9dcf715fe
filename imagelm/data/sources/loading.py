"""`datasets`' own loaders, behind one door: which one reads what, and errors in our words.

One idea: a dataset from elsewhere may name no file outside its folder, and nothing is loaded that wasn't named. The
library is imported where it loads something: with pandas it takes half a second, and plain images don't need it.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from imagelm.data.image_options import LIST_SUFFIXES, is_table
from imagelm.data.sources.archives import cache_folder, check_webdataset
from imagelm.data.sources.kinds import DATA_SUFFIXES, NOT_READ
from imagelm.utils.errors import InputError
from imagelm.utils.text import first_line

if TYPE_CHECKING:
    import datasets

NO_HUB_IDS = {*DATA_SUFFIXES, *NOT_READ}  # suffixes of files
STATE_FILES = ("state.json", "dataset_dict.json")  # of `save_to_disk`


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
    import datasets

    for state in [file for name in STATE_FILES for file in (folder / name, *folder.glob(f"*/{name}"))]:
        if not state.is_file():
            continue
        try:
            content = json.loads(state.read_bytes())
            names = [entry["filename"] for entry in content.get("_data_files") or []] + (content.get("splits") or [])
            outside = [name for name in names if not is_inside(state.parent / name, folder)]
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


def load_dataset(
    name: str, config_name: str | None = None, revision: str | None = None, split: str | None = None
) -> datasets.Dataset | datasets.DatasetDict:
    """A Parquet or Arrow file, a list, a WebDataset archive, a folder of `save_to_disk`, or a dataset of the Hub.

    `config_name`, `revision` and `split` are those of a dataset of the Hub.

    Raises:
        InputError: There is none.
    """
    import datasets

    with load_errors(name):
        path, suffix = Path(name), Path(name).suffix.lower()
        files = {"data_files": glob.escape(name), "split": "train", "cache_dir": cache_folder(name)}
        if is_table(name):
            if not path.is_file():
                raise InputError(f"--images {name}: no such file")
            return datasets.load_dataset(suffix[1:], **files)
        if path.is_file() and suffix in LIST_SUFFIXES:
            if suffix in (".json", ".jsonl"):
                return datasets.load_dataset("json", **files)
            # An empty cell or a class called NA is text.
            return datasets.load_dataset(
                "csv", sep=_separator(path), keep_default_na=False, encoding="utf-8-sig", **files
            )
        if path.is_file():
            check_webdataset(name)
            return datasets.load_dataset("webdataset", **files)
        if listed := metadata_file(path):  # alone: the library would unpack archives that lie beside it
            return datasets.load_dataset("imagefolder", **files | {"data_files": glob.escape(str(listed))})
        if path.exists():
            return load_saved_dataset(path, "--images")
        return datasets.load_dataset(name, config_name, revision=revision, split=split)


@contextmanager
def load_errors(name: str) -> Iterator[None]:
    """Reports whatever goes wrong while a dataset is loaded as an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the library raises its own, pyarrow's, OSError, ConnectionError, ValueError, …
        from datasets.exceptions import DatasetGenerationError

        is_wrapped = isinstance(error, DatasetGenerationError) and error.__cause__
        reason = first_line(error.__cause__ if is_wrapped else error)
        if "Config name is missing" in str(error):
            names = re.findall(r"'([^']+)'", str(error).partition("available configs:")[2].partition("]")[0])
            reason = f"it has several configurations; name one with --config_name: {', '.join(names)}"
        if Path(name).exists():
            raise InputError(f"--images {name} can't be read: {reason}") from error
        raise InputError(f"--images {name}: no file or folder, and no dataset that can be loaded ({reason})") from error


def may_be_hub_id(name: str) -> bool:
    """Whether a name could be that of a dataset on the Hub, and isn't that of a file."""
    suffix = Path(name).suffix.lower()
    is_file_name = suffix in NO_HUB_IDS or suffix in Image.registered_extensions()
    return not is_file_name and not Path(name).exists() and bool(re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name))


def is_slice(split: str | None) -> bool:
    """Whether a split is one of `datasets`' expressions, such as `train[:1000]`."""
    return split is not None and any(sign in split for sign in "[+")


def _separator(path: Path) -> str:
    """The one of a tab, `;` and `,` that is most frequent in the first line."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        line = file.readline(1 << 16)
    return max(",;\t", key=line.count)


def is_inside(path: str | Path, folder: str | Path) -> bool:
    """Whether a path, with all links followed, is inside a folder."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
