"""Both formats and their 8-bit weights on a model that was really trained: 1,000 real rows, accuracy, drawings."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from imagelm.data.load import load_prepared
from imagelm.hub.arguments import PushArguments
from imagelm.hub.stage_model import stage_model
from imagelm.hub.stage_page import check_page_model
from imagelm.inference.arguments import LoadArguments
from imagelm.inference.generation import complete_rows
from imagelm.inference.generation_arguments import GenerationArguments
from imagelm.inference.loading import load_for_inference
from imagelm.inference.scoring import class_probabilities, log_likelihoods
from imagelm.models.arguments import ModelArguments
from imagelm.models.build import build_model
from imagelm.models.save import save_model
from imagelm.tokens.tokenizer import build_tokenizer, save_tokenizer
from imagelm.utils.errors import InputError
from testing.local_hub import LocalHub
from tests.conftest import ROOT, run

pytestmark = pytest.mark.slow
pytest.importorskip("onnxruntime", reason="requirements-onnx.txt isn't installed")
pytest.importorskip("transformers.exporters.runners", reason="exports need transformers 5.23")
NUM_ROWS = 1000


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits recipe after 300 steps: `data` and `model`."""
    home = tmp_path_factory.mktemp("digits")
    recipe = ROOT / "recipes/digits/config.yaml"
    raw = ["--data_files", home / "raw/rows.jsonl", "--vocab_file", home / "raw/vocab.json"]
    for words in (
        ["-m", "examples.digits", "--output_dir", home / "raw"],
        ["prepare_dataset.py", *raw, "--output_dir", home / "data", "--split_by", "field"],
        [
            "train.py",
            "--config",
            recipe,
            "--dataset_dir",
            home / "data",
            "--output_dir",
            home / "out",
            "--max_steps",
            300,
        ],
    ):
        done = run(*words)
        assert done.returncode == 0, done.stderr
    shutil.copytree(home / "out/best_model", home / "model")
    return home


def labelled(digits: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    rows = load_prepared(digits / "data", [split])[split].with_format("numpy")[:NUM_ROWS]
    return np.stack(rows["input_ids"]).astype(np.int64), np.asarray(rows["label"])


def logits_of(model, rows: np.ndarray) -> np.ndarray:
    """At `<CLS>`, of rows whose last two tokens are the answer and the end; shape (rows, vocabulary)."""
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(rows[:, :-2])).logits[:, -1].numpy()


@pytest.mark.parametrize(("backend", "weights"), [(b, w) for b in ("onnx", "openvino") for w in ("float32", "int8")])
def test_exports_answer_as_the_model_on_real_rows(digits: Path, tmp_path: Path, backend: str, weights: str):
    pytest.importorskip("openvino" if backend == "openvino" else "onnx")
    words = ["--model", digits / "model", "--format", backend, "--output_dir", tmp_path]
    done = run("-m", "imagelm", "export", *words, *(["--int8"] if weights == "int8" else []))
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr
    stock = AutoModelForCausalLM.from_pretrained(digits / "model").eval()
    options = LoadArguments(model=str(digits / "model"), backend=backend, export_dir=str(tmp_path))
    loaded = load_for_inference(options)
    train, _ = labelled(digits, "train")
    expected, found = logits_of(stock, train), logits_of(loaded.model, train)
    equal = (expected.argmax(-1) == found.argmax(-1)).mean()
    test, labels = labelled(digits, "test")
    classes = loaded.grammar.class_ids
    accuracies = [(logits_of(m, test)[:, classes].argmax(-1) == labels).mean() for m in (stock, loaded.model)]
    print(
        backend, weights, "largest difference", np.abs(found - expected).max(), "equal", equal, "accuracy", accuracies
    )
    if weights == "float32":
        assert np.abs(found - expected).max() < 1e-3 and equal == 1
        assert accuracies[0] == accuracies[1]
    else:
        assert np.abs(found - expected).max() > 1e-3 and equal >= 0.97
        assert abs(accuracies[0] - accuracies[1]) <= 0.02
    if weights == "float32":
        torch_model = load_for_inference(LoadArguments(model=str(digits / "model"), device="cpu"))
        prompts = [row[:9] for row in test[:50]]
        drawn = [
            [one.ids.tolist() for (one,) in complete_rows(each, prompts, GenerationArguments(greedy=True), 16)]
            for each in (torch_model, loaded)
        ]
        assert drawn[0] == drawn[1]


def test_a_graph_of_the_slot_alone_classifies_and_refuses_the_rest(digits: Path, tmp_path: Path, caplog):
    folder = Path(shutil.copytree(digits / "model", tmp_path / "model"))
    done = run("-m", "imagelm", "export", "--model", folder, "--slot_only")
    assert done.returncode == 0 and "the same most probable token at 100.0 % of positions" in done.stdout, done.stderr
    loaded = load_for_inference(LoadArguments(model=str(folder), backend="onnx"))
    stock = AutoModelForCausalLM.from_pretrained(folder).eval()
    rows, grammar = labelled(digits, "test")[0][:200], loaded.grammar
    questions = [grammar.question(row[1 : 2 + i % 16]) for i, row in enumerate(rows)]  # of 16 lengths
    expected = [stock(input_ids=torch.from_numpy(ids[None])).logits[0, -1, grammar.class_ids] for ids in questions]
    found = class_probabilities(loaded, questions, 7)
    assert np.abs(found - torch.stack(expected).softmax(-1).detach().numpy()).max() < 1e-5
    generation = GenerationArguments(greedy=True)
    page = shutil.copytree(folder, tmp_path / "page")
    shutil.copytree(digits / "raw/codec", page, dirs_exist_ok=True)  # without one, a page is refused for that
    for ask in (
        lambda: complete_rows(loaded, [rows[0][:9]], generation, 1),
        lambda: log_likelihoods(loaded, [rows[0][1:-4]], 1),
        lambda: check_page_model(
            PushArguments(model_dir=str(page), repo_id="a/b", space_repo_id="a/c", space_sdk="static")
        ),
    ):
        with pytest.raises(InputError, match="classifies only"):
            ask()
    caplog.set_level(logging.INFO)
    auto = load_for_inference(LoadArguments(model=str(folder), backend="auto", device="cpu"))
    assert type(auto.model).__name__ == "GPT2LMHeadModel" and "doesn't use onnx: it classifies only" in caplog.text
    staged = stage_model(PushArguments(model_dir=str(folder), repo_id="a/b", num_drawings=0), tmp_path / "staged")
    assert not any(name.startswith("onnx/") for name in staged.files)
    assert any("classifies only" in note for note in staged.notes)


def test_an_export_is_pushed_with_its_model(digits: Path, tmp_path: Path):
    folder = Path(shutil.copytree(digits / "model", tmp_path / "model"))
    with LocalHub(tmp_path / "hub") as hub:
        environment = hub.environment(tmp_path / "home") | {"HF_HUB_OFFLINE": "0"}
        words = ["--int8", "--push_to_hub", "alice/digits"]
        done = run("-m", "imagelm", "export", "--model", folder, *words, **environment)
        assert done.returncode == 0, done.stderr
        repo = hub.repo("alice/digits")
        names = {name for name in repo.files() if name.startswith("onnx/")}
        assert names == {"onnx/model_quantized.onnx", "onnx/imagelm.json"}
        for name in (*names, "model.safetensors"):
            assert repo.read(name) == (folder / name).read_bytes()
        assert "onnx" in repo.read("README.md").decode()
        taken = hub.environment(tmp_path / "home", None) | {"HF_HUB_OFFLINE": "0"}
        done = run("-m", "imagelm", "export", "--model", folder, *words, "--overwrite", **taken)
        assert done.returncode == 2 and "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt_neox"])
def test_other_architectures_are_exported_too(grammar, tmp_path: Path, kind: str):
    overrides = "num_hidden_layers=2,hidden_size=32,num_attention_heads=2"
    folder = save(grammar, tmp_path / "model", ModelArguments(model_type=kind, config_overrides=overrides))
    done = run("-m", "imagelm", "export", "--model", folder)
    assert done.returncode == 0, done.stderr
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    exported = load_for_inference(LoadArguments(model=str(folder), backend="onnx")).model
    ids = torch.randint(grammar.size, (3, 8))
    with torch.no_grad():
        assert (exported(input_ids=ids).logits - model(input_ids=ids).logits).abs().max() < 1e-4


def test_a_model_without_keys_and_values_is_refused(grammar, tmp_path: Path):
    overrides = "num_hidden_layers=2,hidden_size=32,state_size=4"
    folder = save(grammar, tmp_path / "model", ModelArguments(model_type="mamba", config_overrides=overrides))
    done = run("-m", "imagelm", "export", "--model", folder)
    assert done.returncode == 2 and "a mamba model can't be exported to onnx" in done.stderr
    assert not (folder / "onnx").exists()


def save(grammar, folder: Path, arguments: ModelArguments) -> Path:
    tokenizer = build_tokenizer(grammar, 12)
    model = build_model(arguments, tokenizer, 12, None)
    save_model(model, folder, tokenizer, model.state_dict())
    save_tokenizer(tokenizer, folder)
    return folder
