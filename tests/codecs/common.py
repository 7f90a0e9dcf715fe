"""Codecs and patches made by hand, or fitted on a few images."""

from __future__ import annotations

import numpy as np
import torch

from imagelm.codecs.kmeans import fit_patch_codec, fit_unified_codec
from imagelm.remote_code.codec_imagelm import Codec, LearnedCodec, PatchCodec
from tests.images import smooth_images

FEATURES = ("x", "y", "R", "G", "B", "Gx", "Gy")  # the default of prepare


def patches_by_hand(images: np.ndarray, size: int) -> np.ndarray:
    """Patch after patch, row by row, each flattened; int64, shape (images × patches, size² × channels)."""
    _, height, width, _ = images.shape
    return np.array(
        [
            image[top : top + size, left : left + size].reshape(-1)
            for image in images.astype(np.int64)
            for top in range(0, height, size)
            for left in range(0, width, size)
        ]
    )


def nearest_by_hand(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The first of the entries with the smallest squared distance."""
    return np.array([((centroids - vector) ** 2).sum(1).argmin() for vector in vectors])


def patch_codec(codebook: np.ndarray, size: int, image_size: tuple[int, int], channels: int) -> PatchCodec:
    config = {"image_size": list(image_size), "channels": channels, "patch_size": size}
    return PatchCodec(config, {"codebook": torch.from_numpy(codebook.astype(np.uint8))})


def different_entries(count: int, values: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.unique(rng.integers(0, 256, (3 * count, values)), axis=0)[rng.permutation(count)]


def fitted(kind: str, channels: int, seed: int = 0) -> Codec:
    images = smooth_images(12, (8, 12), channels)
    if kind == "patch":
        return fit_patch_codec(images, 2, 12, seed)
    if kind == "unified":
        return fit_unified_codec(images, 12, seed, FEATURES, "standardize")
    return fit_learned(images, 4, 8, seed, steps=4)


def fit_learned(*arguments, **options) -> LearnedCodec:
    """A learned codec; its library, which takes seconds to import, is imported only where it is used."""
    from imagelm.codecs.vq_autoencoder import fit_learned_codec

    return fit_learned_codec(*arguments, **options)
