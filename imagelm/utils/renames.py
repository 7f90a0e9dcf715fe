"""Renames in one step, where the system has them: two folders exchanged, a file moved where nothing is.

One idea: Linux's renameat2 leaves no moment in between; elsewhere the steps are such that a kill is repaired later.
"""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from pathlib import Path

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2  # of Linux's renameat2


def exchange(staging: Path, path: Path) -> None:
    """Exchanges two folders that are beside each other."""
    if _renameat2(staging, path, RENAME_EXCHANGE):
        return
    # In steps where the system has no exchange; a kill in between is repaired by `output_folder.remove_leftovers`.
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent)) / path.name
    os.rename(path, aside)
    try:
        os.rename(staging, path)
    except BaseException:
        os.rename(aside, path)
        aside.parent.rmdir()
        raise
    os.rename(aside, staging)
    aside.parent.rmdir()


def move(source: Path, target: Path) -> bool:
    """Moves a file or folder, unless something is at the target."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not _renameat2(source, target, RENAME_NOREPLACE):
            if os.path.lexists(target):
                return False
            os.rename(source, target)
    except OSError:
        return False
    return True


def _renameat2(source: Path, target: Path, flag: int) -> bool:
    """Linux's renameat2; False if the system or the file system doesn't have it."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    here = ctypes.c_int(-100)  # AT_FDCWD: names are relative to the working folder
    if renameat2(here, os.fsencode(source), here, os.fsencode(target), ctypes.c_uint(flag)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(target))
