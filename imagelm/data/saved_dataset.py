"""Checks of datasets from elsewhere: their paths stay inside the dataset, and they fit on this machine.

One idea: a dataset's own files name its parts; only parts inside the dataset are opened.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from imagelm.utils.errors import InputError

PLAIN_FILES = ("state.json", "dataset_dict.json")


def is_inside(path: str | Path, *folders: str | Path) -> bool:
    """Whether a path, with all links followed, is inside one of the folders."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(folder)) for folder in folders)


def check_saved_dataset(folder: Path, option: str) -> None:
    """Refuses a folder of `save_to_disk` that names files outside of it.

    Raises:
        InputError: It does, or can't be read.
    """
    for state in [file for name in PLAIN_FILES for file in (folder / name, *folder.glob(f"*/{name}"))]:
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
                f"{option} {folder}: its {state.name} names {outside[0]!r}, outside of it; nothing is read"
            )


def check_archive_size(path: Path, name: str, on_disk: bool) -> None:
    """Refuses an array of an NPZ file that is too large for this machine, without unpacking it.

    Args:
        path: The archive.
        name: The array.
        on_disk: Whether it will be unpacked to a temporary file instead of memory.

    Raises:
        InputError: It's too large.
    """
    with zipfile.ZipFile(path) as archive:
        size = max((entry.file_size for entry in archive.infolist() if entry.filename == f"{name}.npy"), default=0)
    if on_disk:
        room, where = shutil.disk_usage(tempfile.gettempdir()).free, f"{tempfile.gettempdir()} has room for"
    else:
        room, where = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "this machine's memory is"
    if size > room:
        raise InputError(f"--images {path}: array {name!r} unpacks to {size:,} bytes, {where} {room:,}; split it up")
