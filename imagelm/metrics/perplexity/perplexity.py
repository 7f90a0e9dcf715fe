"""PPL = exp(total negative log-likelihood / number of scored tokens) over all rows. Rows are weighted by
their tokens, so that neither batch size nor padding nor the number of processes changes the result."""

import datasets
import evaluate
import numpy as np

from .figure import perplexity_of

INPUTS = """
Args:
    nll: Summed negative log-likelihood of each row's scored tokens, in nats.
    num_tokens: Number of scored tokens of each row.
Returns:
    perplexity: float, at least 1; NaN where no token is scored.
Examples:
    >>> metric = evaluate.load("imagelm/metrics/perplexity")
    >>> round(metric.compute(nll=[1.0, 5.0], num_tokens=[1, 2])["perplexity"], 4)
    7.3891
"""


class Perplexity(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"nll": datasets.Value("float64"), "num_tokens": datasets.Value("int64")})
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, nll: list[float], num_tokens: list[int]) -> dict[str, float]:
        return {"perplexity": perplexity_of(np.sum(nll), np.sum(num_tokens))}
