"""Saving a model so that every version of transformers can load it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


def weights_sha256(folder: Path) -> str:
    """Identifies the weights of a saved model: SHA-256 over its safetensors files in the order of their names.

    For a model of one file it is that file's SHA-256, as the Hub shows it.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("model*.safetensors")):
        with open(file, "rb") as stream:
            while piece := stream.read(1 << 22):
                digest.update(piece)
    return digest.hexdigest()


def save_model(
    model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase, state_dict: dict[str, torch.Tensor]
) -> None:
    """Saves weights (safetensors), config and generation config, ready for inference.

    Args:
        model: Names the class and holds the config.
        folder: Where to.
        tokenizer: Names the special ids.
        state_dict: The weights, gathered from all processes.
    """
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_length=getattr(model.config, "max_position_embeddings", tokenizer.model_max_length),
    )
    # Trainer turns the cache off, which is right for training; generation without it is quadratic.
    use_cache, model.config.use_cache = model.config.use_cache, True
    model.save_pretrained(folder, state_dict=state_dict)
    model.config.use_cache = use_cache
