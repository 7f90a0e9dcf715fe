"""What a model must beat: the majority class, and a bag of tokens.

One idea: both are fitted on the training rows and answer the other rows before the model is trained, so that every
figure has something to be compared with, row by row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
from datasets import Dataset
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from imagelm.evaluation.interval import paired_comparison
from imagelm.tokens.grammar import Grammar


def baseline_hits(train: Dataset, splits: dict[str, Dataset], grammar: Grammar) -> dict[str, dict[str, np.ndarray]]:
    """Which rows of other splits both baselines get right.

    If rows name their source image, the regression is fitted on all rows and again on the first row of each source, and
    the better one counts: variants help a model that sees positions, but blur a bag (on digits shifted by a pixel it
    falls from 0.62 to 0.35), and a weakened baseline would flatter the model.

    Returns:
        For each split:
        `majority`: always the most frequent class of the training rows; bool, shape (rows,).
        `bag_of_tokens`: logistic regression on how often each codebook token occurs in the image; bool, shape (rows,).
    """
    train_counts, train_labels = bag_of_tokens(train, grammar)
    majority = np.bincount(train_labels).argmax()
    regressions = [_fit_regression(train_counts, train_labels)]
    if "source" in train.column_names:
        # A row without a source is its own source.
        sources = [f"row {i}" if source is None else f"source {source}" for i, source in enumerate(train["source"])]
        _, first = np.unique(sources, return_index=True)
        if len(first) < len(train_labels):
            regressions.append(_fit_regression(train_counts[first], train_labels[first]))
    hits = {}
    for name, rows in splits.items():
        counts, labels = bag_of_tokens(rows, grammar)
        bags = [regression.predict(counts) == labels for regression in regressions]
        hits[name] = {"majority": labels == majority, "bag_of_tokens": max(bags, key=np.mean)}
    return hits


def baseline_figures(hits: dict[str, np.ndarray], correct: np.ndarray) -> dict[str, Any]:
    """The accuracy of each baseline, and the model's comparison with it.

    Args:
        hits: Of `baseline_hits`, for one split.
        correct: Which of the same rows the model gets right, in the same order; bool, shape (rows,).
    """
    figures: dict[str, Any] = {f"{name}_accuracy": float(right.mean()) for name, right in hits.items()}
    return figures | {f"versus_{name}": paired_comparison(correct, right) for name, right in hits.items()}


def _fit_regression(counts: scipy.sparse.csr_array, labels: np.ndarray) -> Pipeline:
    one_class = len(np.unique(labels)) < 2  # which a regression refuses
    model = DummyClassifier() if one_class else LogisticRegression(max_iter=1_000)
    return make_pipeline(MaxAbsScaler(), model).fit(counts, labels)


def bag_of_tokens(dataset: Dataset, grammar: Grammar) -> tuple[scipy.sparse.csr_array, np.ndarray]:
    """How often each codebook token occurs in each image (rows, codebook_size), and the labels (rows,)."""
    blocks, labels = [], []
    for batch in dataset.with_format("arrow").iter(10_000):
        rows = batch["input_ids"].combine_chunks()
        entries = grammar.entry_of_id[rows.flatten().to_numpy()]
        lengths = np.diff(rows.offsets.to_numpy())
        row_index = np.repeat(np.arange(len(rows)), lengths)[entries >= 0]
        entries = entries[entries >= 0]
        # Entries at the same place are summed, which gives the count.
        shape = (len(rows), grammar.codebook_size)
        blocks.append(scipy.sparse.coo_array((np.ones(len(entries)), (row_index, entries)), shape=shape).tocsr())
        labels.append(batch["label"].to_numpy())
    return scipy.sparse.vstack(blocks, format="csr"), np.concatenate(labels)
