"""The service answers as the tasks do: every endpoint, rows and images, alone and in batches."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from imagelm.inference.arguments import LoadArguments
from imagelm.inference.loading import LoadedModel, load_for_inference
from imagelm.inference.tasks import classify
from imagelm.serving.app import make_app
from imagelm.serving.arguments import ServeArguments
from imagelm.tokens.grammar import Row
from tests.conftest import sentence


@pytest.fixture(scope="module")
def loaded(artist) -> LoadedModel:
    return load_for_inference(LoadArguments(model=str(artist)))


@pytest.fixture(scope="module")
def client(loaded):
    with TestClient(make_app(loaded, ServeArguments())) as client:
        yield client


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image[..., 0]).save(stream, "PNG")
    return stream.getvalue()


def in_base64(data: bytes) -> dict:
    return {"image": base64.b64encode(data).decode()}


def post(client: TestClient, task: str, **content: object) -> list[dict]:
    response = client.post(f"/v1/{task}", json=content)
    assert response.status_code == 200, response.text
    return response.json()["results"]


ROWS = [[1, 2, 3, 4], [11, 12, 13, 29], [5, 5, 5, 5]]


def rows_of(loaded: LoadedModel) -> list[Row]:
    return [loaded.grammar.parse(sentence(codes, 0).split()[:-3], None, f"inputs[{i}]") for i, codes in enumerate(ROWS)]


def test_classify_gives_the_records_of_the_command(client, loaded):
    tokens = [" ".join(sentence(codes, 0).split()[:-3]) for codes in ROWS]
    found = post(
        client, "classify", inputs=[{"tokens": tokens[0]}, *({"tokens": t.split()} for t in tokens[1:])], top=2
    )
    assert found == classify(loaded, rows_of(loaded), 2, False, 64).records
    assert [len(record["top"]) for record in found] == [2, 2, 2]
