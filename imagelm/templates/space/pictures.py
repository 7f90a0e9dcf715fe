"""Pictures that visitors draw or upload. On the page each is the data URL of a PNG."""

from __future__ import annotations

import base64
import io
from html import escape

import gradio as gr
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # none that Pillow starts a program for
MAX_PIXELS = 50_000_000  # a phone's camera has as many
PREFIX = "data:image/png;base64,"


class UserError(gr.Error):
    """A message on the page in one sentence, without a traceback in the log."""

    def __init__(self, message: str) -> None:
        super().__init__(escape(message, quote=False), duration=6, print_exception=False)  # gradio shows it as HTML


def open_picture(source: str | io.BytesIO, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """A file's picture; a UserError says what is wrong with others."""
    try:
        with Image.open(source, formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                found = f"{image.width:,} × {image.height:,} pixels"
                raise UserError(f"This picture has {found}; upload one of at most {MAX_PIXELS:,} pixels.")
            image.load()
            return image
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError("This file isn't a picture; upload a PNG, JPEG, WebP, GIF, BMP or TIFF.") from error
    except Image.DecompressionBombError as error:
        raise UserError(f"This picture is too large; upload one of at most {MAX_PIXELS:,} pixels.") from error
    except Exception as error:  # a decoder's own; Pillow has no common class for them
        raise UserError("This picture is damaged and can't be read; upload an intact copy.") from error


def picture_of(url: str | None) -> Image.Image:
    """The picture on the page."""
    if not url:
        raise UserError("Draw something or upload a picture first.")
    if not url.startswith(PREFIX):  # a request that doesn't come from the page
        raise UserError(f"A picture must begin with {PREFIX}.")
    try:
        content = base64.b64decode(url.removeprefix(PREFIX), validate=True)
    except ValueError as error:
        raise UserError("This picture isn't valid base64.") from error
    return open_picture(io.BytesIO(content), ("PNG",))


def data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return PREFIX + base64.b64encode(buffer.getvalue()).decode()


def negative(image: Image.Image) -> Image.Image:
    """Dark and bright exchanged."""
    return ImageOps.invert(image.convert("L" if image.mode in ("1", "L") else "RGB"))
