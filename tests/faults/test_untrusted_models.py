"""Models of other people run no code of theirs, and a run keeps no secret in its files."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest

from imagelm.models.arguments import ModelArguments
from imagelm.models.build import build_model
from imagelm.tokens.tokenizer import load_tokenizer
from imagelm.utils.errors import InputError
from tests.conftest import train
from tests.faults.common import Payload

SECRET = "hf_NeverToBeSeenAnywhere"


def test_a_token_is_in_no_file_and_no_line_of_a_run(prepared, tmp_path):
    words = ("--max_steps", 4, "--save_strategy", "steps", "--save_steps", 2, "--hub_token", SECRET)
    done = train(prepared, tmp_path / "out", *words)
    assert done.returncode == 0, done.stderr
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert len(files) > 40
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []
    assert SECRET not in done.stdout + done.stderr
    assert "<hidden>" in json.loads((tmp_path / "out/run.json").read_text())["command"]
    assert [file for file in files if file.suffix in (".bin", ".pkl")] == []


def test_weights_that_are_a_pickle_are_read_without_running_it(prepared, trained, tmp_path):
    shutil.copytree(trained / "best_model", tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    (tmp_path / "model/pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(InputError, match="can't be loaded"):
        build_model(
            ModelArguments(model_name_or_path=str(tmp_path / "model")),
            load_tokenizer(prepared / "tokenizer"),
            14,
            "eager",
        )
    assert not (tmp_path / "ran").exists()


def test_code_that_comes_with_a_model_is_not_run_and_nobody_is_asked(prepared, trained, tmp_path):
    shutil.copytree(trained / "best_model", tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    config |= {
        "model_type": "theirs",
        "auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"},
    }
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    (tmp_path / "model/theirs.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n"
    )
    done = train(prepared, tmp_path / "out", "--model_name_or_path", tmp_path / "model")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "ran").exists()
