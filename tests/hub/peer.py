"""A model that others made with plain torch code, its rows and figures, and `imagelm verify` on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import GPT2LMHeadModel

from imagelm.hub.arguments import VerifyArguments
from imagelm.hub.verification.outcome import Verification, summary
from imagelm.hub.verification.verify import verify
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.tokenizer import build_tokenizer, save_tokenizer

NUM_POSITIONS = 24
NUM_TRAIN, NUM_TEST = 120, 61


def check(model: Path, dataset: Path, **options: object) -> Verification:
    result = verify(VerifyArguments(model=str(model), dataset=str(dataset), device="cpu", **options))
    print("\n".join(summary(result)))
    return result


def wrong(result: Verification) -> list[str]:
    return [verdict.figure for verdict in result.verdicts if verdict.holds is False]


@dataclass
class Peer:
    """A stock GPT-2 with rows as JSONL, made without this project's training."""

    home: Path
    model: GPT2LMHeadModel
    ids: torch.Tensor  # of the test rows, padded on the right
    mask: torch.Tensor
    slots: torch.Tensor  # position of <CLS>
    class_ids: torch.Tensor
    labels: torch.Tensor

    @torch.no_grad()
    def logits(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.model(input_ids=ids, attention_mask=mask).logits

    def accuracy(self, logits: torch.Tensor, positions: torch.Tensor) -> float:
        chosen = logits[torch.arange(len(logits)), positions][:, self.class_ids]
        return (chosen.argmax(-1) == self.labels).float().mean().item()


def padded(rows: list[dict], grammar: Grammar, length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    ids = [[grammar.vocabulary[token] for token in row["tokens"].split()] for row in rows]
    length = length or max(map(len, ids))
    pad = grammar.vocabulary["<PAD>"]
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids])
    return torch.tensor([row + [pad] * (length - len(row)) for row in ids]), mask


def save(model: torch.nn.Module, grammar: Grammar, folder: Path) -> Path:
    model.save_pretrained(folder)
    save_tokenizer(build_tokenizer(grammar, NUM_POSITIONS), folder)
    return folder


def perplexity(logits: torch.Tensor, targets: torch.Tensor) -> float:
    return cross_entropy(logits.flatten(0, 1), targets.flatten()).exp().item()


def reported(**figures: float) -> list[str]:
    return [f"{name}={value:.4f}" for name, value in figures.items()]
