"""What a user sees when something is wrong.

One idea: a mistake in the user's input is an `InputError`, told in one message (what was found, where, what to do) and
ended with exit code 2; everything else keeps its traceback and exit code 1.
"""

from __future__ import annotations

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
    """Loss or weights are no longer finite."""


class HubError(RuntimeError):
    """The Hub can't be reached or doesn't do what was asked; the message says what stands there and what to do."""


def run_script(main: Callable[[], None]) -> NoReturn:
    """Runs a script's `main` and ends the process with exit code 0, 1 or 2.

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
    except (LeakError, DivergedError, HubError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILURE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0)
