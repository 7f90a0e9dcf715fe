"""Perplexity, next-token accuracy, CLS-slot accuracy and related figures.

One idea: logits are reduced on the device to a few sums a row (`RowReduction`), and these to sums over the whole split
(`ComputeMetrics`), so that the memory of an evaluation doesn't grow with its rows, but for one byte each. The figures
themselves are `evaluate` modules in the sub-folders, which can be loaded one by one; training needs only the formulas
beside them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from imagelm.metrics.cls_calibration_error.figure import NUM_BINS, calibration_gaps
from imagelm.metrics.cls_confusion_matrix.figure import accuracy_per_class
from imagelm.metrics.cls_macro_f1.figure import macro_f1
from imagelm.metrics.next_token_accuracy.figure import share_of
from imagelm.metrics.perplexity.figure import perplexity_of
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

SUMS = COLUMNS[:6]  # those that are only summed
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
    """All figures of a split from its reduced rows, which are summed as they come; one byte of each is kept.

    Attributes:
        correct: Whether each row's class is right, in the order of the rows; bool, shape (rows,).
        details: The figures of the last `compute` that aren't single numbers (confusion matrix, per-class accuracy).
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.details: dict[str, list] = {}
        self.clear()

    def clear(self) -> None:
        """Forgets all rows."""
        self._sums = np.zeros(len(SUMS))
        self._matrix = np.zeros((self.num_classes + 1, self.num_classes + 1), np.int64)  # the last one is no class, -1
        self._gaps: np.ndarray = np.zeros(NUM_BINS)
        self._correct: list[np.ndarray] = []

    def add(self, rows: np.ndarray) -> None:
        """Adds reduced rows, some or all; shape (rows, len(COLUMNS))."""
        column = {name: rows[:, i] for i, name in enumerate(COLUMNS)}
        predictions, references = (column[name].astype(np.int64) for name in ("prediction", "reference"))
        correct = predictions == references
        self._sums += [column[name].sum(dtype=np.float64) for name in SUMS]
        np.add.at(self._matrix, (references, predictions), 1)
        self._gaps += calibration_gaps(correct, column["confidence"].astype(np.float64))
        self._correct.append(correct)

    @property
    def correct(self) -> np.ndarray:
        return np.concatenate(self._correct) if self._correct else np.zeros(0, bool)

    def compute(self) -> dict[str, float]:
        """The figures of all rows."""
        sums, num_rows = dict(zip(SUMS, self._sums.tolist(), strict=True)), int(self._matrix.sum())
        matrix = self._matrix[:-1, :-1]
        self.details = {"cls_confusion_matrix": matrix.tolist(), "cls_per_class_accuracy": accuracy_per_class(matrix)}
        return {
            "perplexity": perplexity_of(sums["nll"], sums["num_tokens"]),
            "next_token_accuracy": share_of(sums["num_correct"], sums["num_tokens"]),
            "cls_accuracy": float(self._matrix.trace() / num_rows),
            "cls_macro_f1": macro_f1(self._matrix),
            "cls_calibration_error": float(np.abs(self._gaps).sum() / num_rows),
            "image_perplexity": perplexity_of(sums["image_nll"], sums["num_image_tokens"]),
            "cls_perplexity": perplexity_of(sums["slot_nll"], num_rows),
            "loss": float(np.divide(sums["nll"], sums["num_tokens"])),
        }

    def from_rows(self, rows: np.ndarray) -> dict[str, float]:
        """The figures of these reduced rows alone; shape (rows, len(COLUMNS))."""
        self.clear()
        self.add(rows)
        return self.compute()
