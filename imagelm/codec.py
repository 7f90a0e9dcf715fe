"""Images ↔ codebook entries.

One idea: a codebook is a table of centroids; an image is the list of the centroids nearest to its patches, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans


@dataclass(frozen=True)
class PatchCodebook:
    """A k-means codebook over square grey patches.

    Attributes:
        centroids: float32, shape (codebook_size, patch_size²).
        patch_size: Side of a patch in pixels.
    """

    centroids: np.ndarray
    patch_size: int

    @classmethod
    def fit(cls, images: np.ndarray, patch_size: int, codebook_size: int, seed: int) -> PatchCodebook:
        """Fits the centroids by k-means (scikit-learn). Give training images only.

        Args:
            images: Shape (images, height, width), both sides divisible by `patch_size`.
            patch_size: Side of a patch in pixels.
            codebook_size: Number of centroids.
            seed: Seed of the k-means++ start.
        """
        patches = _patches(images, patch_size).reshape(-1, patch_size**2)
        kmeans = KMeans(codebook_size, n_init=1, random_state=seed).fit(patches)
        return cls(kmeans.cluster_centers_.astype(np.float32), patch_size)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """The nearest centroid of each patch, row by row.

        Args:
            images: Shape (images, height, width).

        Returns:
            int64, shape (images, patches an image).
        """
        patches = _patches(images, self.patch_size)
        # |p − c|² = |p|² − 2 p·c + |c|²; |p|² is the same for all centroids.
        distances = (self.centroids**2).sum(1) - 2 * patches @ self.centroids.T
        return distances.argmin(-1)


def _patches(images: np.ndarray, size: int) -> np.ndarray:
    """float32, shape (images, patches an image, size²)."""
    count, height, width = images.shape
    grid = images.astype(np.float32).reshape(count, height // size, size, width // size, size)
    return grid.transpose(0, 1, 3, 2, 4).reshape(count, -1, size * size)
