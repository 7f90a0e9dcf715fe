"""What a user sees when something is wrong.

One idea: a mistake in the user's input is an `InputError`, told in one message (what was found, where, what to do) and
ended with exit code 2; everything else keeps its traceback and exit code 1.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

EXIT_INPUT_ERROR = 2
EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, what a shell expects
EXIT_TERMINATED = 143  # 128 + SIGTERM


class InputError(ValueError):
    """The user's input is wrong; the message says what was found, where, and what to do."""


class LeakError(RuntimeError):
    """The class logits depend on tokens after `<CLS>`: no number of this model can be believed."""


class DivergedError(RuntimeError):
    """Loss, gradients or weights are no longer finite."""


class StorageError(RuntimeError):
    """What was to be saved can't be written; what stood there before still does."""


class StoppedError(RuntimeError):
    """A signal asked a training run to end, and it did, with a checkpoint.

    Args:
        message: What was saved, and how to go on.
        signal_number: The signal.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number  # what a shell reports of a process that a signal ended


REMEDIES = {
    errno.ENOSPC: "free some space, or choose another folder",
    errno.EDQUOT: "your quota is used up: free some space, or choose another folder",
    errno.EFBIG: "a file may not become this large here (ulimit -f, or the file system's own limit)",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "choose a folder that you may write to, or mend its permissions",
}


class HubError(RuntimeError):
    """The Hub can't be reached or doesn't do what was asked; the message says what stands there and what to do."""


def run_script(main: Callable[[], None]) -> NoReturn:
    """Runs a script's `main` and ends the process with exit code 0, 1 or 2; 130 or 143 after SIGINT or SIGTERM.

    SIGTERM is turned into an ordinary exit, so that half-written output is cleaned away on the way out. Not so where
    several processes work together: one that waits for another in C code would never come to run a Python handler.
    What the terminal's encoding lacks, such as a file name that isn't UTF-8, is printed escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_INPUT_ERROR)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILURE)
    except OSError as error:
        print(f"error: {describe(error)}", file=sys.stderr)
        sys.exit(EXIT_FAILURE)
    except (LeakError, DivergedError, StorageError, HubError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILURE)
    except StoppedError as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0)


def describe(error: OSError) -> str:
    """What the system refused, where, and what to do about it."""
    where = f": {error.filename}" if error.filename else ""
    remedy = f"; {REMEDIES[error.errno]}" if error.errno in REMEDIES else ""
    return f"{error.strerror or error}{where}{remedy}"
