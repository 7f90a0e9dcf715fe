"""Accuracy at the CLS slot: the arg max over the class tokens alone, at the position after <CLS>, against
the row's label."""

import datasets
import evaluate
import numpy as np

INPUTS = """
Args:
    predictions: Predicted class of each row, from 0.
    references: True class of each row, from 0.
Returns:
    cls_accuracy: float, 0 to 1.
Examples:
    >>> metric = evaluate.load("imagelm/metrics/cls_accuracy")
    >>> metric.compute(predictions=[3, 1, 0, 2], references=[3, 1, 0, 0])
    {'cls_accuracy': 0.75}
"""


class ClsAccuracy(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"cls_accuracy": float(np.mean(np.array(predictions) == np.array(references)))}
