"""Correct next-token predictions (arg max over the whole vocabulary) / scored tokens, over all rows."""

import datasets
import evaluate
import numpy as np

from .figure import share_of

INPUTS = """
Args:
    num_correct: Correctly predicted tokens of each row.
    num_tokens: Scored tokens of each row.
Returns:
    next_token_accuracy: float, 0 to 1; NaN where no token is scored.
Examples:
    >>> metric = evaluate.load("imagelm/metrics/next_token_accuracy")
    >>> metric.compute(num_correct=[1, 2], num_tokens=[2, 4])
    {'next_token_accuracy': 0.5}
"""


class NextTokenAccuracy(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"num_correct": datasets.Value("int64"), "num_tokens": datasets.Value("int64")})
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, num_correct: list[int], num_tokens: list[int]) -> dict[str, float]:
        return {"next_token_accuracy": share_of(np.sum(num_correct), np.sum(num_tokens))}
