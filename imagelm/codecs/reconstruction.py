"""How much of an image a codec keeps, in numbers and drawn.

One idea: no model can bring back what the codebook lost, so the loss is measured on held-out images and shown.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from skimage.metrics import structural_similarity

from imagelm.remote_code.codec_imagelm import Codec
from imagelm.utils.image_grid import image_grid, save_png

CODEBOOK_IMAGE, RECONSTRUCTION_IMAGE = "codebook.png", "reconstructions.png"
MAX_SSIM_WINDOW = 7  # scikit-image's own
NUM_SHOWN = 10
ENTRY_CELL = 24  # pixels an entry is enlarged to


def measure_reconstruction(images: np.ndarray, restored: np.ndarray) -> dict:
    """Mean squared error over all values, its peak signal-to-noise ratio, and the mean structural similarity.

    PSNR = 10 log10(255² / MSE) in dB, None where nothing was lost. SSIM after Wang et al. (2004), by scikit-image, in a
    window of 7×7 pixels (smaller where an image is), None for sides below 3.

    Args:
        images: uint8, shape (images, height, width, channels).
        restored: The same, encoded and decoded.
    """
    error = float(np.mean((images.astype(np.float64) - restored) ** 2))
    side = min(MAX_SSIM_WINDOW, *images.shape[1:3])
    window = side - 1 + side % 2
    ssim = None
    if window >= 3:
        pairs = zip(images, restored, strict=True)
        ssim = float(np.mean([structural_similarity(a, b, win_size=window, channel_axis=2) for a, b in pairs]))
    return {
        "num_images": len(images),
        "mse": error,
        "psnr": 10 * math.log10(255**2 / error) if error else None,
        "ssim": ssim,
    }


def draw_codec(codec: Codec, images: np.ndarray, restored: np.ndarray, folder: Path) -> None:
    """Draws the codebook, and images above their reconstructions, as PNG files."""
    shown = np.unique(np.linspace(0, len(images) - 1, NUM_SHOWN).astype(int))  # of all classes, in a folder's order
    images, restored = images[shown], restored[shown]
    captions = ["original"] * len(images) + ["restored"] * len(images)
    save_png(image_grid([*images, *restored], len(images), captions=captions), folder / RECONSTRUCTION_IMAGE)
    entries = list(codec.entry_pixels())
    save_png(image_grid(entries, math.ceil(math.sqrt(len(entries) * 2)), cell=ENTRY_CELL), folder / CODEBOOK_IMAGE)
