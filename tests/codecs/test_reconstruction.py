"""What a codec loses, worked out by hand and by scikit-image, and how it is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import uniform_filter
from skimage.metrics import structural_similarity

from imagelm.codecs.reconstruction import draw_codec, measure_reconstruction
from tests.codecs.common import fitted
from tests.images import smooth_images


def test_error_and_noise_ratio_are_those_worked_out_by_hand():
    images = np.zeros((2, 3, 4, 1), dtype=np.uint8)
    restored = images.copy()
    restored[0, 0, 0], restored[1, 2, 3] = 6, 250
    # (6² + 250²) / 24 = 2605.67; 10 log10(65025 / 2605.67) = 13.97 dB
    found = measure_reconstruction(images, restored)
    assert found["num_images"] == 2
    assert found["mse"] == pytest.approx(62536 / 24)
    assert found["psnr"] == pytest.approx(13.9715, abs=1e-3)
    same = measure_reconstruction(images, images)
    assert (same["mse"], same["psnr"], same["ssim"]) == (0, None, 1)
    assert measure_reconstruction(images[:, :2], restored[:, :2])["ssim"] is None


def ssim_by_hand(a: np.ndarray, b: np.ndarray, window: int) -> float:
    """Wang et al. (2004) with a square window and sample (co)variances, over one channel."""
    a, b = a.astype(float), b.astype(float)
    count = window**2

    def mean(values: np.ndarray) -> np.ndarray:
        edge = window // 2
        return uniform_filter(values, window)[edge : -edge or None, edge : -edge or None]

    mean_a, mean_b = mean(a), mean(b)
    spread = [count / (count - 1) * (mean(x * y) - mean(x) * mean(y)) for x, y in ((a, a), (b, b), (a, b))]
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * mean_a * mean_b + c1) * (2 * spread[2] + c2)
    below = (mean_a**2 + mean_b**2 + c1) * (spread[0] + spread[1] + c2)
    return float((above / below).mean())


@pytest.mark.parametrize(
    ("size", "channels", "window"), [((12, 9), 1, 7), ((9, 12), 3, 7), ((6, 5), 1, 5), ((4, 9), 3, 3)]
)
def test_similarity_is_scikit_images_and_that_worked_out_by_hand(size, channels, window):
    images = smooth_images(3, size, channels)
    restored = (images // 32 * 32).astype(np.uint8)
    found = measure_reconstruction(images, restored)["ssim"]
    pairs = [(a[..., i], b[..., i]) for a, b in zip(images, restored, strict=True) for i in range(channels)]
    assert found == pytest.approx(np.mean([ssim_by_hand(a, b, window) for a, b in pairs]))
    assert found == pytest.approx(np.mean([structural_similarity(a, b, win_size=window) for a, b in pairs]))


@pytest.mark.parametrize("kind", ["patch", "unified", "learned"])
def test_codebook_and_reconstructions_are_drawn_as_png_files_that_open(kind, tmp_path):
    codec, images = fitted(kind, 3), smooth_images(12, (8, 12), 3)
    draw_codec(codec, images, codec.decode(codec.encode(images)), tmp_path)
    for name in ("codebook.png", "reconstructions.png"):
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG"
            image.load()
            assert len(np.unique(np.asarray(image))) > 2
