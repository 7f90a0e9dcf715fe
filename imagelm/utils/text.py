"""Text in messages, tables and cards: cut, printable, and lists that end with how many more there are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

NUM_LISTED = 20  # entries of a list in a message


def shorten(text: object, width: int = 60) -> str:
    """The text, cut to `width` characters and ended with … where it is longer."""
    text = str(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def first_line(error: object, width: int = 200) -> str:
    """The first line of an error's text, cut to `width` characters."""
    return shorten(next(iter(str(error).strip().splitlines()), ""), width)


def list_first(entries: Iterable[object], limit: int = NUM_LISTED, total: int | None = None) -> list[str]:
    """The first entries as indented lines; the last line says how many more there are.

    Args:
        entries: All entries, or the first ones of them.
        limit: How many lines to give.
        total: How many entries there are, where `entries` holds only the first ones.
    """
    entries = list(entries)
    total = len(entries) if total is None else total
    lines = [f"  {entry}" for entry in entries[:limit]]
    return [*lines, f"  … and {total - len(lines)} more"] if total > len(lines) else lines


def join_first(entries: Iterable[object], limit: int = NUM_LISTED, separator: str = ", ") -> str:
    """The first entries on one line, and how many more there are."""
    entries = list(entries)
    more = f" and {len(entries) - limit} more" if len(entries) > limit else ""
    return separator.join(map(str, entries[:limit])) + more


def number_of(number: int, noun: str) -> str:
    """A number with its noun, such as `1 process` or `2 processes`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


def processes(hardware: dict) -> str:
    """The processes and threads that `run.json` records, such as `2 processes with 1 thread each`."""
    each = " each" if hardware["num_processes"] > 1 else ""
    return (
        f"{number_of(hardware['num_processes'], 'process')} with {number_of(hardware['num_threads'], 'thread')}{each}"
    )


def printable(name: str | Path) -> str:
    """A file's name as text that any stream can hold; bytes that aren't UTF-8 become `\\xff`."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def table_cell(text: str) -> str:
    """Text escaped for a cell of a Markdown table: one line, shown literally."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\|`*~\[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)
