"""What a model must beat: the majority class, and a bag of tokens.

One idea: both are fitted on the training rows and answer the test rows before the model is trained, so that every
figure has something to be compared with, row by row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from imagelm.evaluation.interval import paired_comparison
from imagelm.tokens.grammar import Grammar


def baseline_hits(train: Dataset, test: Dataset, grammar: Grammar) -> dict[str, np.ndarray]:
    """Which test rows both baselines get right.

    If rows name their source image, the regression is fitted on all rows and again on the first row of each source, and
    the better one counts: variants help a model that sees positions, but blur a bag (on digits shifted by a pixel it
    falls from 0.62 to 0.35), and a weakened baseline would flatter the model.

    Returns:
        `majority`: always the most frequent class of the training rows; bool, shape (rows,).
        `bag_of_tokens`: logistic regression on how often each codebook token occurs in the image; bool, shape (rows,).
    """
    train_counts, train_labels = bag_of_tokens(train, grammar)
    test_counts, test_labels = bag_of_tokens(test, grammar)
    majority = np.bincount(train_labels).argmax()
    bags = [_regression_hits(train_counts, train_labels, test_counts, test_labels)]
    if "source" in train.column_names:
        # A row without a source is its own source.
        sources = [f"row {i}" if source is None else f"source {source}" for i, source in enumerate(train["source"])]
        _, first = np.unique(sources, return_index=True)
        if len(first) < len(train_labels):
            bags.append(_regression_hits(train_counts[first], train_labels[first], test_counts, test_labels))
    return {"majority": test_labels == majority, "bag_of_tokens": max(bags, key=np.mean)}


def baseline_figures(hits: dict[str, np.ndarray], correct: np.ndarray) -> dict[str, Any]:
    """The accuracy of each baseline, and the model's comparison with it.

    Args:
        hits: Of `baseline_hits`.
        correct: Which of the same rows the model gets right, in the same order; bool, shape (rows,).
    """
    figures: dict[str, Any] = {f"{name}_accuracy": float(right.mean()) for name, right in hits.items()}
    return figures | {f"versus_{name}": paired_comparison(correct, right) for name, right in hits.items()}


def _regression_hits(
    train_counts: scipy.sparse.csr_array, train_labels: np.ndarray, counts: scipy.sparse.csr_array, labels: np.ndarray
) -> np.ndarray:
    if len(np.unique(train_labels)) < 2:
        return labels == train_labels[0]
    regression = make_pipeline(MaxAbsScaler(), LogisticRegression(max_iter=1_000))
    return regression.fit(train_counts, train_labels).predict(counts) == labels


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
