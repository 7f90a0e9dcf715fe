"""A loaded model, and services of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from imagelm.inference.arguments import LoadArguments
from imagelm.inference.loading import LoadedModel, load_for_inference
from imagelm.serving.app import make_app
from imagelm.serving.arguments import ServeArguments


@pytest.fixture(scope="session")
def loaded(artist) -> LoadedModel:
    return load_for_inference(LoadArguments(model=str(artist)))


@pytest.fixture
def service(loaded) -> Callable[..., Starlette]:
    """Makes services with other limits."""
    made = []

    def make(batch_size: int = 64, api_key: str | None = None, **limits: object) -> Starlette:
        made.append(make_app(loaded, ServeArguments(**limits), batch_size, api_key))
        return made[-1]

    yield make
    for app in made:
        app.state.gate.close()


@pytest.fixture(scope="session")
def client(loaded):
    """A client of a service with the usual limits."""
    with TestClient(make_app(loaded, ServeArguments())) as client:
        yield client
