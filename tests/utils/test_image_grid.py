"""Grids of images: each pixel enlarged by a whole factor, and what is unknown covered."""

from __future__ import annotations

import numpy as np

from imagelm.utils.image_grid import hide_unknown, image_grid


def test_a_grid_shows_every_pixel_enlarged_by_a_whole_factor():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (8, 8, 1), dtype=np.uint8), rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)]
    grid = image_grid(images, 2, titles=["a", "b"], captions=["1", "2"])
    assert (grid.dtype, grid.shape[2]) == (np.uint8, 3)
    for image in images:
        large = np.broadcast_to(image, (8, 8, 3)).repeat(12, 0).repeat(12, 1)
        windows = np.lib.stride_tricks.sliding_window_view(grid, large.shape)[:, :, 0]
        first = np.argwhere((windows[:, :, ::12, ::12] == large[::12, ::12]).all((2, 3, 4)))
        assert any((windows[top, left] == large).all() for top, left in first)
    assert image_grid(images * 3, 2).shape[0] > 3 * 96


def test_what_is_not_known_is_covered_and_the_rest_is_not():
    image = np.full((8, 8, 1), 130, dtype=np.uint8)
    shown = hide_unknown(image, 6, (4, 4))  # a row and a half of 2×2 patches
    assert shown.shape == (96, 96, 3)
    known = (shown == 130).all(-1)
    expected = np.zeros((4, 4), dtype=bool)
    expected.flat[:6] = True
    assert (known == expected.repeat(24, 0).repeat(24, 1)).all()
