"""The proof that the logits at `<CLS>` depend on nothing after it."""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from imagelm.tokens.grammar import Grammar, Role
from imagelm.tokens.vocabulary import CLS
from imagelm.utils.errors import DivergedError, LeakError

NUM_LEAK_PROOF_ROWS = 32
LEAK_TOLERANCE = 1e-4  # logits of equal inputs differ by float noise alone, about 1e-6


def prove_no_leak(model: PreTrainedModel, grammar: Grammar, rows: list[Tensor], seed: int) -> float:
    """Proves on real rows that nothing after `<CLS>` changes the logits of the class slot.

    Returns:
        The largest difference between the slot's logits, as `answer_influence` gives it.

    Raises:
        LeakError: It is more than float noise.
        DivergedError: Logits aren't finite.
    """
    worst = answer_influence(model, grammar, rows, seed)
    if worst > LEAK_TOLERANCE:
        raise LeakError(
            f"changing the tokens after {CLS} changed the logits of the class slot by {worst:.3g} (float noise is "
            f"below {LEAK_TOLERANCE}): the model sees the answer, so its figures are worthless. "
            "Choose a causal architecture"
        )
    return worst


def answer_influence(model: PreTrainedModel, grammar: Grammar, rows: list[Tensor], seed: int) -> float:
    """How much the tokens after `<CLS>` change the logits of the class slot: the largest difference.

    Each row (ids of a whole row, shape (length,)) is run as it is, and again with every token after `<CLS>` replaced by
    a random codebook or class token. The model keeps its mode (training or evaluation).

    Raises:
        DivergedError: Logits aren't finite.
    """
    device, was_training = next(model.parameters()).device, model.training
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.from_numpy(np.concatenate([grammar.code_ids, grammar.class_ids]))
    model.eval()
    worst = 0.0
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for row in rows:
            slot = grammar.find(row.numpy(), Role.CLS)
            changed = row.clone()
            changed[slot + 1 :] = tokens[torch.randint(len(tokens), (len(row) - slot - 1,), generator=generator)]
            logits = model(input_ids=torch.stack([row, changed]).to(device)).logits[:, slot].float()
            if not logits.isfinite().all():
                raise DivergedError("the model's logits aren't finite, so the leak check can't be done")
            worst = max(worst, (logits[0] - logits[1]).abs().max().item())
    model.train(was_training)
    return worst


def leak_proof_rows(dataset: Dataset) -> list[Tensor]:
    """Rows for the leak check, spread evenly over the dataset; each int64, shape (length,)."""
    step = max(1, len(dataset) // NUM_LEAK_PROOF_ROWS)
    chosen = dataset.select(range(0, len(dataset), step)[:NUM_LEAK_PROOF_ROWS])
    return [torch.tensor(row) for row in chosen["input_ids"]]
