"""The interval that is shown with every accuracy, and the test against a baseline; both need no plotting library.

Every answer with an accuracy needs the interval, so it does without scipy.stats, whose import takes longer than the
answer; the test, at the end of a training, doesn't.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np

CONFIDENCE, SIGNIFICANCE = 0.95, 0.05
FIRST, RANDOM = "the first ones of the stream", "drawn at random"  # the rows that the bag of tokens is fitted on
BASELINES = {"versus_bag_of_tokens": "a bag of tokens", "versus_majority": "the majority class"}


def accuracy_interval(accuracy: float, num_rows: int) -> list[float]:
    """95 % interval of an accuracy over `num_rows` independent rows (Wilson's score interval)."""
    hits, z = round(accuracy * num_rows), NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    share, width = hits / num_rows, 2 * (num_rows + z**2)
    center = (2 * hits + z**2) / width
    delta = z / width * math.sqrt(4 * hits * (1 - share) + z**2)
    # At the ends these are the exact values, which rounding would miss.
    return [center - delta if hits else 0.0, center + delta if hits < num_rows else 1.0]


def paired_comparison(model: np.ndarray, baseline: np.ndarray) -> dict[str, Any]:
    """Exact two-sided sign test on the rows that only one of the two gets right; two intervals of the same rows would
    hide most differences.

    Args:
        model, baseline: Whether each gets a row right; bool, shape (rows,).

    Returns:
        `only_model`, `only_baseline`: numbers of such rows; `p_value`; `clearly_better`: whether the model is better
        and `p_value` is below `SIGNIFICANCE`.
    """
    from scipy.stats import binomtest

    only_model, only_baseline = int((model & ~baseline).sum()), int((baseline & ~model).sum())
    num_rows = only_model + only_baseline
    p_value = float(binomtest(only_model, num_rows).pvalue) if num_rows else 1.0
    better = only_model > only_baseline and p_value < SIGNIFICANCE
    return {"only_model": only_model, "only_baseline": only_baseline, "p_value": p_value, "clearly_better": better}


def fitted_in_words(results: dict[str, Any]) -> str:
    """Which training rows the bag of tokens of `eval_results.json` was fitted on, as a clause; empty if on all."""
    if (rows := results.get("bag_of_tokens_rows")) is None:
        return ""
    return f", fitted on {rows['fitted']:,} of {rows['of']:,} training rows, {rows['drawn']}"


def baseline_warning(results: dict[str, Any]) -> str | None:
    """Which baselines the model of `eval_results.json` is clearly worse than, or not clearly better than.

    None if there is none, or if an earlier version compared none.
    """
    verdicts: dict[str, list[str]] = {"clearly worse than": [], "not clearly better than": []}
    for name, test in [(name, results[key]) for key, name in BASELINES.items() if key in results]:
        worse = test["only_baseline"] > test["only_model"] and test["p_value"] < SIGNIFICANCE
        if not test["clearly_better"]:
            verdicts["clearly worse than" if worse else "not clearly better than"].append(
                f"{name} (of {results['eval_samples']} rows {test['only_model']} are right by the model only, "
                f"{test['only_baseline']} by the baseline only; exact sign test, p = {test['p_value']:.2g})"
            )
    parts = [f"{verdict} {' and '.join(names)}" for verdict, names in verdicts.items() if names]
    return f"the model is {', and '.join(parts)}" if parts else None
