"""The demo Space, run as the Hub runs it: from its own folder, with gradio, for models with and without a codec."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from imagelm.hub.arguments import PushArguments
from imagelm.hub.stage_space import SDK_VERSION, stage_space
from tests.conftest import CLASSES
from tests.separate import environment, install

CLIENT = """
import json, sys
from PIL import Image
from gradio_client import Client, handle_file

client, kind, value = Client(sys.argv[1], verbose=False), sys.argv[2], sys.argv[3]
if kind == "rows":
    print(json.dumps([client.predict(value, api_name="/classify_tokens")]))
else:
    label, seen = client.predict(handle_file(value), api_name="/classify")
    completed = client.predict(handle_file(value), 50, 3, 1.0, 0, api_name="/complete")
    drawn = client.predict(2, 0.8, 1, api_name="/new_images")
    sizes = [Image.open(entry["image"]).size for entry in [*completed, *drawn]]
    print(json.dumps([label, sizes]))
"""


@pytest.fixture(scope="module")
def gradio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("gradio"), f"gradio=={SDK_VERSION}", dependencies=True)


@contextmanager
def app(gradio: Path, model: Path, tmp_path: Path):
    """The demo's address while it runs."""
    options = PushArguments(model_dir=str(model), repo_id="me/model", space_repo_id="me/demo")
    staged = stage_space(options, tmp_path / "space")
    more = {"MODEL_ID": str(model), "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(tmp_path / "temporary")}
    log = tmp_path / "log.txt"
    with open(log, "w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-u", "app.py"],
            cwd=staged.folder,
            env=environment(gradio, tmp_path / "home", NO_PROXY="127.0.0.1,localhost", **more),
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(120):
            if address := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
                break
            assert process.poll() is None, log.read_text()
            time.sleep(1)
        yield address.group()
    finally:
        process.terminate()
        process.wait(timeout=30)


def ask(gradio: Path, address: str, kind: str, value: str, tmp_path: Path) -> list:
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, address, kind, value],
        env=environment(gradio, tmp_path / "home", NO_PROXY="127.0.0.1,localhost", TMPDIR=os.fspath(tmp_path)),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_demo_classifies_completes_and_generates(gradio: Path, pictured: Path, tmp_path: Path):
    Image.new("RGB", (40, 30), (200, 30, 90)).save(tmp_path / "picture.png")
    with app(gradio, pictured / "out/best_model", tmp_path) as address:
        label, sizes = ask(gradio, address, "images", str(tmp_path / "picture.png"), tmp_path)
    assert {entry["label"] for entry in label["confidences"]} == set(CLASSES)
    assert abs(sum(entry["confidence"] for entry in label["confidences"]) - 1) < 1e-5
    assert sizes == [[224, 224]] * 5


@pytest.mark.slow
def test_without_a_codec_the_demo_accepts_rows_and_hides_the_answer(gradio: Path, trained: Path, tmp_path: Path):
    with app(gradio, trained / "best_model", tmp_path) as address:
        answers = [
            ask(gradio, address, "rows", f"<IMG> <Z_001> <Z_002> </IMG> {tail}", tmp_path)
            for tail in ("", "<CLS> <CLS_0> <EOS>", "<CLS> <CLS_2> <EOS>")
        ]
    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0][0]["confidences"]) == 3
