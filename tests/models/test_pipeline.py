"""The pipeline that goes out with a model, and the folder where this package can't be imported."""

from __future__ import annotations

import base64
import functools
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError
from transformers import AutoModelForCausalLM, pipeline

from tests.conftest import CLASSES, run_anew
from tests.models.common import scores_by_hand

WITHOUT = (
    "import sys\n"
    "class Nothing:\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name.split('.')[0] == 'imagelm': raise ImportError('imagelm was asked for')\n"
    "sys.meta_path.insert(0, Nothing())\n"
)


def test_the_pipeline_gives_every_class_its_probability(folder, processor, picture):
    classify = pipeline("image-classification", model=str(folder), trust_remote_code=True)
    found = classify(str(picture))
    expected = scores_by_hand(folder, processor(images=picture)["input_ids"][0].tolist())
    assert [entry["label"] for entry in found] == sorted(expected, key=expected.get, reverse=True)
    assert sorted(expected) == CLASSES
    assert {entry["label"]: entry["score"] for entry in found} == pytest.approx(expected, rel=1e-5)
    assert sum(entry["score"] for entry in found) == pytest.approx(1)
    assert classify(Image.open(picture), top_k=1) == found[:1]
    assert classify(str(picture), top_k=None) == found


def test_the_pipeline_takes_bytes_and_base64_and_applies_the_function_that_is_asked_for(folder, processor, picture):
    classify = pipeline("image-classification", model=str(folder), trust_remote_code=True)
    content = picture.read_bytes()
    text = base64.encodebytes(content).decode()
    expected = classify(str(picture))
    for image in (content, text, "".join(text.split()), f"data:image/png;base64,{text}"):
        assert classify(image) == expected
    with pytest.raises(FileNotFoundError, match="cats"):
        classify("cats")
    softmax, sigmoid, logits = (
        {entry["label"]: entry["score"] for entry in classify(content, function_to_apply=name)}
        for name in ("softmax", "SIGMOID", "none")
    )
    by_hand = scores_by_hand(folder, processor(images=picture)["input_ids"][0].tolist())
    assert softmax == pytest.approx(by_hand, rel=1e-5)
    assert sigmoid == pytest.approx({name: 1 / (1 + np.exp(-logit)) for name, logit in logits.items()}, rel=1e-5)
    powers = {name: np.exp(logit) for name, logit in logits.items()}
    assert softmax == pytest.approx({name: power / sum(powers.values()) for name, power in powers.items()}, rel=1e-5)
    with pytest.raises(ValueError, match="choose one of softmax, sigmoid, none"):
        classify(content, function_to_apply="tanh")


def test_a_length_in_the_call_needs_no_warning(folder, caplog):
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.generate(torch.tensor([[2]]), max_new_tokens=2, do_sample=False)
    assert model.generation_config.max_length is None
    assert not [record for record in caplog.records if "max_length" in record.getMessage()]


def test_the_pipeline_takes_several_pictures_and_batches_them(folder, home):
    classify = pipeline("image-classification", model=str(folder), trust_remote_code=True)
    files = [str(file) for file in sorted((home / "in").rglob("*.png"))[::7]]
    alone = [classify(file) for file in files]
    for found in (classify(files), classify(files, batch_size=3)):
        assert len(found) == len(files)
        for one, two in zip(found, alone, strict=True):
            assert {e["label"]: e["score"] for e in one} == pytest.approx(
                {e["label"]: e["score"] for e in two}, rel=1e-4
            )


def test_without_trust_the_image_pipeline_is_refused_clearly(folder):
    for load in (
        lambda: pipeline("image-classification", model=str(folder), trust_remote_code=False),
        lambda: pipeline("image-classification", model=str(folder)),
    ):
        with pytest.raises((ValueError, OSError), match="trust_remote_code"):
            load()


def test_the_folder_works_where_imagelm_cannot_be_imported(folder, processor, picture, tmp_path):
    """Model, tokenizer and text generation without any code of the folder; processor and pipeline with it."""
    code = WITHOUT + (
        "import json, torch\n"
        "from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, pipeline\n"
        "folder, picture = sys.argv[1:]\n"
        "model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)\n"
        "write = pipeline('text-generation', model=folder)\n"
        "text = write('<IMG> <Z_001>', max_new_tokens=3, do_sample=False)[0]['generated_text']\n"
        "assert not [name for name in sys.modules if 'imagelm' in name], sys.modules.keys()\n"
        "processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)\n"
        "batch = processor(images=picture)\n"
        "drawn = processor.decode_images(batch['input_ids'])[0]\n"
        "scores = pipeline('image-classification', model=folder, trust_remote_code=True)(picture)\n"
        "assert 'imagelm' not in sys.modules\n"
        "names = tokenizer.convert_ids_to_tokens(batch['input_ids'][0].tolist())\n"
        "print(json.dumps([text, batch['input_ids'].tolist(), names, scores, list(drawn.tobytes())]))\n"
    )
    done = run_anew("-I", "-c", code, folder, picture, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text, ids, names, scores, drawn = json.loads(done.stdout.splitlines()[-1])
    assert ids == processor(images=picture)["input_ids"].tolist()
    assert names[0] == "<IMG>" and names[-1] == "<CLS>"
    assert text.startswith("<IMG> <Z_001>") and len(re.findall(r"<[^>]+>", text)) == 5
    expected = scores_by_hand(folder, ids[0])
    assert {entry["label"]: entry["score"] for entry in scores} == pytest.approx(expected, rel=1e-5)
    assert drawn == list(processor.decode_images(ids)[0].tobytes())
    assert list(tmp_path.iterdir()) == []


def test_a_saved_pipeline_is_loaded_as_the_folder_was(folder, picture, tmp_path):
    pipe = pipeline("image-classification", model=str(folder), trust_remote_code=True)
    pipe.save_pretrained(tmp_path / "saved")
    again = pipeline("image-classification", model=str(tmp_path / "saved"), trust_remote_code=True)
    assert again(str(picture)) == pipe(str(picture))


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder's files over HTTP, on loopback; gives their address."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_only_formats_that_pillow_reads_by_itself_are_opened(processor, folder, tmp_path, monkeypatch):
    program = tmp_path / "bin/gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    (tmp_path / "cat.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    classify = pipeline("image-classification", model=str(folder), trust_remote_code=True)
    with served(tmp_path) as address:
        for name in (tmp_path / "cat.png", str(tmp_path / "cat.png"), f"{address}/cat.png"):
            for read in (lambda name: processor(images=name), lambda name: classify(str(name))):
                with pytest.raises(UnidentifiedImageError):
                    read(name)
    assert not (tmp_path / "started").exists()


def test_an_image_behind_an_address_is_read_as_the_file_is(processor, picture):
    with served(picture.parent) as address:
        there, here = processor(images=f"{address}/cat.png"), processor(images=picture)
    assert there["input_ids"].tolist() == here["input_ids"].tolist()
