"""An exported model gives the model's answers; a missing library or another model's export is an error."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from imagelm.inference.arguments import LoadArguments
from imagelm.inference.loading import OnnxSession, load_for_inference
from imagelm.utils.artifacts import ONNX_CONFIG
from tests.conftest import run

onnx = pytest.importorskip("onnx", reason="requirements-onnx.txt isn't installed")
pytest.importorskip("onnxruntime", reason="requirements-onnx.txt isn't installed")


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    folders = {name: tmp_path_factory.mktemp("onnx") / name for name in ("float32", "int8")}
    for name, folder in folders.items():
        words = ["--model", trained / "best_model", "--output_dir", folder, *(["--int8"] if name == "int8" else [])]
        done = run("-m", "imagelm", "export", *words)
        assert done.returncode == 0, done.stderr
        assert not done.stderr.strip()
    return folders


def test_the_graph_has_the_models_logits_at_any_length_and_position(trained, exported):
    model = load_for_inference(LoadArguments(model=str(trained / "best_model"))).model
    session = OnnxSession(exported["float32"])
    for rows, length in ((1, 2), (5, 7), (2, 12)):
        ids = torch.randint(model.config.vocab_size, (rows, length))
        last = torch.randint(length, (rows,))
        with torch.no_grad():
            expected = model(input_ids=ids).logits[torch.arange(rows), last].numpy()
        assert np.abs(session(ids.numpy(), last.numpy()) - expected).max() < 1e-4


def test_int8_weights_are_int8_and_answer_nearly_alike(exported):
    whole, small = (OnnxSession(exported[name]) for name in ("float32", "int8"))
    weights = [onnx.load(folder / "model.onnx").graph.initializer for folder in exported.values()]
    counts = [sum(weight.data_type == onnx.TensorProto.INT8 and len(weight.dims) == 2 for weight in w) for w in weights]
    assert counts[0] == 0 and counts[1] >= 8  # four matrices a block
    ids, last = np.random.default_rng(0).integers(0, 30, (8, 10)), np.full(8, 9)
    expected, found = whole(ids, last), small(ids, last)
    assert 0 < np.abs(found - expected).max() < 0.2 * np.ptp(expected)


def test_classify_with_the_export_gives_the_models_classes(trained, exported, prepared, tmp_path):
    answers = []
    for onnx in ([], ["--onnx", exported["float32"]]):
        output = tmp_path / f"{len(onnx)}.jsonl"
        words = ["--model", trained / "best_model", "--mode", "classify", "--dataset_dir", prepared]
        done = run("inference.py", *words, "--output", output, *onnx)
        assert done.returncode == 0, done.stderr
        answers.append([json.loads(line) for line in output.read_text().splitlines()])
    for first, second in zip(*answers, strict=True):
        assert first["prediction"] == second["prediction"]
        assert first["probability"] == pytest.approx(second["probability"], abs=1e-4)


def test_an_export_of_another_model_is_refused(trained, exported, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(exported["float32"], other)
    config = json.loads((other / ONNX_CONFIG).read_text())
    config["vocabulary"] = {"<PAD>": 0}
    (other / ONNX_CONFIG).write_text(json.dumps(config))
    for folder, message in ((other, "another vocabulary"), (tmp_path, "holds no model.onnx")):
        words = ["--model", trained / "best_model", "--tokens", "<IMG> <Z_001>", "--onnx", folder]
        done = run("inference.py", "--mode", "next_token", *words)
        assert done.returncode == 2 and message in done.stderr
    words = ["--model", trained / "best_model", "--output_dir", exported["int8"]]
    assert "is not empty" in run("-m", "imagelm", "export", *words).stderr


def test_a_missing_library_is_named_with_what_installs_it(trained, tmp_path):
    code = "import sys; sys.modules['onnxscript'] = None; from pathlib import Path;"
    code += "from imagelm.export.onnx import export_onnx;"
    code += f"export_onnx({str(trained / 'best_model')!r}, Path({str(tmp_path / 'o')!r}), False)"
    done = run("-c", code)
    assert 'pip install "imagelm[onnx]"' in done.stderr and not (tmp_path / "o").exists()
