"""The loss over tokens and CLS slots, and the collator that feeds it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from imagelm.metrics import IGNORE_INDEX, token_nll
from imagelm.tokens.grammar import Grammar


class RowCollator(DataCollatorForLanguageModeling):
    """Causal labels by the library (`mlm=False`: the input ids, −100 at padding), padded straight from arrays.

    The library's own way from dictionaries costs 60 times as much. There is no attention mask: padding is on the right,
    where no scored position of a causal model sees it, and without a mask attention stays on its fast path.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer=tokenizer, mlm=False)

    def torch_call(self, examples: list[Any]) -> dict[str, Tensor]:
        """`input_ids` and `labels`, int64, shape (rows, longest row of the batch), from rows with `input_ids`.

        `DeviceRows` gives a batch that is whole already. A row may bring `labels` of its own.
        """
        if examples[0]["input_ids"].ndim == 2:
            return examples[0]
        batch = super().torch_call([torch.from_numpy(row["input_ids"].astype(np.int64)) for row in examples])
        for number, row in enumerate(examples):
            if "labels" in row:  # of an empty place in a stream
                batch["labels"][number, : len(row["labels"])] = torch.from_numpy(row["labels"])
        return {name: batch[name] for name in ("input_ids", "labels")}


class TokenAndSlotLoss:
    """(1−w) · mean over scored tokens + w · mean over CLS slots, both means over the global batch.

    For Trainer's `compute_loss_func`. w = 0 is the plain causal language model.

    Attributes:
        num_slots: CLS slots in the current global batch, over all accumulated batches and processes.
    """

    def __init__(self, grammar: Grammar, cls_loss_weight: float) -> None:
        self.cls_loss_weight = cls_loss_weight
        self.is_class = torch.from_numpy(grammar.label_of_id >= 0)
        self.num_slots: Tensor | None = None
        self._sums: Tensor | None = None
        self._nll: Tensor | None = None

    def __call__(self, outputs: ModelOutput, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
        """The loss of one batch, already scaled so that summing over the accumulated batches is right.

        Args:
            outputs: With logits of shape (rows, length, vocabulary).
            labels: Shape (rows, length); −100 is not scored.
            num_items_in_batch: Scored tokens of the global batch; None counts this batch alone.
        """
        targets = labels[:, 1:]
        nll = token_nll(outputs["logits"][:, :-1], targets)
        num_tokens = (targets != IGNORE_INDEX).sum()
        in_slot = self.slots(targets)
        slot_nll = (nll * in_slot).sum()
        loss = nll.sum() / (num_tokens if num_items_in_batch is None else num_items_in_batch)
        if torch.is_grad_enabled():
            self.add_sums(torch.stack([nll.detach().sum(), num_tokens, slot_nll.detach(), in_slot.sum()]).float())
        else:
            self._nll = nll
        if self.cls_loss_weight == 0:
            return loss
        num_slots = self.num_slots if torch.is_grad_enabled() and self.num_slots is not None else in_slot.sum()
        return (1 - self.cls_loss_weight) * loss + self.cls_loss_weight * slot_nll / num_slots

    def slots(self, targets: Tensor) -> Tensor:
        """Where a class token must be predicted; bool, the shape of `targets`."""
        self.is_class = self.is_class.to(targets.device)
        return self.is_class[targets.clamp(min=0)] & (targets != IGNORE_INDEX)

    def add_sums(self, sums: Tensor | None) -> None:
        """Adds to what `take_sums` gives."""
        if sums is not None:
            self._sums = sums.clone() if self._sums is None else self._sums + sums

    def take_sums(self) -> Tensor | None:
        """(token NLL, tokens, slot NLL, slots) summed since the last call, on this process; None if there are none."""
        sums, self._sums = self._sums, None
        return sums

    def take_nll(self) -> Tensor | None:
        """The likelihoods of the last evaluated batch, for `RowReduction`; None if they were taken already."""
        nll, self._nll = self._nll, None
        return nll
