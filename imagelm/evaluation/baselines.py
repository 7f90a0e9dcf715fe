"""What a model must beat: the majority class, and a bag of tokens.

One idea: both are fitted on the training rows and answer the same rows as the model, so that every figure has something
to be compared with, row by row. Their memory and time have a bound, whatever the number of rows. scikit-learn and
scipy.sparse are imported where they are used, as training starts without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from numpy.typing import ArrayLike

from imagelm.evaluation.interval import FIRST, RANDOM, paired_comparison
from imagelm.tokens.grammar import Grammar

if TYPE_CHECKING:
    import scipy.sparse
    from sklearn.pipeline import Pipeline

MAX_FITTED = 100_000  # rows of the regression, which takes 2 KB each, and hours for a million
BLOCK_ROWS = 10_000


def baseline_hits(
    train: Dataset, splits: dict[str, Dataset], grammar: Grammar, class_counts: ArrayLike | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """Which rows of other splits both baselines get right.

    The regression is fitted on `fitted_rows`, the majority class is that of all training rows.

    If rows name their source image, the regression is fitted on all rows and again on the first row of each source, and
    the better one counts: variants help a model that sees positions, but blur a bag (on digits shifted by a pixel it
    falls from 0.62 to 0.35), and a weakened baseline would flatter the model.

    Args:
        train: The training rows, or the first ones of a stream.
        splits: The rows to answer, by name.
        grammar: Of their vocabulary.
        class_counts: The training rows of each class; None: those of `train`.

    Returns:
        For each split:
        `majority`: always the most frequent class of the training rows; bool, shape (rows,).
        `bag_of_tokens`: logistic regression on how often each codebook token occurs in the image; bool, shape (rows,).
    """
    if class_counts is None:
        class_counts = np.sum([np.bincount(part, minlength=grammar.num_classes) for part in _labels(train)], axis=0)
    majority = np.argmax(class_counts)
    train = fitted_rows(train)
    train_counts, train_labels = bag_of_tokens(train, grammar)
    regressions = [_fit_regression(train_counts, train_labels)]
    if "source" in train.column_names:
        # A row without a source is its own source.
        sources = [f"row {i}" if source is None else f"source {source}" for i, source in enumerate(train["source"])]
        _, first = np.unique(sources, return_index=True)
        if len(first) < len(train_labels):
            regressions.append(_fit_regression(train_counts[first], train_labels[first]))
    hits = {}
    for name, rows in splits.items():
        blocks = [
            [labels == majority, *(regression.predict(counts) == labels for regression in regressions)]
            for counts, labels in _bags(rows, grammar)
        ]
        of_majority, *bags = map(np.concatenate, zip(*blocks, strict=True))
        hits[name] = {"majority": of_majority, "bag_of_tokens": max(bags, key=np.mean)}
    return hits


def fitted_rows(train: Dataset) -> Dataset:
    """The rows that the regression is fitted on: all, or `MAX_FITTED` of them, which are the same in each call.

    Of many rows, one is drawn at random from each of `MAX_FITTED` equal stretches, so that any order is represented.
    """
    if len(train) <= MAX_FITTED:
        return train
    ends = np.arange(MAX_FITTED + 1) * len(train) // MAX_FITTED
    places = np.random.RandomState(0).random_sample(MAX_FITTED)  # numpy never changes these numbers
    return train.select(ends[:-1] + (places * np.diff(ends)).astype(np.int64))


def fitted_record(num_rows: int, streamed: bool = False) -> dict[str, Any]:
    """What `eval_results.json` records if the regression is fitted on some of the training rows; else nothing."""
    if num_rows <= MAX_FITTED:
        return {}
    return {"bag_of_tokens_rows": {"fitted": MAX_FITTED, "of": num_rows, "drawn": FIRST if streamed else RANDOM}}


def baseline_figures(hits: dict[str, np.ndarray], correct: np.ndarray) -> dict[str, Any]:
    """The accuracy of each baseline, and the model's comparison with it.

    Args:
        hits: Of `baseline_hits`, for one split.
        correct: Which of the same rows the model gets right, in the same order; bool, shape (rows,).
    """
    figures: dict[str, Any] = {f"{name}_accuracy": float(right.mean()) for name, right in hits.items()}
    return figures | {f"versus_{name}": paired_comparison(correct, right) for name, right in hits.items()}


def _fit_regression(counts: scipy.sparse.csr_array, labels: np.ndarray) -> Pipeline:
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MaxAbsScaler

    one_class = len(np.unique(labels)) < 2  # which a regression refuses
    model = DummyClassifier() if one_class else LogisticRegression(max_iter=1_000)
    return make_pipeline(MaxAbsScaler(), model).fit(counts, labels)


def bag_of_tokens(dataset: Dataset, grammar: Grammar) -> tuple[scipy.sparse.csr_array, np.ndarray]:
    """How often each codebook token occurs in each image (rows, codebook_size), and the labels (rows,)."""
    import scipy.sparse

    blocks, labels = zip(*_bags(dataset, grammar), strict=True)
    return scipy.sparse.vstack(blocks, format="csr"), np.concatenate(labels)


def _bags(dataset: Dataset, grammar: Grammar) -> Iterator[tuple[scipy.sparse.csr_array, np.ndarray]]:
    """`bag_of_tokens`, some rows at a time."""
    import scipy.sparse

    for batch in dataset.with_format("arrow").iter(BLOCK_ROWS):
        rows = batch["input_ids"].combine_chunks()
        entries = grammar.entry_of_id[rows.flatten().to_numpy()]
        lengths = np.diff(rows.offsets.to_numpy())
        row_index = np.repeat(np.arange(len(rows)), lengths)[entries >= 0]
        entries = entries[entries >= 0]
        # Entries at the same place are summed, which gives the count.
        shape = (len(rows), grammar.codebook_size)
        counts = scipy.sparse.coo_array((np.ones(len(entries)), (row_index, entries)), shape=shape).tocsr()
        yield counts, batch["label"].to_numpy()


def _labels(dataset: Dataset) -> Iterator[np.ndarray]:
    for batch in dataset.select_columns(["label"]).with_format("arrow").iter(BLOCK_ROWS):
        yield batch["label"].to_numpy()
