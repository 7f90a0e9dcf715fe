"""transformers' own server, started on a saved model, answers as the CLS slot does, without code of this project."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from imagelm.data.load import load_prepared
from tests.conftest import CLASSES
from tests.models.common import scores_by_hand
from tests.separate import environment, install

NEEDED = ("fastapi", "openai")  # of the extra `transformers[serving]`; the rest is installed
START = "import sys; from transformers.cli.transformers import main; sys.argv[0] = 'transformers'; main()"


@pytest.fixture(scope="module")
def address(pictured: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server's address; a cold cache, and a model whose code files end the process that runs them."""
    home = tmp_path_factory.mktemp("serve")
    packages = install(home / "packages", *NEEDED, dependencies=True)
    shutil.copytree(pictured / "out/best_model", home / "model")
    for code in (home / "model").glob("*.py"):
        code.write_text("raise SystemExit('run without trust')")
    words = ["serve", "--host", "127.0.0.1", "--port", "0", "--device", "cpu"]
    with open(home / "log.txt", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", START, *words],
            cwd=home,
            env=environment(packages, home / "cache"),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", (home / "log.txt").read_text())):
            assert process.poll() is None, (home / "log.txt").read_text()
            time.sleep(0.2)
        yield found.group()
    finally:
        process.terminate()
        process.wait(timeout=30)


def post(address: str, **body: object) -> dict:
    request = Request(address, json.dumps({"model": "model"} | body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=120) as answer:
        return json.load(answer)


@pytest.mark.slow
def test_systemone_gives_the_probabilities_of_the_cls_slot(address: str, pictured: Path):
    folder = pictured / "out/best_model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [ids[:-2] for split in load_prepared(pictured / "data").values() for ids in split["input_ids"][:]]
    rows += [[ids[0], *ids[-3:0:-1], *ids[-2:]] for ids in rows]  # the same images, turned by 180 degrees
    question = {"type": "choice", "criteria": dict.fromkeys(CLASSES)}
    for ids in rows:
        state = tokenizer.decode(ids)
        answer = post(f"{address}/v1/systemone", state=state, questions={"class": question})["answers"]["class"]
        expected = scores_by_hand(folder, ids)
        assert answer["probabilities"] == pytest.approx(expected, abs=2e-6)
        assert answer["choice"] == max(expected, key=expected.get)
    assert len(rows) >= 50


@pytest.mark.slow
def test_completions_continue_a_row_as_greedy_generation_does(address: str, pictured: Path):
    folder = pictured / "out/best_model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = load_prepared(pictured / "data")["test"][0]["input_ids"]
    for length in (1, 5, len(ids) - 2):
        answer = post(f"{address}/v1/completions", prompt=tokenizer.decode(ids[:length]), max_tokens=4)
        written = model.generate(torch.tensor([ids[:length]]), max_new_tokens=4, do_sample=False)[0, length:]
        assert answer["choices"][0]["text"] == tokenizer.decode(written, skip_special_tokens=True)
