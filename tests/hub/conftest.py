"""A trained folder, the model staged from it, a model of others, and a Hub that this process takes for its own."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import GPT2Config, GPT2LMHeadModel

from imagelm.hub.arguments import PushArguments
from imagelm.hub.stage_model import stage_model
from imagelm.hub.staged import Staged
from imagelm.tokens.grammar import Grammar
from imagelm.utils.artifacts import MANIFEST_FILE
from testing.local_hub import ALICE, LocalHub
from tests.conftest import random_rows, write_jsonl
from tests.hub.common import MODEL
from tests.hub.peer import NUM_POSITIONS, NUM_TEST, NUM_TRAIN, Peer, padded, save
from tests.local_hub.conftest import api, either_api, lfs, online  # noqa: F401 (fixtures)


@pytest.fixture
def here(hub: LocalHub, online: None, monkeypatch: pytest.MonkeyPatch, caplog) -> LocalHub:  # noqa: F811
    """A Hub that clients in this process take for theirs, logged in as alice."""
    caplog.set_level(logging.INFO, "imagelm")
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setenv("HF_TOKEN", ALICE.secret)
    return hub


@pytest.fixture
def options(pictured: Path) -> PushArguments:
    return PushArguments(model_dir=str(pictured / "out/best_model"), repo_id=MODEL, num_drawings=0)


@pytest.fixture(scope="session")
def staged(pictured: Path, tmp_path_factory: pytest.TempPathFactory) -> Staged:
    """The model's repository, put together once."""
    folder = tmp_path_factory.mktemp("staged") / "model"
    return stage_model(PushArguments(model_dir=str(pictured / "out/best_model"), repo_id=MODEL, num_drawings=0), folder)


@pytest.fixture
def folder(pictured: Path, tmp_path: Path) -> Path:
    """A copy of the trained folder, for the test to damage."""
    folder = Path(shutil.copytree(pictured / "out/best_model", tmp_path / "best_model"))
    (folder / MANIFEST_FILE).unlink()  # as for a folder that another program wrote
    return folder


@pytest.fixture(scope="session")
def peer(grammar: Grammar, tmp_path_factory: pytest.TempPathFactory) -> Peer:
    home = tmp_path_factory.mktemp("peer")
    rows = random_rows(NUM_TRAIN + NUM_TEST, seed=3, low=4, high=12)
    (home / "rows").mkdir()
    write_jsonl(home / "rows/train.jsonl", rows[:NUM_TRAIN])
    write_jsonl(home / "rows/test.jsonl", rows[NUM_TRAIN:])
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": NUM_POSITIONS}
    special = {f"{name}_token_id": grammar.vocabulary[token] for name, token in (("bos", "<IMG>"), ("eos", "<EOS>"))}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=grammar.size, **sizes, **special))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids, mask = padded(rows[:NUM_TRAIN], grammar)
    for _ in range(30):
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save(model.eval(), grammar, home / "model")
    ids, mask = padded(rows[NUM_TRAIN:], grammar)
    class_ids = torch.tensor([grammar.vocabulary[f"<CLS_{label}>"] for label in range(3)])
    labels = torch.tensor([row["label"] for row in rows[NUM_TRAIN:]])
    return Peer(home, model, ids, mask, mask.sum(1) - 3, class_ids, labels)
