"""Why something couldn't be written, in words.

One idea: torch and safetensors tell that a write failed, but not always why; the file system is asked again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from imagelm.utils.errors import StorageError, describe

# What a library raises where a write fails; RuntimeError is torch's, and has other meanings too.
WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)


@contextmanager
def told_as_storage_error(path: Path, what_remains: str) -> Iterator[None]:
    """Turns every failed write into a `StorageError`.

    Args:
        path: What is being written.
        what_remains: How things stand then, for people.

    Raises:
        StorageError: Writing failed.
    """
    try:
        yield
    except WRITE_ERRORS as error:
        raise StorageError(f"{path} can't be written: {why_not_written(error, path.parent)}. {what_remains}") from error


def why_not_written(error: Exception, folder: Path) -> str:
    """The system's reason; of a library that doesn't pass it on, what a small file in `folder` meets.

    Raises:
        RuntimeError: The error itself, where it has nothing to do with writing.
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
    return str(error).strip().split("\n")[0]
