"""A tiny model with its codec, images for it, and `inference.py` called in this process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inference
from imagelm.codecs.kmeans import fit_patch_codec
from imagelm.data.load import load_prepared
from imagelm.models.arguments import ModelArguments
from imagelm.models.build import build_model
from imagelm.models.save import save_model
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.tokenizer import build_tokenizer, load_tokenizer, save_tokenizer
from tests.conftest import NUM_CODES

NAMES = ["cat", "dog", "owl"]


@pytest.fixture
def infer(monkeypatch, capsys):
    """Runs `inference.py` in this process; gives what it prints."""

    def call(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["inference.py", *map(str, words)])
        inference.main()
        return capsys.readouterr().out

    return call


@pytest.fixture(scope="session")
def best(trained: Path) -> Path:
    return trained / "best_model"


@pytest.fixture(scope="session")
def grey_images() -> np.ndarray:
    """48 different grey images of 8×8 pixels, of 4 patches each."""
    rng = np.random.default_rng(5)
    blocks = rng.integers(0, 256, (48, 4, 4, 1), dtype=np.uint8)
    return blocks.repeat(2, 1).repeat(2, 2)


@pytest.fixture(scope="session")
def artist(grammar: Grammar, grey_images: np.ndarray, tmp_path_factory) -> Path:
    """A model with random weights for images of 2×2 tokens, with its codec and class names."""
    folder = tmp_path_factory.mktemp("artist")
    torch.manual_seed(1)
    tokenizer = build_tokenizer(grammar, 9)
    arguments = ModelArguments(config_overrides="num_hidden_layers=2,hidden_size=32,num_attention_heads=2")
    model = build_model(arguments, tokenizer, 9, "eager")
    model.get_output_embeddings().weight.data.mul_(20)
    model.config.id2label = dict(enumerate(NAMES))
    model.config.label2id = {name: label for label, name in enumerate(NAMES)}
    save_model(model, folder, tokenizer, model.state_dict())
    save_tokenizer(tokenizer, folder)
    fit_patch_codec(grey_images, 4, NUM_CODES, 0, fit="resize", background=0).save(folder)
    return folder


@pytest.fixture(scope="session")
def photos(grey_images: np.ndarray, tmp_path_factory) -> Path:
    """Folders owl, cat and yak (which the model doesn't know) of PNG files."""
    root = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(grey_images[:9]):
        folder = root / ["owl", "cat", "yak"][i % 3]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / f"{i}.png")
    return root


def records(file: Path) -> list[dict]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def rows_of_test(prepared: Path) -> list[str]:
    """The rows of a dataset's test split, as text."""
    tokenizer = load_tokenizer(prepared / "tokenizer")
    return [tokenizer.decode(row) for row in load_prepared(prepared)["test"]["input_ids"]]
