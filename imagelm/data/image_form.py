"""The one form that all images of a dataset have: size, channels, and how pictures get there.

One idea: the training pictures alone decide it; what it does to pictures of another form is said.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from imagelm.data.arguments import PrepareArguments, parse_size
from imagelm.data.image_scan import ImageScan
from imagelm.data.splits import TRAIN
from imagelm.remote_code.codec_imagelm import Codec
from imagelm.utils.errors import InputError

MAX_TOKENS = 1 << 16
MAX_PIXELS = 1 << 26


def choose_image_format(
    about: PrepareArguments, codec: Codec | None, found: ImageScan, sides: np.ndarray
) -> tuple[dict, list[str]]:
    """What all images become.

    Args:
        about: What the user asked for.
        codec: A codec that is there already; its form is taken.
        found: All pictures.
        sides: On which side of the split each stands; shape (pictures,).

    Returns:
        `image_size`, `channels`, `fit` and `background` as in a codec's config; and what that does to pictures.

    Raises:
        InputError: The size that was asked for can't be cut into patches.
    """
    notes: list[str] = []
    if codec:
        form = {name: codec.config[name] for name in ("image_size", "channels", "fit", "background")}
    else:
        training = sides == TRAIN
        sizes = Counter(map(tuple, found.sizes[training].tolist()))
        asked = parse_size(about.image_size)
        height, width = asked or max(sizes, key=lambda size: (sizes[size], size))
        size = _divisible(height, width, about, asked is not None, notes)
        _check_not_too_large(size, about)
        coloured = int(found.coloured[training].sum())
        channels = {"grey": 1, "rgb": 3, "auto": 3 if coloured else 1}[about.channels]
        if about.channels == "auto" and 0 < coloured < training.sum() / 2:
            notes.append(
                f"{coloured} of {training.sum()} training pictures are coloured, so all are read as RGB; "
                "--channels grey makes them grey"
            )
        form = {"image_size": size, "channels": channels, "fit": about.fit, "background": about.background}
    notes += notes_on_form(form, found.sizes[found.readable], found.num_animated)
    if form["channels"] == 1 and (coloured := int(found.coloured.sum())):
        notes.append(f"{coloured} coloured pictures become grey")
    return form, notes


def notes_on_form(form: dict, sizes: np.ndarray, num_animated: int) -> list[str]:
    """What becomes of pictures of another size, and of several frames.

    Args:
        form: `image_size` and `fit`, as in a codec's config.
        sizes: Height and width of each picture; shape (pictures, 2).
        num_animated: Pictures of several frames.
    """
    (height, width), notes = form["image_size"], []
    if others := int((sizes != (height, width)).any(1).sum()):
        done = "resized" if form["fit"] == "resize" else "padded (larger ones shrunk first)"
        notes.append(f"{others} of {len(sizes)} pictures aren't {height}×{width} pixels and are {done}")
    if num_animated:
        notes.append(f"{num_animated} pictures have several frames; the first one is taken")
    return notes


def _divisible(height: int, width: int, about: PrepareArguments, asked: bool, notes: list[str]) -> list[int]:
    """The nearest size that can be cut into patches; with padding the next larger one, so that nothing is lost."""
    size = 1 if about.codebook == "unified" else about.patch_size
    parts = [side / size for side in (height, width)]
    rounded = [max(1, -int(-part // 1) if about.fit == "pad" else round(part)) * size for part in parts]
    if rounded != [height, width]:
        wrong = f"{height}×{width} pixels can't be cut into patches of {size}×{size}"
        if asked:
            raise InputError(f"--image_size: {wrong}; give {rounded[0]}x{rounded[1]}, or another --patch_size")
        notes.append(f"{wrong}: images are made {rounded[0]}×{rounded[1]}")
    return rounded


def _check_not_too_large(size: list[int], about: PrepareArguments) -> None:
    """Refuses what would fill the memory, or make rows that no transformer is trained on, before it's tried."""
    pixels, side = size[0] * size[1], 1 if about.codebook == "unified" else about.patch_size
    if pixels > MAX_PIXELS or pixels // side**2 > MAX_TOKENS:
        raise InputError(
            f"an image of {size[0]}×{size[1]} pixels would take {pixels // side**2:,} tokens; at most {MAX_TOKENS:,} "
            f"tokens and {MAX_PIXELS:,} pixels are possible, and a few hundred tokens are usual; "
            "give a smaller --image_size" + ("" if about.codebook == "unified" else ", or larger patches")
        )
