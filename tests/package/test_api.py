"""`import imagelm`: a handful of names, at hand at once, that do what the commands do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import imagelm
from tests.conftest import ROOT, random_rows, run, write_jsonl


def test_importing_the_package_imports_neither_torch_nor_transformers():
    code = (
        "import sys, imagelm\n"
        "assert {'prepare', 'train', 'load', 'push', 'LoadedModel'} <= set(dir(imagelm))\n"
        "imagelm.PrepareArguments, imagelm.PushArguments, imagelm.LoadArguments, imagelm.InputError\n"
        "assert not {'torch', 'transformers', 'datasets', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", imagelm.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(imagelm, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'imagelm' has no attribute 'prepair'"):
        imagelm.prepair  # noqa: B018


SCRIPT = """
import json
import datasets, imagelm, transformers

# The caller's settings of other libraries, which must be the same afterwards.
datasets.disable_progress_bars()
transformers.logging.set_verbosity_info()
stats = imagelm.prepare("data", data_files=["rows.jsonl"], vocab_file="vocab.json")
assert stats == json.load(open("data/stats.json"))
assert stats["command"] == "imagelm.prepare(output_dir='data', data_files=['rows.jsonl'], vocab_file='vocab.json')"
options = {
    "config_overrides": "num_hidden_layers=2,hidden_size=32,num_attention_heads=2",
    **{"use_cpu": True, "num_threads": 1, "max_steps": 2, "disable_tqdm": True, "eval_strategy": "steps"},
    **{"eval_steps": 2, "save_strategy": "steps", "save_steps": 2},
}
figures = imagelm.train("data", "out", **options)
command = json.load(open("out/run.json"))["command"]
assert command.startswith("imagelm.train(dataset_dir='data', output_dir='out', config_overrides='num_hidden_layers=2,")
assert figures == json.load(open("out/best_model/eval_results.json"))
try:  # the folder isn't locked any more, neither after a run nor after one that is refused
    imagelm.train("data", "out", **options, learning_rate=1e-4)
    raise AssertionError("another run was trained into the folder")
except imagelm.InputError as error:
    assert "holds a run with other settings:\\n  learning_rate: 0.0004 there, 0.0001 now" in str(error)
assert imagelm.train("data", "out", **options) == figures
model = imagelm.load("out/best_model")
assert isinstance(model, imagelm.LoadedModel)
assert model.grammar.vocabulary == json.load(open("vocab.json"))
imagelm.push("out/best_model", "me/x", dry_run="preview", num_drawings=0)
assert datasets.are_progress_bars_disabled() and transformers.logging.is_progress_bar_enabled()
assert transformers.logging.get_verbosity() == transformers.logging.INFO
"""


def test_the_functions_prepare_train_load_and_preview_a_push(vocab_file: Path, tmp_path: Path):
    write_jsonl(tmp_path / "rows.jsonl", random_rows(60, seed=0))
    done = run("-c", SCRIPT, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "preview/model/model.safetensors").is_file()
    assert done.stdout == ""  # a library prints nothing


def test_an_unknown_option_is_an_input_error(tmp_path):
    with pytest.raises(imagelm.InputError, match="no option '--learning_rat'; did you mean '--learning_rate'"):
        imagelm.train("data", str(tmp_path), learning_rat=1)
