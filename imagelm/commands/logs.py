"""Log lines on the terminal: the one handler that the commands install on the package's logger."""

from __future__ import annotations

import logging
import os
import sys

from imagelm.utils.text import printable


class _Terminal(logging.Handler):
    """Prints information as plain lines and warnings on stderr, both between progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Errors of the stream aren't caught: a command ends when the reader of its output goes away."""
        from tqdm import tqdm  # imported late, so that --help answers at once

        is_warning = record.levelno >= logging.WARNING
        text = printable(self.format(record), keep="\n")
        stream = sys.stderr if is_warning else sys.stdout
        tqdm.write(f"warning: {text}" if is_warning else text, file=stream)
        stream.flush()


TERMINAL = _Terminal()
logger = logging.getLogger("imagelm.commands")  # not of __name__, which is __main__ in python -m


def log_to_terminal() -> None:
    """Shows the package's log lines; of several processes that train together only the first shows information."""
    package = logging.getLogger("imagelm")
    package.setLevel(logging.INFO)
    TERMINAL.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    package.addHandler(TERMINAL)  # a handler that is there already isn't added again
