"""Rows → the figures of a model, as they should be or under another way of scoring.

One idea: a way of scoring is which tokens are labels and how often they are shifted. The same forward pass, reduction
and metrics that training reports with then give the figures of any way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from imagelm.evaluation.baselines import baseline_figures, baseline_hits, fitted_record
from imagelm.evaluation.interval import accuracy_interval
from imagelm.hub.verification.reported import flat
from imagelm.metrics import COLUMNS, IGNORE_INDEX, ComputeMetrics, RowReduction, is_first_max, token_nll
from imagelm.tokens.grammar import Grammar, Role
from imagelm.tokens.vocabulary import PAD
from imagelm.utils.errors import DivergedError

LOGIT_ELEMENTS = 2**25  # held at once: 128 MiB in float32
COLUMN = {name: i for i, name in enumerate(COLUMNS)}


@dataclass(frozen=True)
class Scoring:
    """How rows are scored.

    Attributes:
        ends: How many tokens of each row are labels, padding included; shape (rows,). None: the row's own.
        shift: How often labels are shifted; once is right.
        class_at: From which position the class is read in rows whose class token is no label; shape (rows,). None: from
            nowhere.
    """

    ends: np.ndarray | None = None
    shift: int = 1
    class_at: np.ndarray | None = None


def reduced_rows(
    model: PreTrainedModel,
    grammar: Grammar,
    rows: Sequence[np.ndarray],
    scorings: Sequence[Scoring],
    batch_size: int,
    length: int | None = None,
    visible: np.ndarray | None = None,
) -> list[np.ndarray]:
    """The `COLUMNS` of each row for each way of scoring; float32, shape (rows, columns).

    Args:
        model: In evaluation mode.
        grammar: Of its vocabulary.
        rows: Ids of whole rows; shape (tokens,).
        scorings: Ways of scoring, all from the same forward pass.
        batch_size: Rows computed at once; fewer where their logits take too much memory.
        length: To which all rows are padded; None: the longest of each batch.
        visible: How many tokens of each row the attention mask shows; None: the row's own, so that padding is hidden.

    Raises:
        DivergedError: Logits aren't finite.
    """
    lengths = np.array([len(row) for row in rows])
    visible = lengths if visible is None else visible
    reduce, class_of = RowReduction(grammar), torch.from_numpy(np.array([row[-2] for row in rows], dtype=np.int64))
    results = [np.empty((len(rows), len(COLUMNS)), np.float32) for _ in scorings]
    order = np.argsort(lengths, kind="stable")
    size = max(
        1, min(batch_size, LOGIT_ELEMENTS // (int(length or lengths.max()) * model.config.get_text_config().vocab_size))
    )
    for chosen in np.split(order, range(size, len(order), size)):
        ids = torch.full((len(chosen), length or int(lengths[chosen].max())), grammar.id(PAD))
        for target, i in zip(ids, chosen, strict=True):
            target[: lengths[i]] = torch.from_numpy(rows[i].astype(np.int64))
        place = torch.arange(ids.shape[1])
        mask = place < torch.from_numpy(visible[chosen])[:, None]
        words: dict[str, Any] = {} if mask.all() else {"attention_mask": mask.long().to(model.device)}
        with torch.no_grad():
            logits = model(input_ids=ids.to(model.device), use_cache=False, **words).logits.float()
        if not logits.isfinite().all():
            raise DivergedError("the model's logits aren't finite, so it has no figures")
        scores = {
            shift: _token_scores(logits, ids.to(model.device), shift) for shift in {one.shift for one in scorings}
        }
        for scoring, result in zip(scorings, results, strict=True):
            labels = _labels(scoring, ids, lengths, chosen, class_of)
            shifted, labels = _shifted(logits, labels.to(model.device), scoring.shift)
            nll, hits = scores[scoring.shift]
            is_label = labels[:, 1:] != IGNORE_INDEX
            result[chosen] = reduce(shifted, labels, nll.where(is_label, 0), hits).cpu().numpy()
    return results


def _token_scores(logits: Tensor, ids: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """The likelihood of each token and whether it's the arg max, for all ways of scoring with this shift.

    A class token that is put elsewhere has the likelihood of the token that was there.
    """
    logits, labels = _shifted(logits, ids, shift)
    nll = token_nll(logits[:, :-1], labels[:, 1:])
    return nll, is_first_max(logits[:, :-1], labels[:, 1:].clamp(min=0))


def _labels(scoring: Scoring, ids: Tensor, lengths: np.ndarray, chosen: np.ndarray, class_of: Tensor) -> Tensor:
    """The labels of the chosen rows, before any shift."""
    ends = (lengths if scoring.ends is None else scoring.ends)[chosen]
    labels = ids.masked_fill(torch.arange(ids.shape[1]) >= torch.from_numpy(ends)[:, None], IGNORE_INDEX)
    if scoring.class_at is not None:
        lost = np.flatnonzero(ends < lengths[chosen] - 1)
        labels[lost, scoring.class_at[chosen][lost] + 1] = class_of[chosen][lost]
    return labels


def _shifted(logits: Tensor, labels: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Logits and labels from which the one shift of `RowReduction` makes `shift` ones."""
    blank = torch.full_like(labels[:, :1], IGNORE_INDEX)
    if shift == 0:
        return torch.cat([logits, logits[:, -1:]], 1), torch.cat([blank, labels], 1)
    return logits, labels if shift == 1 else torch.cat([labels[:, 1:], blank], 1)


def true_figures(columns: np.ndarray, grammar: Grammar, train: Dataset | None, test: Dataset) -> dict[str, float]:
    """All figures that `eval_results.json` has, by dotted names; those of the baselines only with training rows."""
    metrics = ComputeMetrics(grammar.num_classes)
    figures: dict[str, Any] = dict(metrics.from_rows(columns))
    figures |= {name.removeprefix("cls_"): value for name, value in metrics.details.items()}
    figures["rows_per_class"] = [sum(row) for row in figures["confusion_matrix"]]
    figures |= {"samples": len(test), "cls_accuracy_interval": accuracy_interval(figures["cls_accuracy"], len(test))}
    if train is not None:
        hits = baseline_hits(train, {"": test}, grammar)[""]
        figures |= baseline_figures(hits, metrics.correct) | fitted_record(len(train))
    return {name: value for name, value in flat(figures) if not name.endswith("p_value")}


def main_figures(columns: np.ndarray) -> dict[str, float]:
    """The figures that need no metric module, which take 0.1 s a call: enough to compare many ways of scoring."""
    sums = dict(zip(COLUMNS, columns.astype(np.float64).sum(0), strict=True))
    right = columns[:, COLUMN["prediction"]] == columns[:, COLUMN["reference"]]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        loss = np.float64(sums["nll"]) / sums["num_tokens"]
        figures = {
            "perplexity": np.exp(loss),
            "loss": loss,
            "next_token_accuracy": np.float64(sums["num_correct"]) / sums["num_tokens"],
            "image_perplexity": np.exp(np.float64(sums["image_nll"]) / sums["num_image_tokens"]),
            "cls_accuracy": right.mean(),
        }
        if (columns[:, COLUMN["reference"]] >= 0).all():
            figures["cls_perplexity"] = np.exp(sums["slot_nll"] / len(columns))
    return {name: float(value) for name, value in figures.items()}


def question_lengths(rows: Sequence[np.ndarray], grammar: Grammar) -> np.ndarray:
    """How many tokens of each row come before the answer; int64, shape (rows,)."""
    return np.array([grammar.find(row, Role.CLS) + 1 for row in rows])
