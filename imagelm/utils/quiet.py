"""Other libraries' progress bars and warnings off for a while; the caller's own settings come back afterwards."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Hides the bars of datasets."""
    import datasets

    were_on = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            datasets.enable_progress_bars()


@contextmanager
def quiet_transformers(errors_only: bool = False) -> Iterator[None]:
    """Hides the bars that transformers shows while it reads and writes weights, and its warnings if asked.

    Of several processes that train together only the first one warns.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils import logging

    level, were_on = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub_was_off = are_progress_bars_disabled()
    logging.disable_progress_bar()
    changes = (errors_only or os.environ.get("RANK", "0") != "0") and level != logging.ERROR
    if changes:  # each change costs 0.7 ms, as Python's logging then forgets what it knows of all loggers
        logging.set_verbosity_error()
    try:
        yield
    finally:
        if changes:
            logging.set_verbosity(level)
        if were_on:
            logging.enable_progress_bar()
        if hub_was_off:  # transformers turns the bars of huggingface_hub on and off with its own
            disable_progress_bars()


@contextmanager
def hidden_message(logger: str, start: str) -> Iterator[None]:
    """Hides a message of another library, by how it starts."""

    def shown(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(start)

    logging.getLogger(logger).addFilter(shown)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(shown)
