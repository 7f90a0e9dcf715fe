"""`handler.py` through the interface that Inference Endpoints call: `EndpointHandler(path)` and `__call__(data)`."""

from __future__ import annotations

import base64
import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from imagelm.inference.arguments import InputArguments, LoadArguments
from imagelm.inference.inputs import read_inputs
from imagelm.inference.loading import load_for_inference
from imagelm.inference.tasks import classify
from imagelm.models.save import HANDLER_FILE, copy_code


@pytest.fixture(scope="module")
def handler(pictured: Path, tmp_path_factory):
    """Loaded as an endpoint does, from a folder with the files of a pushed repository."""
    folder = Path(shutil.copytree(pictured / "out/best_model", tmp_path_factory.mktemp("repository") / "model"))
    copy_code(folder, HANDLER_FILE)
    spec = importlib.util.spec_from_file_location("handler", folder / HANDLER_FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler(str(folder))


def test_an_endpoint_answers_as_the_command_for_pictures_base64_and_rows(pictured, handler):
    files = sorted((pictured / "in").rglob("*.png"))[:3]
    loaded = load_for_inference(LoadArguments(model=str(pictured / "out/best_model")))
    rows = read_inputs(InputArguments(images=list(map(str, files))), "classify", loaded).rows
    expected = classify(loaded, rows, 2, False, 64).records
    answers = [
        handler({"inputs": [Image.open(file) for file in files], "parameters": {"top_k": 2}}),
        [
            handler({"inputs": base64.b64encode(file.read_bytes()).decode(), "parameters": {"top_k": 2}})
            for file in files
        ],
        handler({"inputs": [record["tokens"] for record in expected], "parameters": {"top_k": 2}}),
    ]
    for answer in answers:
        json.dumps(answer)
        for found, record in zip(answer, expected, strict=True):
            assert [one["label"] for one in found] == [one["class"] for one in record["top"]]
            assert [one["score"] for one in found] == pytest.approx(
                [one["probability"] for one in record["top"]], abs=1e-5
            )
    assert len(handler({"inputs": Image.open(files[0])})) == 3


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("no base64!", "neither base64 nor a row of tokens"),
        ("<IMG> <Z_001>", "the row has 1 codebook tokens"),
        (7, "the input is a int"),
        (base64.b64encode(b"text").decode(), "cannot identify image file"),
    ],
)
def test_an_endpoint_names_what_is_wrong(handler, given, said):
    with pytest.raises((ValueError, OSError), match=said):
        handler({"inputs": given})
