"""From the result of a task to what the user sees: a table, a JSONL file, a PNG grid of images.

One idea: a task computes everything first and returns one `TaskResult`. Its records serve the table and the file; files
are complete or absent. Tokens become pixels only here, and an image that can't be decoded is skipped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from imagelm.inference.arguments import OutputArguments
from imagelm.inference.generation import GeneratedRow
from imagelm.inference.inputs import InputRows, require_codec
from imagelm.inference.loading import LoadedModel
from imagelm.remote_code.codec_imagelm import Codec
from imagelm.tokens.grammar import Row
from imagelm.utils.atomic_io import atomic_file
from imagelm.utils.errors import InputError
from imagelm.utils.image_grid import hide_unknown, image_grid, save_png
from imagelm.utils.text import NUM_LISTED, printable, shorten

# The table shortens long cells of these columns, the file never does.
CUT_COLUMNS = {"tokens": 60, "completion": 60, "row": 250}


@dataclass
class TaskResult:
    """The result of a task: a record per row for programs and the JSONL file, a table and lines to print below it."""

    records: list[dict[str, Any]]  # complete; the task's docstring lists the keys
    columns: list[str]
    cells: list[list[str]]
    summary: list[str] = field(default_factory=list)
    # Draws the generated images, or gives None if none is complete. None if there are none, or no codec.
    make_grid: Callable[[], np.ndarray | None] | None = None

    def __post_init__(self) -> None:
        """Removes optional columns that hold nothing."""
        optional = ("label", "then", "true", "token accuracy")
        kept = [i for i, name in enumerate(self.columns) if name not in optional or any(row[i] for row in self.cells)]
        self.columns = [self.columns[i] for i in kept]
        self.cells = [[row[i] for i in kept] for row in self.cells]


def write_results(result: TaskResult, options: OutputArguments) -> str:
    """Writes the files; gives the table and what to say below it."""
    grid = None
    if result.make_grid and options.output_image:
        grid = result.make_grid()
        if grid is None:
            result.summary.append(f"no complete image was generated, so {options.output_image} was not written")
    elif result.make_grid and result.cells:
        result.summary.append("to see the images, add --output_image F.png")
    if options.output:
        with atomic_file(options.output) as partial, open(partial, "wb") as stream:
            for record in result.records:
                stream.write(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))
    if options.output_image and grid is not None:
        save_png(grid, options.output_image)
    shown = result.cells[:NUM_LISTED] if options.output else result.cells
    lines = [table(result.columns, shown)]
    if len(shown) < len(result.cells):
        lines.append(f"… and {len(result.cells) - len(shown)} more")
    lines += ["", *map(printable, result.summary)] if result.summary else []
    written = (options.output, options.output_image if grid is not None else None)
    return "\n".join([*lines, *(printable(f"written: {name}") for name in written if name)])


def table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """Aligned, printable text with a line of titles; long cells are shortened, numbers are aligned on the right."""
    limits = [CUT_COLUMNS.get(name, sys.maxsize) for name in columns]
    rows = [
        [shorten(printable(cell), limit) for cell, limit in zip(row, limits, strict=True)] for row in [columns, *cells]
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    is_right = [bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        padded = zip(row, widths, is_right, strict=True)
        return "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in padded).rstrip()

    return "\n".join(map(line, [rows[0], ["-" * width for width in widths], *rows[1:]]))


def generated_grid(loaded: LoadedModel, generated: Sequence[GeneratedRow]) -> np.ndarray | None:
    """All complete images in a near square, with their classes; None if no image is complete.

    Raises an InputError if the model has no codec, or one that can't decode.
    """
    codec = require_codec(loaded, "an image grid")
    bodies, captions = [], []
    for image in generated:
        if (body := _decodable_body(codec, image.row)) is not None:
            bodies.append(body)
            captions.append(_class_caption(loaded, image, "\n"))
    if not bodies:
        return None
    return image_grid(
        list(decode_bodies(loaded, codec, bodies)), max(1, round(len(bodies) ** 0.5 * 1.4)), captions=captions
    )


def completion_grid(
    loaded: LoadedModel, inputs: InputRows, given: list[tuple[Row, int]], completions: list[list[GeneratedRow]]
) -> np.ndarray | None:
    """One line per row: the given part, its completions, and the original if it is known.

    Takes rows with the number of image tokens that were given, and the completions of each, of all rows equally many.
    Gives uint8, shape (height, width, 3), or None if no row has only complete images. Raises as `generated_grid`.
    """
    codec = require_codec(loaded, "an image grid")
    images: list[np.ndarray] = []
    captions: list[str] = []
    for (row, num_given), several in zip(given, completions, strict=True):
        bodies = [body for one in several if (body := _decodable_body(codec, one.row)) is not None]
        if len(bodies) < len(several):
            continue
        completed = decode_bodies(loaded, codec, bodies)
        images += [hide_unknown(completed[0], num_given, codec.grid), *completed]
        captions += ["", *(_class_caption(loaded, one, " ") for one in several)]
        if row.image_index is not None:
            images.append(codec.pixels(inputs.image(row.image_index)))
        elif (body := _decodable_body(codec, row)) is not None:
            images += list(decode_bodies(loaded, codec, [body]))
        else:
            images.append(hide_unknown(completed[0], 0, codec.grid))
        captions.append("" if row.label is None else loaded.drawn_names[row.label])
    if not images:
        return None
    several_count = len(completions[0])
    names = ["completed"] if several_count == 1 else [f"completed {i}" for i in range(1, several_count + 1)]
    original = "original" if inputs.source is not None else "original tokens"
    return image_grid(images, several_count + 2, ["given", *names, original], captions)


def decode_bodies(loaded: LoadedModel, codec: Codec, bodies: Sequence[np.ndarray]) -> np.ndarray:
    """Pixels of image bodies; uint8, shape (images, height, width, channels)."""
    try:
        return codec.decode(loaded.grammar.entry_of_id[np.stack(bodies).astype(np.int64)])
    except ValueError as error:
        raise InputError(f"the codec of {loaded.name} can't decode images: {error}") from error


def _decodable_body(codec: Codec, row: Row | None) -> np.ndarray | None:
    return row.body if row is not None and len(row.body) == codec.num_tokens else None


def _class_caption(loaded: LoadedModel, image: GeneratedRow, separator: str) -> str:
    if image.label is None:
        return ""
    return f"{loaded.drawn_names[image.label]}{separator}{image.probability:.2f}"


def _is_number(cell: str) -> bool:
    try:
        float(cell.removesuffix("%"))
    except ValueError:
        return cell == ""
    return True
