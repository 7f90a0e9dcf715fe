"""The interval that is shown with every accuracy; it needs no plotting library."""

from __future__ import annotations

from scipy.stats import binomtest


def accuracy_interval(accuracy: float, num_rows: int) -> list[float]:
    """95 % interval of an accuracy over `num_rows` independent rows (Wilson's score interval)."""
    interval = binomtest(round(accuracy * num_rows), num_rows).proportion_ci(method="wilson")
    return [float(interval.low), float(interval.high)]
