"""Counts of (true class, predicted class), and for each class the share of its rows predicted right."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import confusion_matrix

from .figure import accuracy_per_class

INPUTS = """
Args:
    predictions: Predicted class of each row, from 0.
    references: True class of each row, from 0.
    num_classes: Number of classes.
Returns:
    cls_confusion_matrix: Rows are true classes, columns predicted ones.
    cls_per_class_accuracy: One a class; None for a class without rows.
Examples:
    >>> metric = evaluate.load("imagelm/metrics/cls_confusion_matrix")
    >>> metric.compute(predictions=[0, 1, 1], references=[0, 0, 1], num_classes=2)
    {'cls_confusion_matrix': [[1, 1], [0, 1]], 'cls_per_class_accuracy': [0.5, 1.0]}
"""


class ClsConfusionMatrix(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description=__doc__, citation="", inputs_description=INPUTS, features=features)

    def _compute(self, predictions: list[int], references: list[int], num_classes: int) -> dict[str, list]:
        matrix = confusion_matrix(references, predictions, labels=np.arange(num_classes))
        return {"cls_confusion_matrix": matrix.tolist(), "cls_per_class_accuracy": accuracy_per_class(matrix)}
