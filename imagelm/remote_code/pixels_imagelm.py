"""An image of any mode and size → the pixels that a codec takes.

One idea: whatever Pillow reads becomes 8-bit grey or RGB, upright, on an opaque background, and of one size; what has
no known white is refused. Published with the model, so it imports only numpy and Pillow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 1 << 24  # of an image: every one becomes as large, so that a stranger's codec could fill the memory
FIT_MODES = ("resize", "pad")
MAX_VALUE = 65535  # of 16-bit pixels, where a codec records no smaller range
DRAWN_BY_PROGRAMS = ("EPS", "WMF")  # Pillow starts ghostscript or the system's own drawing


def image_formats() -> list[str]:
    """The formats that images are read in: all of Pillow's except those that start a program to draw the image."""
    Image.init()
    return [name for name in Image.ID if name not in DRAWN_BY_PROGRAMS]


def image_from_array(array: np.ndarray) -> Image.Image:
    """An image of pixels of shape (height, width[, channels]): uint8, uint16 in grey, or floats from 0 to 1.

    Raises:
        ValueError: The type or range is another one, whose white isn't known.
    """
    array = array[..., 0] if array.shape[2:] == (1,) else array
    if array.dtype.kind == "f":
        if not (array.size and array.min() >= 0 and array.max() <= 1):
            raise ValueError("floats outside 0 to 1 have no known range; convert the image to 8 or 16 bits")
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype not in (bool, np.uint8) and (array.dtype != np.uint16 or array.ndim != 2):
        raise ValueError(
            f"pixels are {array.dtype} {array.shape}, expected uint8, uint16 in grey, or floats from 0 to 1"
        )
    return Image.fromarray(array)


def peak(image: Image.Image) -> int:
    """The largest value of an image with 16-bit pixels; 0 for others."""
    return int(np.asarray(image).max()) if image.mode.startswith("I;16") else 0


def range_problem(peaks: Sequence[int], max_value: int) -> str | None:
    """What is wrong with images whose 16-bit pixels don't fit a codec's `max_value`; None if nothing is.

    `peaks` holds `peak` of each image.
    """
    peaks = [value for value in peaks if value]
    equal = "different images may become equal"
    if above := sum(value > max_value for value in peaks):
        return (
            f"{above} of {len(peaks)} images with 16-bit pixels have values above {max_value}, which is white for this "
            f"codec: they are cut off, and {equal}"
        )
    if peaks and max(peaks) < (max_value + 1) // 4:
        return (
            f"{len(peaks)} images with 16-bit pixels use values up to {max(peaks)}, but white is {max_value} for this "
            f"codec: they are dark, and {equal}; multiply their pixels by {max_value // max(peaks)} if they use fewer "
            "bits than the images that the codec was fitted on"
        )
    return None


def flatten(image: Image.Image, background: int, max_value: int = MAX_VALUE) -> Image.Image:
    """An image of any mode as 8-bit L or RGB, upright, on an opaque background; a ValueError for 32-bit modes.

    16-bit pixels are divided by `max_value`; larger ones are white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # Pillow's own conversion would cut off everything above 255.
        return Image.fromarray(np.rint(np.minimum(np.asarray(image) / max_value, 1) * 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels (mode {image.mode}) have no known range; convert the image to 8 or 16 bits")
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, (background, background, background, 255))
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def read_pixels(
    image: Image.Image,
    image_size: tuple[int, int],
    channels: int,
    fit: str,
    background: int,
    max_value: int = MAX_VALUE,
) -> np.ndarray:
    """An image of any mode and size in a codec's format (see `Codec`); uint8, shape (height, width, channels).

    `fit` "resize" may change the aspect ratio; "pad" keeps it: larger images are shrunk, and all are centred on the
    background.

    Raises:
        ValueError: The pixels have no known range (32-bit modes).
    """
    image = flatten(image, background, max_value).convert("L" if channels == 1 else "RGB")
    height, width = image_size
    if image.size != (width, height) and fit == "resize":
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    elif image.size != (width, height):
        scale = min(1, width / image.width, height / image.height)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        canvas = Image.new(image.mode, (width, height), background if channels == 1 else (background,) * 3)
        place = ((width - size[0]) // 2, (height - size[1]) // 2)
        canvas.paste(image if size == image.size else image.resize(size, Image.Resampling.BICUBIC), place)
        image = canvas
    return np.asarray(image).reshape(height, width, channels)


def check_format(image_size: tuple[int, int], channels: int, fit: str, background: int, max_value: int) -> None:
    """Raises a ValueError if `read_pixels` can't bring an image to this format; takes its arguments."""
    if image_size[0] * image_size[1] > MAX_PIXELS:
        raise ValueError(f"images of {image_size} pixels, expected at most {MAX_PIXELS}")
    if channels not in (1, 3) or fit not in FIT_MODES:
        raise ValueError(f"{channels} channels, fit {fit!r}; expected 1 or 3, and {FIT_MODES}")
    if type(background) is not int or not 0 <= background <= 255:
        raise ValueError(f"background is {background!r}, expected 0 to 255")
    if type(max_value) is not int or not 255 <= max_value <= MAX_VALUE:
        raise ValueError(f"max_value is {max_value!r}, expected 255 to {MAX_VALUE}")
