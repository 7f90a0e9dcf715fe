"""The formula, in a file of its own: training needs it, but not `evaluate`, whose import takes a second."""

import numpy as np


def perplexity_of(nll: float, num_tokens: float) -> float:
    """The perplexity of all rows together."""
    return float(np.exp(nll / num_tokens)) if num_tokens else float("nan")
