"""Locks of folders, against other processes and within this one.

One idea: the kernel holds a lock for an open folder, so that it ends with its process, however that ends; children that
a process forks give it up at once.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_held: dict[int, tuple[int, int]] = {}  # descriptors of locked folders → device and inode


def _release_in_child() -> None:
    while _held:
        os.close(_held.popitem()[0])


os.register_at_fork(after_in_child=_release_in_child)  # a worker that outlives a killed parent must not hold its locks


@contextmanager
def locked(folder: Path, patience: float = 0) -> Iterator[bool]:
    """Locks a folder until the end of the block, against other processes and other blocks of this one.

    Args:
        folder: The folder.
        patience: How long to wait for the lock, in seconds.

    Yields:
        Whether it could be locked; also true on a file system without locks.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    status = os.fstat(descriptor)
    deadline = time.monotonic() + patience
    try:
        while (free := _try_lock(descriptor)) is False and time.monotonic() < deadline:
            time.sleep(0.02)
        if free:
            _held[descriptor] = status.st_dev, status.st_ino
        yield free
    finally:
        if not free:
            os.close(descriptor)
        elif _held.pop(descriptor, None):  # not in a forked child, which has closed it
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # at once, even if a child was forked this very moment
            os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether a block of this process has locked the folder."""
    status = folder.stat()
    return (status.st_dev, status.st_ino) in _held.values()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True
