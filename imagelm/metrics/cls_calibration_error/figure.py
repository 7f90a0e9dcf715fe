"""The formula, in a file of its own: training needs it, but not `evaluate`, whose import takes a second."""

import numpy as np

NUM_BINS = 15


def calibration_gaps(correct: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Sum of accuracy - confidence over the rows of each bin; shape (NUM_BINS,)."""
    # Bins are open below and closed above, as in the paper.
    bins = np.clip(np.ceil(confidence * NUM_BINS).astype(int) - 1, 0, NUM_BINS - 1)
    return np.bincount(bins, weights=correct - confidence, minlength=NUM_BINS)
