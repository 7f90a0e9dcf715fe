"""Output folders that are either whole or absent.

One idea: write next to the final path, flush it to the disk (fsync), then rename. A reader never sees half a folder,
and an old one is kept until the new one is complete, even if the process is killed or the power fails.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from imagelm.utils.errors import InputError, StorageError, describe
from imagelm.utils.text import first_line

# What libraries raise if a write fails; RuntimeError is torch's, and has other meanings too.
WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)
RENAME_EXCHANGE = 2  # of Linux's renameat2: two paths are exchanged in one step
# The names that `atomic_folder` and `atomic_file` write to, and that a killed process may leave behind.
LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>partial|old)-[^.]+")


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


def check_output_free(path: Path, marker: str, overwrite: bool) -> None:
    """Refuses an output folder that exists, unless it may be overwritten and this program wrote it.

    Args:
        path: The folder to be written.
        marker: A file that only a folder of this kind holds. `--overwrite` replaces nothing else, so that a mistake
            such as `--output_dir ~ --overwrite` can't delete a home folder.
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
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a staging folder next to `path`; on success it replaces `path`, on any error it is removed."""
    path = Path(path).resolve()
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    try:
        yield staging
        os.chmod(staging, 0o777 & ~_umask())
        replace_folder(staging, path)
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
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a path next to `path` to write to; on success it replaces `path`, on any error it is removed."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)
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


def remove_leftovers(folder: Path, names: re.Pattern[str]) -> None:
    """Removes what killed writers left behind, and restores a folder that was moved aside.

    Call it only if no other process writes into the folder.

    Args:
        folder: The folder that holds the final paths.
        names: The names of the final paths.
    """
    for entry in folder.iterdir():
        match = LEFTOVER.fullmatch(entry.name)
        if not match or not names.fullmatch(match["name"]):
            continue
        if match["kind"] == "old" and not (folder / match["name"]).exists() and (entry / match["name"]).exists():
            os.rename(entry / match["name"], folder / match["name"])
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def replace_folder(staging: Path, path: Path) -> None:
    """Moves a finished folder to `path`; an earlier one is removed once the new one is in place."""
    sync_folder(staging)
    if not path.exists():
        os.rename(staging, path)
    elif _exchange(staging, path):
        shutil.rmtree(staging, ignore_errors=True)
    else:
        _replace_occupied(staging, path)
    _sync(path.parent)


def sync_folder(folder: Path) -> None:
    """Flushes all files under a folder, and the folder itself, to the disk."""
    for where, _, names in os.walk(folder):
        for name in names:
            _sync(Path(where, name))
        _sync(Path(where))


def _replace_occupied(staging: Path, path: Path) -> None:
    # Without the exchange the old one is moved aside first, and restored if the new one can't be moved in.
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
    os.rename(path, old / path.name)
    try:
        os.rename(staging, path)
    except BaseException:
        os.rename(old / path.name, path)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two paths in one step; False if the system or the file system can't."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    here = ctypes.c_int(-100)  # AT_FDCWD: names are relative to the working folder
    if renameat2(here, os.fsencode(one), here, os.fsencode(other), ctypes.c_uint(RENAME_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
