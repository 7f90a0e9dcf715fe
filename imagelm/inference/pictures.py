"""Drawings as pictures: all drawn images, or given | completed | original.

One idea: tokens become pixels here and nowhere else; what can't be decoded is left out, never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from imagelm.inference.generation import GeneratedRow
from imagelm.inference.inputs import Prompts
from imagelm.inference.loading import LoadedModel
from imagelm.tokens.row import Row
from imagelm.utils.errors import InputError
from imagelm.utils.image_grid import hide_unknown, image_grid


def drawn_picture(loaded: LoadedModel, drawings: Sequence[GeneratedRow]) -> np.ndarray | None:
    """All drawn images in a near square, with their classes; None where none is whole."""
    whole = [drawing for drawing in drawings if _is_decodable(loaded, drawing.row)]
    if not whole:
        return None
    captions = [f"{loaded.class_name(drawing.label)}\n{drawing.probability:.2f}" for drawing in whole]
    images = decode(loaded, [drawing.row.body for drawing in whole])
    return image_grid(images, max(1, round(len(whole) ** 0.5 * 1.4)), captions=captions)


def continued_picture(
    loaded: LoadedModel,
    prompts: Prompts,
    kept: Sequence[tuple[Row, int]],
    drawings: Sequence[Sequence[GeneratedRow]],
    summary: list[str],
) -> np.ndarray | None:
    """A line for each row: what was given, its completions, and the original where it's known."""
    codec, images, captions = loaded.codec, [], []
    several = len(drawings[0])
    for (row, num_known), completions in zip(kept, drawings, strict=True):
        if not all(_is_decodable(loaded, drawing.row) for drawing in completions):
            continue
        whole = decode(loaded, [drawing.row.body for drawing in completions])
        images += [hide_unknown(whole[0], num_known, codec.grid), *whole]
        captions += ["", *(f"{loaded.class_name(d.label)} {d.probability:.2f}" for d in completions)]
        if row.picture is not None:
            images.append(codec.pixels(prompts.picture(row)))
        elif _is_decodable(loaded, row):
            images += list(decode(loaded, [row.body]))
        else:
            images.append(hide_unknown(whole[0], 0, codec.grid))
        captions.append("" if row.label is None else loaded.class_name(row.label))
    if not images:
        return None
    if len(prompts.rows) > len(kept):
        summary.append(f"the picture shows the first {len(kept)} of {len(prompts.rows)} rows (--num_pictures)")
    names = ["completed"] if several == 1 else [f"completed {i}" for i in range(1, several + 1)]
    original = "original" if prompts.source is not None else "original tokens"
    return image_grid(images, several + 2, ["given", *names, original], captions)


def decode(loaded: LoadedModel, bodies: Sequence[np.ndarray]) -> np.ndarray:
    """Image bodies as pixels; uint8, shape (images, height, width, channels).

    Raises:
        InputError: The codec can't draw.
    """
    try:
        return loaded.codec.decode(loaded.entry_of_id[np.stack(bodies).astype(np.int64)])
    except ValueError as error:
        raise InputError(f"the codec beside {loaded.name} can't draw pictures: {error}") from error


def _is_decodable(loaded: LoadedModel, row: Row | None) -> bool:
    return row is not None and len(row.body) == loaded.codec.num_tokens
