"""Files that are either whole or absent, and reading what the user names.

One idea: write next to the final path, flush it to the disk (fsync), then rename. A reader never sees half a file, and
an old one is kept until the new one is complete, even if the process is killed or the power fails.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from imagelm.utils.errors import InputError, StorageError, describe
from imagelm.utils.text import first_line

# What libraries raise if a write fails; RuntimeError is torch's, and has other meanings too.
WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)


def check_folder_name(name: str) -> None:
    """Refuses an output folder that can't be created.

    Raises:
        InputError: The name is empty, or it or a folder above it is a file.
    """
    if not name:
        raise InputError("--output_dir is empty; name a folder")
    for folder in (Path(name), *Path(name).parents):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"--output_dir {name}: {folder} is a file; name a folder that doesn't exist yet")


def write_json(path: Path, content: object) -> None:
    """Writes `content` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a path next to `path` to write to; on success it replaces `path`, on any error it is removed."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> dict:
    """Reads a JSON object that this program wrote."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def read_input(path: str | Path, option: str, max_bytes: int = 64 << 20) -> bytes:
    """The content of a small file that the user named.

    Args:
        path: The file.
        option: The option that names it, for messages.
        max_bytes: A larger file can't be the right one, and would only fill the memory.

    Raises:
        InputError: It can't be read, isn't a regular file (a device or a pipe may never end), or is too large.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise InputError(f"{option} {path} is {kind}; name a file")
        if status.st_size > max_bytes:
            raise InputError(f"{option} {path} has {status.st_size:,} bytes; expected at most {max_bytes:,}")
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{option} {path}: {error.strerror}") from error
    except ValueError as error:  # a NUL in the name
        raise InputError(f"{option} {str(path)!r}: {error}") from error


def sync_folder(folder: Path) -> None:
    """Flushes all files under a folder, and the folder itself, to the disk."""
    for where, _, names in os.walk(folder):
        for name in names:
            sync(Path(where, name))
        sync(Path(where))


def sync(path: Path) -> None:
    """Flushes a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def raise_storage_error(path: Path, what_remains: str) -> Iterator[None]:
    """Turns every failed write into a `StorageError`.

    Args:
        path: What is being written.
        what_remains: The state after the failure, for the message.

    Raises:
        StorageError: Writing failed.
    """
    try:
        yield
    except WRITE_ERRORS as error:
        raise StorageError(f"{path} can't be written: {why_not_written(error, path.parent)}. {what_remains}") from error


def why_not_written(error: Exception, folder: Path) -> str:
    """The system's reason; if a library doesn't pass it on, the one that a small file in `folder` meets.

    Raises:
        RuntimeError: The error itself, if it isn't about writing.
    """
    if isinstance(error, OSError) and error.errno:
        return describe(error)
    if isinstance(error, RuntimeError) and not re.search(r"write|writing", str(error)):
        raise error
    probe = folder / ".probe.partial-save"
    try:
        with open(probe, "wb") as file:
            file.write(bytes(4 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as found:
        return describe(found)
    finally:
        probe.unlink(missing_ok=True)
    return first_line(error)
