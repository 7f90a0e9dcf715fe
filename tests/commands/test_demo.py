"""The README's first command for three seeds, and memory that doesn't grow with the input; these tests take minutes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, run, write_jsonl

PROJECT = ("Makefile", "requirements.txt", "prepare_dataset.py", "train.py", "inference.py", "accelerate_config.yaml")
FOLDERS = ("imagelm", "examples", "recipes")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 42])
def test_the_demo_reaches_97_percent(tmp_path, seed):
    for name in PROJECT:
        shutil.copy(ROOT / name, tmp_path)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/installed").touch()  # the demo is tested, not pip
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run(
        ["make", "demo", f"SEED={seed}"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    output = tmp_path / "outputs/digits"
    assert {"best_model", "final_model", "report"} <= {entry.name for entry in output.iterdir()}
    results = json.loads((output / "best_model/eval_results.json").read_text())
    assert results["eval_samples"] >= 355  # 360, less images that equal another after quantization
    assert results["eval_cls_accuracy"] >= 0.97
    assert 0 < results["majority_accuracy"] < results["bag_of_tokens_accuracy"] < results["eval_cls_accuracy"]
    assert f"CLS-slot accuracy      {results['eval_cls_accuracy']:.4f}" in done.stdout
    # Classifying from the saved folder gives the accuracy that training reported, for any batch size.
    for batch_size in (1, 7, 64):
        words = [
            "--model",
            output / "best_model",
            "--mode",
            "classify",
            "--dataset_dir",
            tmp_path / "data/digits/prepared",
        ]
        answered = run("inference.py", *words, "--batch_size", batch_size, "--output", tmp_path / f"{batch_size}.jsonl")
        assert answered.returncode == 0, answered.stderr
        assert f"accuracy {results['eval_cls_accuracy']:.4f}" in answered.stdout
    answers = [(tmp_path / f"{batch_size}.jsonl").read_text().splitlines() for batch_size in (1, 7, 64)]
    predictions = [[json.loads(line)["prediction"] for line in lines] for lines in answers]
    assert predictions[0] == predictions[1] == predictions[2]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_tokens_of_the_input(tmp_path, grammar, vocab_file):
    """Compares the peak anonymous memory for 20,000 rows of 20 and of 400 tokens: 8 MB and 160 MB of text."""
    peaks = []
    for length in (20, 400):
        rng = np.random.default_rng(length)
        names = np.array([f"<Z_{entry:03d}>" for entry in range(30)])
        rows = [
            {"tokens": f"<IMG> {' '.join(names[row])} </IMG> <CLS> <CLS_{i % 3}> <EOS>", "label": i % 3}
            for i, row in enumerate(rng.integers(0, 30, (20_000, length)))
        ]
        file = write_jsonl(tmp_path / f"{length}.jsonl", rows)
        output = tmp_path / f"out{length}"
        command = [sys.executable, "prepare_dataset.py", "--data_files", file, "--vocab_file", vocab_file]
        process = subprocess.Popen([*command, "--output_dir", output], cwd=ROOT, stdout=subprocess.DEVNULL)
        peak = 0
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            if "RssAnon:" in status:
                peak = max(peak, int(status.split("RssAnon:")[1].split()[0]))
            time.sleep(0.02)
        assert process.returncode == 0
        peaks.append(peak / 1024)
    assert peaks[1] - peaks[0] < 120  # MiB: chunks of 8 MiB and their decoded rows, for any input
