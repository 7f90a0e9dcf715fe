"""Tiny real things for all tests: a shuffled vocabulary, ragged rows, a prepared dataset, a trained folder.

Rows can be learnt: the body of class y holds codes of y's own range, so that a small model does better than chance.
"""

from __future__ import annotations

import os
import tempfile

# Before any library reads them: no network, nothing left behind, one thread a process (two workers share the cores).
_HOME = tempfile.TemporaryDirectory(prefix="imagelm-tests-")
os.environ |= {
    "HF_HOME": _HOME.name,
    "HF_HUB_OFFLINE": "1",
    "HF_XET_CLIENT_RETRY_BASE_DELAY": "10ms",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLCONFIGDIR": _HOME.name,
    "TORCHINDUCTOR_CACHE_DIR": f"{_HOME.name}/inductor",
}

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imagelm.data.arguments import PrepareArguments
from imagelm.data.prepare import prepare
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.vocabulary import make_vocabulary
from tests.forks import Fork
from tests.images import class_folder, prepare_images, smooth_images

pytest_plugins = ["tests.inference.fixtures", "tests.browser"]

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("IMAGELM_TEST_DATA", ROOT.parent / "shared/data"))  # what no clone has: CONTRIBUTING.md
NUM_CODES, NUM_CLASSES = 30, 3
CLASSES = ["cat", "dog", "snow owl"]  # of `pictured`


@pytest.fixture(scope="session")
def grammar() -> Grammar:
    """40-odd tokens whose ids are shuffled: nothing may assume an order of ids."""
    tokens = list(make_vocabulary(NUM_CODES, NUM_CLASSES))
    order = np.random.default_rng(7).permutation(len(tokens))
    return Grammar({token: int(i) for token, i in zip(tokens, order, strict=True)})


def sentence(codes, label: int) -> str:
    """A row written by hand, independent of the grammar."""
    return f"<IMG> {' '.join(f'<Z_{code:03d}>' for code in codes)} </IMG> <CLS> <CLS_{label}> <EOS>"


def random_rows(num_rows: int, seed: int, low: int = 3, high: int = 9) -> list[dict]:
    """Ragged rows, all different, `low` to `high` codes each."""
    rng = np.random.default_rng(seed)
    rows, seen = [], set()
    while len(rows) < num_rows:
        label = len(rows) % NUM_CLASSES
        codes = tuple(rng.integers(0, 10, rng.integers(low, high + 1)) + 10 * label)
        codes = tuple(np.where(rng.random(len(codes)) < 0.3, rng.integers(0, NUM_CODES, len(codes)), codes))
        if codes not in seen:
            seen.add(codes)
            rows.append({"tokens": sentence(codes, label), "label": label})
    return rows


def write_jsonl(file: Path, rows: list) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def vocab_file(tmp_path: Path, grammar: Grammar) -> Path:
    file = tmp_path / "vocab.json"
    file.write_text(json.dumps(grammar.vocabulary))
    return file


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory, grammar: Grammar) -> Path:
    """A prepared dataset of 98 ragged rows: 72 train, 8 validation, 18 test."""
    folder = tmp_path_factory.mktemp("prepared")
    rows = write_jsonl(folder / "rows.jsonl", random_rows(98, seed=0))
    (folder / "vocab.json").write_text(json.dumps(grammar.vocabulary))
    prepare(
        PrepareArguments(
            data_files=[str(rows)],
            vocab_file=str(folder / "vocab.json"),
            output_dir=str(folder / "data"),
            test_size=0.18,
        ),
        command="test",
    )
    return folder / "data"


TINY = [
    *("--config_overrides", "num_hidden_layers=2,hidden_size=32,num_attention_heads=2"),
    *("--per_device_train_batch_size", "8", "--learning_rate", "3e-3", "--use_cpu", "--num_threads", "1"),
    *("--disable_tqdm", "true", "--bf16", "false"),  # the same figures on every CPU
]


def run(*words: object, cwd: Path = ROOT, given: bytes = b"", **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of this environment's Python as a user would, in a fork of a process that waits for it."""
    fork = Fork(list(map(str, words)), cwd, os.environ | environment, given)
    out, err = fork.communicate()
    return subprocess.CompletedProcess(fork.args, fork.returncode, out, err)


def run_anew(*words: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a new process, where starting Python is what is tested."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=500,
    )


def train(prepared: Path, output: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Runs `train.py` on a tiny model."""
    return run("train.py", "--dataset_dir", prepared, "--output_dir", output, *TINY, *words)


@pytest.fixture(scope="session")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder of a short finished run."""
    output = tmp_path_factory.mktemp("trained") / "out"
    done = train(prepared, output, "--num_train_epochs", "6")
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="session")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures of `CLASSES` in `in`, the data prepared of them in `data`, a short run in `out`."""
    home = tmp_path_factory.mktemp("home")
    pictures = smooth_images(45, channels=3)
    class_folder(home / "in", {name: pictures[i::3] for i, name in enumerate(CLASSES)})
    prepare_images(home / "data", home / "in")
    done = train(home / "data", home / "out", "--num_train_epochs", "3")
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture
def hub(tmp_path: Path):
    """A Hub on loopback with no repositories yet."""
    from testing.local_hub import LocalHub

    with LocalHub(tmp_path / "hub") as hub:
        yield hub
