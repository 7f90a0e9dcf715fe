"""A graph of the `<CLS>` slot alone: it classifies in less time than the graph with a cache, and does nothing else.

One idea: a class needs the logits at one position of each row, so the last block's feed-forward layer and the output
layer compute that position only, and nothing is kept for a next token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from imagelm.accel.last_block import at_positions, only_at


class SlotLogits(nn.Module):
    """A model's logits after the last token of each row that the mask keeps; padding is on the right."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """Logits, float32 of shape (rows, 1, vocabulary), of ids and a mask of shape (rows, length)."""
        last = attention_mask.sum(1) - 1
        with only_at(self.model, last):
            # Without the mask: no later token changes the logits at `last`.
            hidden = self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        return {"logits": self.model.get_output_embeddings()(at_positions(hidden, last))}


def slot_inputs(rows: list[Tensor]) -> dict[str, Any]:
    """Rows of shape (length,) as the graph takes them, the first with all of its tokens."""
    length = min(map(len, rows))
    ids = torch.stack([row[:length] for row in rows])
    mask = torch.ones_like(ids)
    mask[1:, -1] = 0
    return {"input_ids": ids, "attention_mask": mask}
