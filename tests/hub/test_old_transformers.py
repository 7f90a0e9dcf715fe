"""The oldest versions of transformers that the card names, run with these versions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForCausalLM

from imagelm.data.load import load_prepared
from imagelm.hub.arguments import PushArguments
from imagelm.hub.card import OLDEST_FOR_PIPELINE, OLDEST_TRANSFORMERS
from imagelm.hub.stage_model import stage_model
from tests.separate import environment, install

VERSIONS = {  # and the versions that they need of what they are made of
    "4.41": ("transformers==4.41.0", "tokenizers==0.19.1", "huggingface_hub==0.23.5"),
    "4.57": ("transformers==4.57.6", "tokenizers==0.22.1", "huggingface_hub==0.36.0"),
}
CODE = """
import json, sys
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, GPT2Tokenizer, PreTrainedTokenizerFast

folder, text, image_file = sys.argv[1:]
found = {"version": transformers.__version__}
for kind in (AutoTokenizer, PreTrainedTokenizerFast, GPT2Tokenizer):
    tokenizer = kind.from_pretrained(folder)
    found[kind.__name__] = tokenizer(text)["input_ids"]
    row = tokenizer(text, return_tensors="pt")
    for model in (AutoModelForCausalLM, GPT2LMHeadModel):
        with torch.no_grad():
            found[f"{kind.__name__} {model.__name__}"] = model.from_pretrained(folder)(**row).logits.tolist()
if image_file:
    pipe = transformers.pipeline("image-classification", model=folder, trust_remote_code=True)
    found["pipeline"] = pipe(image_file)
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_version_reads_the_repository_and_gives_the_same_logits(version: str, pictured: Path, tmp_path: Path):
    staged = stage_model(
        PushArguments(model_dir=str(pictured / "out/best_model"), repo_id="me/x", num_drawings=0), tmp_path / "model"
    )
    row = load_prepared(pictured / "data")["test"][0]["input_ids"]
    text = json.loads((staged.folder / "eval_results.json").read_text())["example_row"]
    image_file = ""
    if version == OLDEST_FOR_PIPELINE:
        image_file = str(tmp_path / "picture.png")
        Image.new("RGB", (40, 30), (200, 30, 90)).save(image_file)
    packages = install(tmp_path / "packages", *VERSIONS[version], dependencies=False)
    done = subprocess.run(
        [sys.executable, "-c", CODE, staged.folder, text, image_file],
        env=environment(packages, tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("version").startswith(version)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(staged.folder)(torch.tensor([row])).logits
    assert (len(found.pop("pipeline")) == 3) if image_file else "pipeline" not in found
    for name, value in found.items():
        if " " in name:
            torch.testing.assert_close(torch.tensor(value), logits, msg=name)
        else:
            assert value == row, name
    assert set(VERSIONS) == {OLDEST_TRANSFORMERS, OLDEST_FOR_PIPELINE}
