"""Text in messages, tables and cards: cut, printable, and lists that end with how many more there are.

One idea: names come from files and models that anyone may have made. They stay as they are in data and JSON, and pass
through `printable` or `display_names` where a person reads them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

NUM_LISTED = 20  # entries of a list in a message
NAME_WIDTH = 40  # characters of a name in a table
# Unicode categories: controls (C0, DEL, C1), formats (bidirectional, zero-width), surrogates, line and paragraph ends.
UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
BLANK_LETTERS = "\u115f\u1160\u2800\u3164\uffa0"  # letters by their category, which are drawn as nothing


def shorten(text: object, width: int = 60) -> str:
    """The text, cut to `width` characters and ended with … where it is longer."""
    text = str(text)
    return text if len(text) <= width else text[: width - 1] + "…"


def first_line(error: object, width: int = 200) -> str:
    """The first line of an error's text, cut to `width` characters."""
    return shorten(next(iter(str(error).strip().splitlines()), ""), width)


def reason(error: BaseException) -> str:
    """An error in one line, with its type where the text alone says little (`KeyError: 'n_embd'`)."""
    text = " ".join(str(error).split())
    return shorten(text if " " in text else f"{type(error).__name__}: {text}", 500)


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


def decoded(name: object) -> str:
    """A file's name as text that any stream can hold; bytes that aren't UTF-8 become `\\xff`."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def normalized(name: object) -> str:
    """A class name, NFC-normalized, so that `é` is one name however a system spells it."""
    return unicodedata.normalize("NFC", decoded(name))


def printable(text: object, keep: str = "") -> str:
    """Text that can't control a terminal, reorder a line or hide in it: such characters become `\\x1b`, `\\u202e`, ….

    Args:
        text: A name or a message; surrogates, which stand for bytes that aren't UTF-8, become `\\xff`.
        keep: Characters to leave, such as the newlines of a message whose names are printable already.
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode() if c not in keep and unicodedata.category(c) in UNPRINTABLE else c
        for c in decoded(text)
    )


def display_names(names: Sequence[str], width: int = NAME_WIDTH) -> list[str]:
    """Class names for tables and plots: printable, cut to `width`; equal and blank ones are numbered: `cat (3)`."""
    shown = [shorten(printable(name), width) for name in names]
    counts = Counter(map(_look, shown))
    told = [
        name if _look(names[label]) and counts[_look(name)] == 1 else f"{name} ({label})".strip()
        for label, name in enumerate(shown)
    ]
    if len(set(map(_look, told))) == len(told):
        return told
    return [f"{name} ({label})" for label, name in enumerate(shown)]  # one was called `cat (3)` already


def name_problem(names: Sequence[str]) -> str | None:
    """Why people can't tell classes by these names: one is blank, or two look the same; None if they can."""
    labels: dict[str, int] = {}
    for label, name in enumerate(names):
        look = _look(name)
        if not look:
            return f"class {label} has a blank name ({shorten(ascii(name))})"
        if look in labels:
            first = labels[look]
            same = f"{shorten(ascii(names[first]))} and {shorten(ascii(name))}"
            return f"classes {first} and {label} have names that look the same ({same})"
        labels[look] = label
    return None


def _look(name: str) -> str:
    """What people see of a name: without invisible characters, spaces joined, NFC-normalized."""
    seen = "".join(
        " " if c.isspace() or c in BLANK_LETTERS else c
        for c in name
        if c.isspace() or unicodedata.category(c) not in UNPRINTABLE
    )
    return normalized(" ".join(seen.split()))


def table_cell(text: str) -> str:
    """Text escaped for a cell of a Markdown table: one line, shown literally."""
    line = printable(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\|`*~\[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)
