"""The errors that a user sees, and the exit codes.

One idea: a mistake in the user's input is an `InputError`, reported in one message (what was found, where, what to do)
with exit code 2; unexpected errors keep their traceback and exit code 1.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from imagelm.utils.text import printable

EXIT_INPUT_ERROR, EXIT_FAILURE = 2, 1
EXIT_SIGNAL = 128  # added to the number of the signal that ended a process, as a shell expects


class InputError(ValueError):
    """The user's input is wrong; the message says what was found, where, and what to do."""


class LeakError(RuntimeError):
    """The class logits depend on tokens after `<CLS>`: no figure of this model is valid."""


class DivergedError(RuntimeError):
    """Loss, gradients or weights are no longer finite."""


class StorageError(RuntimeError):
    """A file or folder can't be written; what was there before is unchanged."""


class StoppedError(RuntimeError):
    """A signal stopped a training run; the message says what was saved, and how to resume."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = EXIT_SIGNAL + signal_number


class PeerLostError(RuntimeError):
    """Another process of a run is gone or can't be reached; the message says what is saved, and how to continue."""


REMEDIES = {
    errno.ENOSPC: "free some space, or choose another folder",
    errno.EDQUOT: "your quota is used up: free some space, or choose another folder",
    errno.EFBIG: "files can't grow this large here (ulimit -f, or the file system's own limit)",
    errno.EROFS: "choose a writable folder",
    errno.EACCES: "choose a folder that you may write to, or change its permissions",
}


class HubError(RuntimeError):
    """The Hub can't be reached or refuses a request; the message gives its state and the remedy."""


def run_script(main: Callable[[], None]) -> NoReturn:
    """Runs a script's `main` and ends the process with exit code 0, 1 or 2; 130 or 143 after SIGINT or SIGTERM.

    SIGTERM becomes an ordinary exit, so that half-written output is removed. If several processes work together, it
    keeps its default action, as a process that waits for another in C code never runs a Python handler. Characters
    that the terminal can't show, such as in a file name that isn't UTF-8, are printed escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_SIGNAL + signal.SIGTERM))
    try:
        main()
    except InputError as error:
        _print_error(error)
        sys.exit(EXIT_INPUT_ERROR)
    except BrokenPipeError:  # the reader of the output closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILURE)
    except (OSError, LeakError, DivergedError, StorageError, PeerLostError, HubError) as error:
        _print_error(describe(error) if isinstance(error, OSError) else error)
        sys.exit(EXIT_FAILURE)
    except StoppedError as stopped:
        print(printable(stopped, keep="\n"), file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_SIGNAL + signal.SIGINT)
    sys.exit(0)


def _print_error(error: object) -> None:
    """Messages hold names of files and classes, which must not control the terminal."""
    print(printable(f"error: {error}", keep="\n"), file=sys.stderr)


def describe(error: OSError) -> str:
    """The refusal of the system, where, and what to do."""
    where = f": {error.filename}" if error.filename else ""
    remedy = f"; {REMEDIES[error.errno]}" if error.errno in REMEDIES else ""
    return f"{error.strerror or error}{where}{remedy}"
