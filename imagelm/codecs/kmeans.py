"""Training images → a codec: k-means over patches or pixels, or a learned autoencoder.

One idea: a codebook is fitted on a sample of the training images that fits into memory; encoding and decoding with it
are in `imagelm.remote_code.codec_imagelm`, which is published with the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning

from imagelm.remote_code.codec_imagelm import PatchCodec, UnifiedCodec
from imagelm.remote_code.vectors_imagelm import FEATURES, cut_patches, nearest, unified_features
from imagelm.utils.atomic_io import read_input
from imagelm.utils.errors import InputError

NUM_FIT_VECTORS = 200_000  # patches or pixels that k-means sees
KMEANS_BATCH = 8192


def fit_patch_codec(images: np.ndarray, patch_size: int, codebook_size: int, seed: int, **config: Any) -> PatchCodec:
    """A codebook of patches, by k-means (scikit-learn's `MiniBatchKMeans`, k-means++ start).

    The centroids are rounded to whole pixel values, and sorted from dark to bright; where rounding makes two of them
    equal, the patch that is farthest from every centroid takes the place of one.

    Args:
        images: Training images; uint8, shape (images, height, width, channels), sides divisible by `patch_size`.
        patch_size: Side of a patch in pixels.
        codebook_size: Number of centroids.
        seed: Of the sample and the start.
        config: Further entries of the codec's config, such as `fit`.

    Raises:
        InputError: The images have fewer different patches than `codebook_size`.
    """
    different, counts = np.unique(_sample_patches(images, patch_size, seed), axis=0, return_counts=True)
    check_codebook_size(codebook_size, len(different), f"different patches of {patch_size}×{patch_size} pixels")
    centroids = _kmeans(different.astype(np.float32), counts, codebook_size, seed)
    centroids = np.rint(centroids).clip(0, 255).astype(np.uint8)
    centroids = _fill_up(np.unique(centroids, axis=0), different, codebook_size)
    centroids = centroids[np.lexsort([*centroids.T, centroids.mean(1)])]
    return PatchCodec(_config(images, config) | {"patch_size": patch_size}, {"codebook": torch.from_numpy(centroids)})


def fit_unified_codec(
    images: np.ndarray,
    codebook_size: int,
    seed: int,
    features: Sequence[str],
    scaling: str,
    t: np.ndarray | None = None,
    **config: Any,
) -> UnifiedCodec:
    """A codebook of pixels by k-means over per-pixel features: the predecessor's idea.

    The default of `imagelm prepare` omits `t`, the number of the image's file: a new image has none, and a codebook
    with it spends its entries on distinguishing files. It omits `A`, which is constant in opaque images. And it
    standardizes (divides each feature by its standard deviation in the sample): in their own units gradients reach
    ±127 and coordinates the image's side, while colours end at 1, so that unscaled distances hardly depend on
    brightness.

    Args (the others as in `fit_patch_codec`):
        images: Training images; uint8, shape (images, height, width, channels).
        features: Which of `x, y, t, R, G, B, A, Gx, Gy`, in which order.
        scaling: "standardize" or "none".
        t: Numbers of the images, where `t` is among the features; shape (images,).

    Raises:
        InputError: The images have fewer different pixels than `codebook_size`.
    """
    chosen = np.random.default_rng([seed, 1]).permutation(len(images))
    chosen = np.sort(chosen[: max(1, 4 * NUM_FIT_VECTORS // images[0].size)])
    of_pixels = unified_features(torch.from_numpy(images[chosen]), list(features), None if t is None else t[chosen])
    vectors = of_pixels.flatten(0, 1).numpy()
    keep = np.random.default_rng([seed, 2]).permutation(len(vectors))[:NUM_FIT_VECTORS]
    vectors = vectors[np.sort(keep)]
    deviation = vectors.std(0) if scaling == "standardize" else np.ones(vectors.shape[1])
    scale = 1 / np.where(deviation > 0, deviation, 1)
    vectors, counts = np.unique(vectors, axis=0, return_counts=True)
    check_codebook_size(codebook_size, len(vectors), "different pixels")
    centroids = _kmeans(vectors * scale, counts, codebook_size, seed) / scale
    tensors = {"codebook": torch.from_numpy(centroids), "scale": torch.from_numpy(scale)}
    return UnifiedCodec(_config(images, config) | {"features": list(features)}, tensors)


def read_unified_codebook(file: str | Path, image_size: Sequence[int], channels: int, **config: Any) -> UnifiedCodec:
    """A unified codebook from a CSV of centroids: a header of feature names, then one line per centroid.

    A column `cluster_id` gives the entry's number; without it the lines are numbered in their order. The centroids are
    compared unscaled. `image_size` is height and width; `config` are further entries of the codec's config.

    Raises:
        InputError: The file can't be read or isn't such a table.
    """
    content = read_input(file, "--centroids")
    try:
        head, *lines = content.decode("utf-8-sig").splitlines() or [""]
        names = [name.strip() for name in head.split(",")]
        table = np.loadtxt(lines, delimiter=",", ndmin=2) if lines else np.empty((0, len(names)))
    except ValueError as error:
        raise InputError(f"--centroids {file} can't be read: {error}") from error
    features = [name for name in names if name != "cluster_id"]
    twice = len(set(names)) < len(names)
    if twice or not features or not set(features) <= set(FEATURES) or table.shape[1] != len(names) or not len(table):
        raise InputError(
            f"--centroids {file} has columns {', '.join(names)}; expected cluster_id and some of {FEATURES}"
        )
    if "cluster_id" in names:
        numbers = table[:, names.index("cluster_id")]
        if sorted(numbers) != list(range(len(table))):
            raise InputError(f"--centroids {file}: cluster_id isn't 0 to {len(table) - 1}, each once")
        table = table[np.argsort(numbers)]
    if not np.isfinite(table).all():
        raise InputError(f"--centroids {file} holds numbers that aren't finite")
    codebook = torch.from_numpy(np.ascontiguousarray(table[:, [names.index(name) for name in features]]))
    config |= {"image_size": list(image_size), "channels": channels, "features": features}
    return UnifiedCodec(config, {"codebook": codebook, "scale": torch.ones(len(features), dtype=torch.float64)})


def check_codebook_size(codebook_size: int, num_found: int, what: str) -> None:
    """Raises `InputError` if the training images have fewer of `what` than the codebook gets entries."""
    if num_found < codebook_size:
        raise InputError(
            f"the training images have {num_found} {what}, fewer than --codebook_size {codebook_size}; "
            "choose a smaller codebook"
        )


def _config(images: np.ndarray, config: dict[str, Any]) -> dict[str, Any]:
    return {"image_size": list(images.shape[1:3]), "channels": images.shape[3], **config}


def _sample_patches(images: np.ndarray, patch_size: int, seed: int) -> np.ndarray:
    """Up to `NUM_FIT_VECTORS` patches, the same number of each image."""
    rng = np.random.default_rng([seed, 1])
    per_image = (images.shape[1] // patch_size) * (images.shape[2] // patch_size)
    share = max(1, min(per_image, NUM_FIT_VECTORS // len(images)))
    chosen = np.sort(rng.permutation(len(images))[: NUM_FIT_VECTORS // share])
    parts = []
    for part in np.array_split(chosen, max(1, len(chosen) // 512)):
        vectors = cut_patches(torch.from_numpy(images[part]), patch_size).view(len(part), per_image, -1).numpy()
        taken = np.argsort(rng.random((len(part), per_image)), axis=1)[:, :share]
        parts.append(np.take_along_axis(vectors, taken[..., None], axis=1).reshape(len(part) * share, -1))
    return np.concatenate(parts)


def _kmeans(vectors: np.ndarray, counts: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Centroids of different vectors, weighted by their number of occurrences.

    With repeated vectors instead (62 % of MNIST's patches are blank), `MiniBatchKMeans` spends 200 of 500 centroids on
    copies of the most common patch, and the error is 1.5 times as large.
    """
    kmeans = MiniBatchKMeans(size, batch_size=KMEANS_BATCH, n_init=1, random_state=seed, reassignment_ratio=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal centroids, which the caller replaces
        return kmeans.fit(vectors, sample_weight=counts).cluster_centers_


def _fill_up(centroids: np.ndarray, different: np.ndarray, size: int) -> np.ndarray:
    """Adds patches, each time the one that is farthest from all centroids, until there are `size`."""
    candidates = torch.from_numpy(different).double() - 128
    table = torch.from_numpy(centroids).double() - 128
    distance = ((candidates - table[nearest(candidates, table)]) ** 2).sum(1)
    while len(table) < size:
        farthest = candidates[distance.argmax()]
        table = torch.cat([table, farthest[None]])
        distance = torch.minimum(distance, ((candidates - farthest) ** 2).sum(1))
    return (table + 128).byte().numpy()
