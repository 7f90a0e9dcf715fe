"""An exported graph gives the model's answers in every mode, and only for the weights that it was made from."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from imagelm.export.arguments import ExportArguments
from imagelm.export.graph import export_model
from imagelm.hub.arguments import PushArguments
from imagelm.hub.checks import check_staged
from imagelm.hub.stage_model import stage_model
from imagelm.hub.staged import is_ours
from imagelm.inference.arguments import LoadArguments
from imagelm.inference.loading import load_for_inference
from imagelm.utils.artifacts import EXPORT_FILE, MANIFEST_FILE
from imagelm.utils.errors import InputError
from tests.conftest import ROOT, run, run_anew
from tests.inference.fixtures import records, rows_of_test

onnx = pytest.importorskip("onnx", reason="requirements-onnx.txt isn't installed")
pytest.importorskip("onnxruntime", reason="requirements-onnx.txt isn't installed")
pytest.importorskip("transformers.exporters.runners", reason="exports need transformers 5.23")


@pytest.fixture(scope="module")
def folder(best: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained folder with its export: onnx/, and the same graph in openvino/ if OpenVINO is installed."""
    folder = Path(shutil.copytree(best, tmp_path_factory.mktemp("exported") / "best_model"))
    done = run("-m", "imagelm", "export", "--model", folder)
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr
    assert f"written: {folder / 'onnx'} (float32 weights)" in done.stdout
    assert "the same most probable token at 100.0 % of positions" in done.stdout
    return folder


@pytest.fixture(scope="module")
def with_openvino(folder: Path) -> Path:
    """The same graph as OpenVINO reads ONNX: tracing anew takes ten seconds, and a slow test does it."""
    openvino = pytest.importorskip("openvino", reason="requirements-openvino.txt isn't installed")
    (folder / "openvino").mkdir()
    openvino.save_model(
        openvino.convert_model(folder / "onnx/model.onnx"),
        folder / "openvino/openvino_model.xml",
        compress_to_fp16=False,
    )
    record = json.loads((folder / "onnx" / EXPORT_FILE).read_text())
    record["format"] = "openvino"
    (folder / "openvino" / EXPORT_FILE).write_text(json.dumps(record))
    return folder


def differences(folder: Path, backend: str) -> float:
    """The largest difference of logits from the stock class, over lengths, batch sizes and lengths of the cache."""
    stock = AutoModelForCausalLM.from_pretrained(folder).eval()
    exported = load_for_inference(LoadArguments(model=str(folder), backend=backend)).model
    found = 0.0
    for rows, cached, length in ((1, 0, 1), (1, 0, 2), (5, 0, 7), (2, 0, 13), (1, 1, 1), (3, 6, 1), (2, 5, 4)):
        ids = torch.randint(stock.config.vocab_size, (rows, cached + length))
        with torch.no_grad():
            expected = stock(input_ids=ids).logits
        parts, past = [], None
        for part in (ids[:, :cached], ids[:, cached:]) if cached else (ids,):
            output = exported(input_ids=part, past_key_values=past)
            parts, past = [*parts, output.logits], output.past_key_values
        found = max(found, float((torch.cat(parts, dim=1) - expected).abs().max()))
    return found


def test_logits_are_the_models_at_any_length_batch_size_and_cache(folder: Path):
    assert differences(folder, "onnx") < 1e-4


def test_openvino_gives_the_models_logits_too(with_openvino: Path):
    assert differences(with_openvino, "openvino") < 1e-4


def test_the_graph_has_the_names_that_others_look_for_in_one_file_without_paths(folder: Path):
    graph = onnx.load(folder / "onnx/model.onnx", load_external_data=False).graph
    pairs = [f"{i}.{kind}" for i in range(2) for kind in ("key", "value")]
    assert {value.name for value in graph.input} == {
        *("input_ids", "attention_mask", "position_ids"),
        *(f"past_key_values.{pair}" for pair in pairs),
    }
    assert [value.name for value in graph.output] == ["logits", *(f"present.{pair}" for pair in pairs)]
    assert sorted(file.name for file in (folder / "onnx").iterdir()) == ["complete.json", EXPORT_FILE, "model.onnx"]
    assert not re.search(rb"stack_trace|site-packages", (folder / "onnx/model.onnx").read_bytes())


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_every_mode_answers_as_with_torch(request, folder: Path, prepared: Path, tmp_path: Path, infer, backend: str):
    if backend == "openvino":
        request.getfixturevalue("with_openvino")
    rows = ["--dataset_dir", prepared, "--num_rows", 6]
    modes = [
        ["classify", *rows, "--score"],
        ["continue", *rows, "--num_beams", 3, "--num_return_sequences", 2],
        ["generate", "--num_samples", 4, "--seed", 5, "--batch_size", 3],
        ["next_token", *rows, "--keep_percent", 50],
        ["continue", *rows, "--greedy"],
    ]
    for mode in modes if backend == "onnx" else modes[:3]:
        answers = []
        for name in ("torch", backend):
            output = tmp_path / f"{name}.jsonl"
            infer("--model", folder, "--backend", name, "--mode", *mode, "--output", output, "--overwrite")
            answers.append(records(output))
        assert_alike(*answers)


def assert_alike(expected: object, found: object) -> None:
    """Equal, with numbers equal to four places."""
    if isinstance(expected, dict):
        assert isinstance(found, dict) and expected.keys() == found.keys()
        for name in expected:
            assert_alike(expected[name], found[name])
    elif isinstance(expected, list):
        assert isinstance(found, list) and len(expected) == len(found)
        for one, other in zip(expected, found, strict=True):
            assert_alike(one, other)
    else:
        assert found == (pytest.approx(expected, abs=1e-4, rel=1e-4) if isinstance(expected, float) else expected)


def test_the_prompt_answers_through_the_export(folder: Path):
    done = run(
        "inference.py", "--model", folder, "--backend", "onnx", "--mode", "interactive", given=b"generate\nquit\n"
    )
    assert done.returncode == 0 and "<IMG>" in done.stdout, done.stderr


def test_auto_takes_a_faster_export_of_these_weights_and_says_so(folder: Path, tmp_path: Path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_int8": True})
    copy = Path(shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("openvino")))
    auto = LoadArguments(model=str(copy), backend="auto", device="cpu")
    assert type(load_for_inference(auto).model).__name__ == "ExportedCausalLM"
    assert f"backend: onnx, float32 weights, from {copy / 'onnx'}" in caplog.text
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert type(load_for_inference(auto).model).__name__ == "GPT2LMHeadModel"
    assert "with float32 weights it is slower on this CPU" in caplog.text
    change_weights(copy)
    assert type(load_for_inference(auto).model).__name__ == "GPT2LMHeadModel"
    assert "was exported from other weights" in caplog.text and "backend: torch" in caplog.text


def change_weights(folder: Path) -> None:
    """Other values in the same file."""
    with open(folder / "model.safetensors", "r+b") as stream:
        stream.seek(-4, 2)
        stream.write(np.float32(0.25).tobytes())


def test_what_cant_answer_or_be_written_is_refused(folder: Path, best: Path, tmp_path: Path):
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    change_weights(other)
    torn = Path(shutil.copytree(folder / "onnx", tmp_path / "torn/onnx"))
    (torn / "model.onnx").write_bytes((torn / "model.onnx").read_bytes()[:999])
    model = {"model": str(best), "backend": "onnx"}
    for options, message in (
        ({**model, "model": str(other)}, "was exported from other weights"),
        (model, "holds no export; write it with imagelm export --format onnx"),
        ({**model, "export_dir": str(tmp_path / "torn")}, "can't be loaded"),
        ({**model, "dtype": "bfloat16"}, "computes on the CPU in float32"),
        ({**model, "backend": "torch", "export_dir": str(folder)}, "--export_dir has no effect with --backend torch"),
    ):
        with pytest.raises(InputError, match=message):
            load_for_inference(LoadArguments(**options))
    for options, message in (
        ({"model": str(folder)}, "is not empty; add --overwrite"),
        ({"model": "alice/animals"}, "for a Hub id give --output_dir"),
        ({"model": str(folder), "output_dir": "x", "push_to_hub": "alice/x"}, "remove --output_dir"),
        ({"model": str(folder), "format": "openvino", "slot_only": True}, "--slot_only needs --format onnx"),
        ({"model": str(folder), "push_to_hub": "alice/x", "slot_only": True}, "remove --slot_only"),
    ):
        with pytest.raises(InputError, match=message):
            export_model(ExportArguments(**options))


def test_a_missing_library_is_named_with_what_installs_it(best: Path, tmp_path: Path):
    code = "import sys; sys.modules['onnxscript'] = None; from imagelm.export.arguments import ExportArguments;"
    code += "from imagelm.export.graph import export_model;"
    code += f"export_model(ExportArguments(model={str(best)!r}, output_dir={str(tmp_path)!r}))"
    done = run("-c", code)
    assert 'pip install "imagelm[onnx]"' in done.stderr and not any(tmp_path.iterdir())


NOTHING_ELSE = """
import runpy, sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "imagelm"): raise ImportError(f"{name} was asked for")
sys.meta_path.insert(0, Nothing())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_example_classifies_without_torch_and_transformers(folder: Path, prepared: Path, tmp_path: Path):
    row = rows_of_test(prepared)[0].rsplit(" ", 2)[0]
    done = run_anew("-c", NOTHING_ELSE, ROOT / "examples/classify_onnx.py", folder, row, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    classes = [f"<CLS_{label}>" for label in range(3)]
    with torch.no_grad():
        logits = model(**tokenizer(row, return_tensors="pt")).logits[0, -1, tokenizer.convert_tokens_to_ids(classes)]
    shares = dict(zip(classes, logits.double().softmax(0).tolist(), strict=True))
    best_first = sorted(classes, key=lambda name: -shares[name])
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, _ in lines] == best_first
    assert [float(share) for _, share in lines] == pytest.approx([shares[name] for name in best_first], abs=2e-4)


def test_the_example_has_at_most_30_lines():
    assert len((ROOT / "examples/classify_onnx.py").read_text().splitlines()) <= 30


def test_a_push_takes_the_export_of_the_weights_and_no_other(folder: Path, tmp_path: Path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("openvino")))
    (copy / MANIFEST_FILE).unlink()  # as for a folder that another program wrote
    (copy / "onnx/notes.txt").write_text("mine")
    options = PushArguments(model_dir=str(copy), repo_id="alice/x", num_drawings=0)
    staged = stage_model(options, tmp_path / "staged")
    check_staged([staged], None)
    names = {name for name in staged.files if name.startswith("onnx/")}
    assert names == {"onnx/model.onnx", f"onnx/{EXPORT_FILE}"} and all(is_ours("model", name) for name in names)
    assert not is_ours("model", "onnx/notes.txt")
    assert "onnxruntime and transformers.js" in (staged.folder / "README.md").read_text()
    (copy / "eval_results.json").unlink()
    change_weights(copy)
    staged = stage_model(options, tmp_path / "again")
    assert not any(name.startswith("onnx/") for name in staged.files)
    assert any("was exported from other weights" in note for note in staged.notes)
    assert "Without PyTorch" not in (staged.folder / "README.md").read_text()


def test_a_path_or_token_in_a_graph_stops_the_push(folder: Path, tmp_path: Path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("openvino")))
    model = onnx.load(copy / "onnx/model.onnx")
    model.graph.node[0].doc_string = "traced in /home/alice/secret/model.py"
    onnx.save(model, copy / "onnx/model.onnx")
    (copy / "onnx/complete.json").unlink()
    options = PushArguments(model_dir=str(copy), repo_id="alice/x", num_drawings=0)
    with pytest.raises(InputError, match=r"onnx/model\.onnx:byte \d+: a local path, '/home/alice/secret/model.py'"):
        check_staged([stage_model(options, tmp_path / "staged")], None)
