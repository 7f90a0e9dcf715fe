"""Imports of large libraries at the start of a command."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports_kept() -> Iterator[None]:
    """Wraps imports: what they make stays, so the garbage collector looks through it neither now nor later.

    PyTorch and transformers make half a million objects, and the collector takes a sixth of their imports' time to find
    nothing in them. In a process that has PyTorch already, nothing is changed, as its garbage would stay, too.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
