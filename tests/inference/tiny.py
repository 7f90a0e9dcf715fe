"""A tiny model with random weights, rows for it, and its logits computed one row at a time."""

from __future__ import annotations

import numpy as np
import torch

from imagelm.inference.loading import LoadedModel
from imagelm.models.arguments import ModelArguments
from imagelm.models.build import build_model
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.tokenizer import build_tokenizer
from imagelm.tokens.vocabulary import CLS, IMG, IMG_END

SIZE = "num_hidden_layers=2,hidden_size=32,num_attention_heads=2"


def tiny(grammar: Grammar, positions: int, model_type: str = "gpt2", sharpness: float = 25.0) -> LoadedModel:
    """A model with random weights; `sharpness` makes its distributions far from flat."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(grammar, positions)
    model = build_model(ModelArguments(model_type=model_type, config_overrides=SIZE), tokenizer, positions, "eager")
    embeddings = model.get_output_embeddings().weight.data
    embeddings.mul_(sharpness / max(1.0, float(embeddings.norm(dim=1).mean())))
    return LoadedModel("tiny", model.eval(), tokenizer, grammar, None, None)


def logits_of(loaded: LoadedModel, ids) -> torch.Tensor:
    """All logits of one row, computed alone; float64, shape (length, vocabulary)."""
    with torch.no_grad():
        return loaded.model(torch.tensor([list(ids)])).logits[0].double()


def random_bodies(grammar: Grammar, count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.choice(grammar.code_ids, rng.integers(1, 10)) for _ in range(count)]


def questions_of(grammar: Grammar, bodies) -> list[np.ndarray]:
    return [np.array([grammar.id(IMG), *body, grammar.id(IMG_END), grammar.id(CLS)]) for body in bodies]
