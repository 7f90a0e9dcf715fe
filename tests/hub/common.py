"""Repositories of a Hub, commands that push to them, and what is staged and stored for them."""

from __future__ import annotations

from pathlib import Path

from imagelm.hub.arguments import PushArguments
from imagelm.hub.stage_model import stage_model
from imagelm.hub.staged import Staged
from testing.local_hub import ALICE, LocalHub

MODEL, ROWS, DEMO = "alice/animals", "alice/animal-rows", "alice/animals-demo"


def push_words(pictured: Path, *words: str) -> list[str]:
    return ["push_to_hub.py", "--model_dir", str(pictured / "out/best_model"), "--repo_id", MODEL, *words]


def online_environment(hub: LocalHub, home: Path, token: object = ALICE) -> dict[str, str]:
    return hub.environment(home, token) | {"HF_HUB_OFFLINE": "0"}


def stored(hub: LocalHub, repo_id: str = MODEL, kind: str = "model") -> dict[str, bytes]:
    """Everything in a repository, but for the Hub's own first file."""
    return {path: data for path, data in hub.repo(repo_id, kind).files().items() if path != ".gitattributes"}


def content(staged: Staged) -> dict[str, bytes]:
    return {path: file.read_bytes() for path, file in staged.files.items()}


def stage(folder: Path, tmp_path: Path, **more: object) -> Staged:
    return stage_model(PushArguments(model_dir=str(folder), repo_id=MODEL, num_drawings=0, **more), tmp_path / "staged")
