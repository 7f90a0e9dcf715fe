"""The predecessor's images and codebook give exactly its published tokens."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from imagelm.codecs.kmeans import read_unified_codebook
from tests.conftest import SHARED, run

PREDECESSOR = SHARED / "predecessor1000"


@pytest.fixture(scope="module")
def predecessor() -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Images, labels, the numbers of their files, and the published rows up to `</IMG>`."""
    if not PREDECESSOR.is_dir():
        pytest.skip("the predecessor's data aren't here")
    with np.load(PREDECESSOR / "images.npz") as arrays:
        images, labels = arrays["image"], arrays["label"]
    # The index within the class; class 9 lacks its image 58.
    t = np.concatenate([np.tile(np.arange(100), 9), np.delete(np.arange(100), 58)])
    with gzip.open(PREDECESSOR / "sequences_labels_fixed.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    assert [row["label"] for row in rows] == labels.tolist()
    return images, labels, t, [row["tokens"].split(" </IMG>")[0] for row in rows]


def as_text(entries: np.ndarray) -> list[str]:
    return [" ".join(["<IMG>", *(f"<Z_{entry:03d}>" for entry in row)]) for row in entries.tolist()]


def test_the_predecessors_codebook_gives_exactly_the_predecessors_tokens(predecessor):
    images, _, t, rows = predecessor
    codec = read_unified_codebook(PREDECESSOR / "unified_codebook.csv", (28, 28), 1)
    assert as_text(codec.encode(images[..., None], t=t)) == rows


def test_the_command_gives_exactly_the_predecessors_tokens(predecessor, tmp_path):
    images, labels, t, rows = predecessor
    np.savez(tmp_path / "with_t.npz", image=images, label=labels, t=t)
    done = run(
        *("prepare_dataset.py", "--images", tmp_path / "with_t.npz", "--output_dir", tmp_path / "out"),
        *("--codebook", "unified", "--centroids", PREDECESSOR / "unified_codebook.csv", "--write_jsonl"),
        *("--device", "cpu"),
    )
    assert done.returncode == 0, done.stderr
    written = [json.loads(line) for line in (tmp_path / "out/raw/rows.jsonl").read_text().splitlines()]
    assert [row["label"] for row in written] == labels.tolist()
    assert [row["tokens"].split(" </IMG>")[0] for row in written] == rows
    vocabulary = json.loads((PREDECESSOR / "vocab.json").read_text())
    assert json.loads((tmp_path / "out/raw/vocab.json").read_text()) == vocabulary
