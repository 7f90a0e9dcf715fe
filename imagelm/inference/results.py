"""What a mode gives back, and how it reaches the user: a table, JSONL, a PNG.

One idea: a mode computes everything first and then hands over one `Outcome`; files are written whole or not at all, and
the same records serve the table and the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson

from imagelm.inference.arguments import OutputArguments
from imagelm.utils.atomic_io import atomic_file
from imagelm.utils.image_grid import save_png

WIDEST_CELL = 60
CUT_COLUMNS = ("tokens", "completion")  # longer ones are cut in the table, never in the file
NUM_SHOWN_ROWS = 20  # where all are in a file


@dataclass
class Outcome:
    """The result of a mode.

    Attributes:
        records: One a row, complete, for the JSONL file.
        columns: Titles of the table.
        cells: The table's rows.
        summary: What is to be said below the table, a line each.
        see: Makes the picture of what was drawn, or None where no image is whole; None where nothing was drawn.
        picture: uint8, shape (height, width, 3); None where none was asked for.
    """

    records: list[dict]
    columns: list[str]
    cells: list[list[str]]
    summary: list[str] = field(default_factory=list)
    see: Callable[[], np.ndarray | None] | None = None
    picture: np.ndarray | None = None


def deliver(outcome: Outcome, options: OutputArguments) -> None:
    """Writes the files and prints the table."""
    if options.output:
        write_jsonl(options.output, outcome.records)
    if options.output_image and outcome.picture is not None:
        save_png(outcome.picture, options.output_image)
    shown = outcome.cells[:NUM_SHOWN_ROWS] if options.output else outcome.cells
    print(table(outcome.columns, shown))
    if len(shown) < len(outcome.cells):
        print(f"… and {len(outcome.cells) - len(shown)} more")
    if outcome.summary:
        print()
    for text in outcome.summary:
        print(text)
    for name in (options.output, options.output_image if outcome.picture is not None else None):
        if name:
            print(f"written: {name}")


def table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Aligned text with a line of titles; token strings are cut, numbers stand right."""
    cuts = [name in CUT_COLUMNS for name in columns]
    rows = [[_cut(cell) if cut else cell for cell, cut in zip(row, cuts, strict=True)] for row in [columns, *cells]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    right = [all(_is_number(row[i]) for row in cells) and bool(cells) for i in range(len(columns))]
    lines = []
    for row in rows:
        padded = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def write_jsonl(file: str | Path, records: Sequence[dict]) -> None:
    """Writes one JSON object a line, whole or not at all."""
    with atomic_file(file) as partial, open(partial, "wb") as stream:
        for record in records:
            stream.write(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))


def _cut(cell: str) -> str:
    return cell if len(cell) <= WIDEST_CELL else cell[: WIDEST_CELL - 1] + "…"


def _is_number(cell: str) -> bool:
    try:
        float(cell.removesuffix("%"))
    except ValueError:
        return cell == ""
    return True
