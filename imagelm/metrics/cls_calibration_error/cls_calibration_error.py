"""Mean over rows of |accuracy − confidence| of the row's bin, with 15 bins of equal width over the
confidence (the largest class probability, of a softmax over the class tokens alone)."""

import datasets
import evaluate
import numpy as np

from .figure import calibration_gaps

CITATION = """Guo, Pleiss, Sun and Weinberger: On Calibration of Modern Neural Networks. ICML 2017."""

INPUTS = """
Args:
    predictions: Predicted class of each row, from 0.
    references: True class of each row, from 0.
    confidences: Probability of the predicted class of each row.
Returns:
    cls_calibration_error: float, 0 to 1; 0 is best.
Examples:
    >>> metric = evaluate.load("imagelm/metrics/cls_calibration_error")
    >>> result = metric.compute(predictions=[1, 1], references=[1, 0], confidences=[0.9, 0.9])
    >>> round(result["cls_calibration_error"], 4)
    0.4
"""


class ClsCalibrationError(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        classes = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        features = datasets.Features({**classes, "confidences": datasets.Value("float64")})
        return evaluate.MetricInfo(description=__doc__, citation=CITATION, inputs_description=INPUTS, features=features)

    def _compute(self, predictions: list[int], references: list[int], confidences: list[float]) -> dict[str, float]:
        correct = np.array(predictions) == np.array(references)
        gaps = calibration_gaps(correct, np.array(confidences))
        return {"cls_calibration_error": float(np.abs(gaps).sum() / len(correct))}
