"""A trained folder, the model staged from it, and a Hub that this process takes for its own."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from imagelm.hub.arguments import PushArguments
from imagelm.hub.stage_model import stage_model
from imagelm.hub.staged import Staged
from imagelm.utils.artifacts import MANIFEST_FILE
from testing.local_hub import ALICE, LocalHub
from tests.hub.common import MODEL
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
