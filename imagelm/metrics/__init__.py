"""Perplexity, next-token accuracy, CLS-slot accuracy and related figures.

One idea: logits are reduced on the device to a few sums a row (`RowReduction`), so that evaluation memory grows with
rows, never with rows × length × vocabulary; every figure is then computed from these sums over the whole split. The
figures themselves are `evaluate` modules in the sub-folders, which can be loaded one by one.
"""

from __future__ import annotations

import evaluate
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import EvalPrediction

from imagelm.metrics.cls_accuracy.cls_accuracy import ClsAccuracy
from imagelm.metrics.cls_calibration_error.cls_calibration_error import ClsCalibrationError
from imagelm.metrics.cls_confusion_matrix.cls_confusion_matrix import ClsConfusionMatrix
from imagelm.metrics.cls_macro_f1.cls_macro_f1 import ClsMacroF1
from imagelm.metrics.next_token_accuracy.next_token_accuracy import NextTokenAccuracy
from imagelm.metrics.perplexity.perplexity import Perplexity
from imagelm.tokens.grammar import Grammar

IGNORE_INDEX = -100  # the label of positions that aren't scored, in torch and transformers
# The figures of a row, in this order.
COLUMNS = (
    "nll",  # summed negative log-likelihood of the scored tokens, in nats
    "num_tokens",
    "num_correct",  # arg max over the whole vocabulary
    "image_nll",  # summed over codebook tokens only
    "num_image_tokens",
    "slot_nll",  # of the class token, over the whole vocabulary
    "prediction",  # arg max over the class tokens
    "reference",
    "confidence",  # probability of the prediction among the class tokens
)

# The figures of `ComputeMetrics`, any of which may choose the best model, and whether more is better.
GREATER_IS_BETTER = {
    "cls_accuracy": True,
    "cls_macro_f1": True,
    "cls_calibration_error": False,
    "cls_perplexity": False,
    "next_token_accuracy": True,
    "perplexity": False,
    "image_perplexity": False,
    "loss": False,
}


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each target in nats, 0 where it isn't scored (−100).

    (rows, length, vocabulary) and (rows, length) → float32 (rows, length).
    """
    flat = logits.reshape(-1, logits.shape[-1]).float()
    nll = functional.cross_entropy(flat, targets.reshape(-1), ignore_index=IGNORE_INDEX, reduction="none")
    return nll.view(targets.shape)


def is_first_max(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether `logits.argmax(-1)` is the target; bool, the shape of `targets`.

    The arg max costs ten times the maximum on a CPU, so it's taken only where the target reaches the maximum.
    """
    found = logits.gather(-1, targets[..., None])[..., 0] == logits.amax(-1)
    found[found.clone()] = logits[found].argmax(-1) == targets[found]
    return found


class RowReduction:
    """Reduces logits to `COLUMNS`, as soon as a batch is evaluated.

    Labels are the input ids, −100 at padding; the one shift happens here as it does in the model's loss.
    """

    def __init__(self, grammar: Grammar) -> None:
        self.class_ids = torch.from_numpy(grammar.class_ids)
        self.label_of_id = torch.from_numpy(grammar.label_of_id)
        self.is_code = torch.from_numpy(grammar.is_code)

    def __call__(self, logits: Tensor, labels: Tensor, nll: Tensor | None = None, hits: Tensor | None = None) -> Tensor:
        """(rows, length, vocabulary) and (rows, length) → float32 (rows, len(COLUMNS)), exact up to 2²⁴ tokens a row.

        `nll` is what `token_nll` gave for the same rows, where the loss has computed it already; it may lack padding
        that was added on the right since. `hits` is what `is_first_max` gave for them.
        """
        if isinstance(logits, tuple):  # models that return more than logits put them first
            logits = logits[0]
        logits, targets = logits[:, :-1].float(), labels[:, 1:]
        for name in ("class_ids", "label_of_id", "is_code"):
            setattr(self, name, getattr(self, name).to(logits.device))
        scored = targets != IGNORE_INDEX
        if nll is None:
            nll = token_nll(logits, targets)
        nll = functional.pad(nll, (0, targets.shape[1] - nll.shape[1]))
        safe_targets = targets.clamp(min=0)
        in_image = scored & self.is_code[safe_targets]
        in_slot = scored & (self.label_of_id[safe_targets] >= 0)
        rows = torch.arange(len(targets), device=logits.device)
        slot = in_slot.int().argmax(1)
        class_probabilities = logits[rows, slot][:, self.class_ids].softmax(-1)
        confidence, prediction = class_probabilities.max(-1)
        columns = (
            nll.sum(1),
            scored.sum(1),
            ((is_first_max(logits, safe_targets) if hits is None else hits) & scored).sum(1),
            (nll * in_image).sum(1),
            in_image.sum(1),
            nll[rows, slot],
            prediction,
            self.label_of_id[safe_targets[rows, slot]],
            confidence,
        )
        return torch.stack([column.float() for column in columns], dim=1)


class ComputeMetrics:
    """All figures of a split from the reduced rows; for Trainer's `compute_metrics`."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        # The figures of the last call that aren't single numbers (confusion matrix, per-class accuracy).
        self.details: dict[str, list] = {}
        self.correct = np.zeros(0, bool)  # whether each row's class was right in the last call
        modules = (Perplexity, NextTokenAccuracy, ClsAccuracy, ClsMacroF1, ClsCalibrationError)
        self._scalars = evaluate.combine([module(keep_in_memory=True) for module in modules])
        self._perplexity = Perplexity(keep_in_memory=True)
        self._confusion = ClsConfusionMatrix(keep_in_memory=True)

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """The figures, without Trainer's prefix."""
        return self.from_rows(np.asarray(prediction.predictions))

    def from_rows(self, rows: np.ndarray) -> dict[str, float]:
        """The figures of reduced rows; shape (rows, len(COLUMNS))."""
        column = {name: rows[:, i].astype(np.float64) for i, name in enumerate(COLUMNS)}
        counts = {name: column[name].astype(np.int64) for name in ("num_tokens", "num_correct")}
        classes = {f"{name}s": column[name].astype(np.int64) for name in ("prediction", "reference")}
        self._scalars.add_batch(nll=column["nll"], confidences=column["confidence"], **counts, **classes)
        metrics = self._scalars.compute()
        for name, nll, count in (
            ("image_perplexity", column["image_nll"], column["num_image_tokens"]),
            ("cls_perplexity", column["slot_nll"], np.ones(len(rows))),
        ):
            metrics[name] = self._perplexity.compute(nll=nll, num_tokens=count.astype(np.int64))["perplexity"]
        metrics["loss"] = float(column["nll"].sum() / column["num_tokens"].sum())
        self.correct = classes["predictions"] == classes["references"]
        self.details = self._confusion.compute(**classes, num_classes=self.num_classes)
        return metrics
