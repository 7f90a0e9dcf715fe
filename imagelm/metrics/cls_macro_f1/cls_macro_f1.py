"""Unweighted mean of the F1 scores of the classes that occur among references or predictions
(scikit-learn's f1_score with average="macro"): small classes count as much as large ones."""

import datasets
import evaluate
from sklearn.metrics import confusion_matrix

from .figure import macro_f1

INPUTS = """
Args:
    predictions: Predicted class of each row, from 0.
    references: True class of each row, from 0.
Returns:
    cls_macro_f1: float, 0 to 1.
Examples:
    >>> metric = evaluate.load("imagelm/metrics/cls_macro_f1")
    >>> round(metric.compute(predictions=[0, 0, 1, 1], references=[0, 0, 0, 1])["cls_macro_f1"], 4)
    0.7333
"""


class ClsMacroF1(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"cls_macro_f1": macro_f1(confusion_matrix(references, predictions))}
