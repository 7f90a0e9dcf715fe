"""Many small images as one PNG: a grid with titles and captions.

One idea: pure functions on uint8 arrays; pixels are enlarged by whole factors, so no pixel is interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from imagelm.utils.atomic_io import atomic_file
from imagelm.utils.fonts import default_font, font_files

CELL = 96  # small images are enlarged to about this many pixels
GAP = 8
FONT_SIZE = 13
BACKGROUND, INK, MUTED = 255, (20, 20, 20), (110, 110, 110)
# For unknown tokens: no grey of an image looks like these stripes.
STRIPE_WIDTH, STRIPES = 6, ((196, 204, 222), (226, 231, 241))


def image_grid(
    images: Sequence[np.ndarray],
    num_columns: int,
    titles: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    cell: int = CELL,
) -> np.ndarray:
    """Images in rows, from left to right and from top to bottom.

    Args:
        images: uint8, each of shape (height, width), (height, width, 1) or (height, width, 3); of any sizes.
        num_columns: Images a row.
        titles: One above each column.
        captions: One below each image; newlines separate lines. See `drawable_names` for names of classes.
        cell: Size that small images are enlarged to, in pixels.

    Returns:
        uint8, shape (height, width, 3).
    """
    tiles = [_enlarge(_rgb(image), cell) for image in images]
    captions = list(captions) if captions is not None else []
    titles = list(titles) if titles is not None else []
    fonts = _fonts([*titles, *captions])
    line = FONT_SIZE + 4
    num_lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    lengths = [font.getlength(part) for text, font in fonts.items() for part in text.split("\n")]
    widest_text = int(max(lengths, default=0)) + 1
    width = max(widest_text, *(tile.shape[1] for tile in tiles)) + GAP
    height = max(tile.shape[0] for tile in tiles) + GAP + num_lines * line
    head = (line + GAP if titles else GAP) if tiles else 0
    num_rows = -(-len(tiles) // num_columns)
    canvas = np.full((head + num_rows * height, GAP + num_columns * width, 3), BACKGROUND, dtype=np.uint8)
    corners = [(head + i // num_columns * height, GAP + i % num_columns * width) for i in range(len(tiles))]
    for (top, left), tile in zip(corners, tiles, strict=True):
        canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    image = Image.fromarray(canvas)
    pen = ImageDraw.Draw(image)
    for i, title in enumerate(titles):
        pen.text((GAP + i * width, GAP // 2), title, fill=INK, font=fonts[title])
    for (top, left), tile, caption in zip(corners, tiles, captions, strict=False):
        pen.multiline_text((left, top + tile.shape[0] + 1), caption, fill=MUTED, font=fonts[caption], spacing=2)
    return np.asarray(image)


def hide_unknown(image: np.ndarray, num_known: int, grid: tuple[int, int]) -> np.ndarray:
    """An image with light stripes over all but its first tokens.

    Args:
        image: uint8, shape (height, width, channels).
        num_known: Tokens that are known, in reading order.
        grid: Rows and columns of tokens.

    Returns:
        uint8, shape (height × n, width × n, 3): enlarged by a whole factor, so that the stripes have room.
    """
    height, width = image.shape[:2]
    row = np.arange(height) * grid[0] // height
    column = np.arange(width) * grid[1] // width
    known = row[:, None] * grid[1] + column < num_known
    image, factor = _enlarge(_rgb(image), CELL), _factor(image, CELL)
    known = known.repeat(factor, 0).repeat(factor, 1)
    diagonal = np.add.outer(np.arange(known.shape[0]), np.arange(known.shape[1])) // STRIPE_WIDTH % 2
    return np.where(known[..., None], image, np.array(STRIPES, dtype=np.uint8)[diagonal])


def save_png(pixels: np.ndarray, file: str | Path) -> None:
    """Writes uint8 pixels of shape (height, width, 3) as a PNG file, whole or not at all."""
    with atomic_file(file) as partial:
        Image.fromarray(pixels).save(partial, format="PNG", optimize=True)


def _fonts(texts: list[str]) -> dict[str, ImageFont.FreeTypeFont]:
    """A font for each text that has all its characters; the default one where none has."""
    files = zip(texts, font_files(texts), strict=True)
    return {text: ImageFont.truetype(file or default_font(), FONT_SIZE) for text, file in files}


def _rgb(image: np.ndarray) -> np.ndarray:
    image = image[..., None] if image.ndim == 2 else image
    return image.repeat(3, axis=2) if image.shape[2] == 1 else image


def _factor(image: np.ndarray, cell: int) -> int:
    return max(1, round(cell / max(image.shape[:2])))


def _enlarge(image: np.ndarray, cell: int) -> np.ndarray:
    factor = _factor(image, cell)
    return image.repeat(factor, axis=0).repeat(factor, axis=1)
