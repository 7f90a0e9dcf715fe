"""Clients within this process: online for the local Hub, by git LFS and by Xet."""

from __future__ import annotations

import time

import pytest
from huggingface_hub import HfApi, constants

from testing.local_hub import ALICE, LocalHub
from testing.local_hub.pushing import CONTENT, THING, push


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' environment is offline; the clients here give the local Hub's address themselves."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client's pauses between its attempts


@pytest.fixture
def api(hub: LocalHub, online: None, lfs: None) -> HfApi:
    """Alice's client, by git LFS."""
    return HfApi(endpoint=hub.endpoint, token=ALICE.secret)


@pytest.fixture
def lfs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture(params=["lfs", "xet"])
def either_api(request: pytest.FixtureRequest, api: HfApi, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    """Alice's client by git LFS, and by Xet."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    return api


@pytest.fixture
def thing(api: HfApi) -> str:
    """The commit of a model repository with `CONTENT`."""
    api.create_repo(THING)
    return push(api, CONTENT).oid
