"""Parts of the page: the sheet to draw on, bars, galleries, and tokens as coloured cells."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from pictures import data_url
from PIL import Image

SHEET_PIXELS = 320  # longer side of the sheet to draw on
INKS = ("#e03131", "#f08c00", "#f5d90a", "#2f9e44", "#1971c2", "#7048e8", "#8d5b3f")  # for images in colour
HEAT = np.array([(255, 248, 214), (250, 174, 74), (203, 60, 68), (74, 14, 94)])  # from expected to surprising
SMALLEST_CELL = 18  # width of a token's cell in CSS pixels; a wider grid scrolls
LARGEST_CELL = 40  # where a grid has a line of its own
WIDE = 7  # columns of tokens; more take a line of their own
# Templates of gr.HTML: JavaScript fills them with `value`, which is what callers of the API get.
ESCAPED = ".replace(/[&<]/g, (c) => `&#${c.charCodeAt()};`)"
BARS = f"""${{!value ? "" : `<div class="bars"><h2>${{value.label{ESCAPED}}}</h2>
  ${{value.confidences.slice(0, 10).map((one) => `<span>${{one.label{ESCAPED}}}</span>
  <div><i style="width: ${{100 * one.confidence}}%"></i></div>
  <b>${{(100 * one.confidence).toFixed(1)}} %</b>`).join("")}}</div>`}}"""
GALLERY = f"""<div class="gallery">${{(value || []).map((one) => `<button type="button" title="Read this image">
  <img src="${{one.picture}}" alt="">${{one.caption{ESCAPED}}}</button>`).join("")}}</div>"""
PRESSED = """element.addEventListener("click", (event) => {
  const image = event.target.closest("button")?.querySelector("img");
  if (image) trigger("select", { picture: image.src });
});"""


def html(value: Any = None, **options: Any) -> gr.HTML:
    return gr.HTML(value, apply_default_css=False, **options)


def drawings(images: list[dict[str, str]] | None = None, **options: Any) -> gr.HTML:
    return html(images, html_template=GALLERY, js_on_load=PRESSED, **options)


def sheet(codec: Any, light: int) -> gr.HTML:
    """The sheet to draw on, in the shape of the model's images; `light` is its grey value, 0 or 255."""
    height, width = (max(1, SHEET_PIXELS // max(codec.image_size)) * side for side in codec.image_size)
    background, ink = (f"rgb({grey},{grey},{grey})" for grey in (light, 255 - light))
    inks = [(ink, "Ink"), (background, "Eraser")]
    inks[1:1] = [(colour, f"Colour {colour}") for colour in INKS] if codec.channels == 3 else []
    buttons = [
        f'<button type="button" data-colour="{colour}" style="background:{colour}" title="{name}" aria-label="{name}">'
        "</button>"
        for colour, name in inks
    ]
    template = (
        f'<div class="sketch"><div class="paper" style="color:{ink}">'
        f'<canvas width="{width}" height="{height}" aria-label="Sheet to draw on"></canvas></div>'
        f'<div class="tools">{"".join(buttons)}<button type="button" class="undo">Undo</button>'
        '<button type="button" class="clear">Clear</button></div></div>'
    )
    brush = max(0.09, 1.3 / max(codec.image_size)) * max(height, width)
    script = Path(__file__).with_name("sketch.js").read_text(encoding="utf-8")
    given = {"paper": background, "brush": brush, "apply_default_css": False, "elem_id": "sheet"}
    return gr.HTML("", html_template=template, js_on_load=script, **given)


def entry_colours(codec) -> np.ndarray:
    """The mean colour of each codebook entry; without colours a hue by number. uint8, shape (entries, 3)."""
    if not codec.can_decode:
        hues = [colorsys.hls_to_rgb(i * 0.618034 % 1, 0.6, 0.5) for i in range(codec.codebook_size)]
        return np.rint(np.array(hues) * 255).astype(np.uint8)
    means = codec.entry_pixels().mean(axis=(1, 2))
    return np.rint(np.broadcast_to(means, (len(means), 3))).astype(np.uint8)


def heat_colours(bits: Sequence[float], most: float) -> np.ndarray:
    """Colours from expected (0 bits) to surprising (`most` bits and above); uint8, shape (tokens, 3)."""
    places = np.clip(np.array(bits) / most, 0, 1) * (len(HEAT) - 1)
    columns = [np.interp(places, range(len(HEAT)), HEAT[:, channel]) for channel in range(3)]
    return np.rint(np.stack(columns, axis=1)).astype(np.uint8)


def grid(texts: Sequence[str], colours: np.ndarray, hints: Sequence[str], num_columns: int) -> str:
    """Cells with a colour, a text and a hint (shown under the mouse), as an SVG that scrolls where it is too wide."""
    longest = max(map(len, texts), default=1)
    size = min(0.5, 1.2 / longest)  # of a letter, in cells
    cells = []
    for i, (text, colour, hint) in enumerate(zip(texts, colours, hints, strict=True)):
        x, y = i % num_columns, i // num_columns
        ink = "#111" if colour @ (0.299, 0.587, 0.114) > 140 else "#fff"
        cells.append(
            f'<g><title>{escape(hint)}</title><rect x="{x}" y="{y}" width="1.02" height="1.02" '
            f'fill="rgb({colour[0]},{colour[1]},{colour[2]})"/><text x="{x + 0.5}" y="{y + 0.5}" fill="{ink}" '
            f'font-size="{size:.2f}">{escape(text)}</text></g>'
        )
    box = f"0 0 {num_columns} {-(-len(texts) // num_columns)}"
    is_wide = num_columns > WIDE
    style = f"min-width:{num_columns * SMALLEST_CELL}px" + f";max-width:{num_columns * LARGEST_CELL}px" * is_wide
    return f'<div class="grid{" wide" * is_wide}"><svg viewBox="{box}" style="{style}">{"".join(cells)}</svg></div>'


def pixels(image: Image.Image, num_hidden: int = 0, num_rows: int = 1) -> str:
    """An image with sharp pixels; stripes hide the last `num_hidden` of `num_rows` rows."""
    height = 100 * num_hidden / num_rows
    stripes = f'<div class="hidden-rows" style="height:{height:.4f}%"></div>' if num_hidden else ""
    return f'<div class="pixels"><img src="{data_url(image)}" alt="">{stripes}</div>'


def figures(*pairs: tuple[str, str]) -> str:
    """Pictures with captions, side by side where there is room."""
    parts = [f"<figure>{picture}<figcaption>{caption}</figcaption></figure>" for caption, picture in pairs]
    return f'<div class="figures">{"".join(parts)}</div>'
