"""Output folders that are either whole or absent.

One idea: write beside the final place, then rename. A reader never sees half a folder, and an old one stays until the
new one is complete.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagelm.errors import InputError


def check_folder_name(name: str) -> None:
    """Refuses an output folder that can't come to be.

    Raises:
        InputError: The name is empty, or it or a folder above it is a file.
    """
    if not name:
        raise InputError("--output_dir is empty; name a folder")
    for folder in (Path(name), *Path(name).parents):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--output_dir {name}: {folder} is a file; name a folder that doesn't exist yet")


def check_output_free(path: Path, marker: str, overwrite: bool) -> None:
    """Refuses an output folder that exists, unless it may be overwritten and is one that we wrote.

    Args:
        path: The folder to be written.
        marker: A file that only a folder of this kind holds. `--overwrite` replaces nothing else, so that a slip such
            as `--output_dir ~ --overwrite` can't delete a home folder.
        overwrite: Whether the user asked to replace what is there.

    Raises:
        InputError: The folder holds something and may not be replaced.
    """
    if not path.exists() or not any(path.iterdir()):
        return
    if not overwrite:
        raise InputError(
            f"{path} exists and is not empty; add --overwrite to replace it, or choose another --output_dir"
        )
    if not (path / marker).exists():
        raise InputError(
            f"{path} holds no {marker}, so it wasn't written by this program; --overwrite won't delete it. "
            "Choose another --output_dir"
        )


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields a staging folder beside `path`; on success it takes the place of `path`, on any error it vanishes."""
    path = Path(path).resolve()
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    try:
        yield staging
        os.chmod(staging, 0o777 & ~_umask())
        _put_in_place(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not path.exists():
            for folder in made:
                folder.rmdir()


def write_json(path: Path, content: object) -> None:
    """Writes `content` as indented JSON, whole or not at all."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def table_cell(text: str) -> str:
    """Text as it may stand in a cell of a Markdown table: one line that reads as it is, whatever it holds."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\|`*~\[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields a name beside `path` to write to; on success that file takes the place of `path`, on any error it goes."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> dict:
    """Reads a JSON object that this project wrote."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _put_in_place(staging: Path, path: Path) -> None:
    if not path.exists():
        os.rename(staging, path)
        return
    # A folder can't replace a non-empty one in one system call: the old one steps aside first, and comes back if the
    # new one can't take its place.
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
    os.rename(path, old / path.name)
    try:
        os.rename(staging, path)
    except BaseException:
        os.rename(old / path.name, path)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
