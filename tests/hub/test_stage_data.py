"""Staging prepared data: its own files only, the rows in order, and those that the model was trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from datasets import load_dataset

from imagelm.data.load import load_prepared
from imagelm.hub import stage_data as dataset_repo
from imagelm.hub.arguments import PushArguments
from imagelm.hub.checks import check_staged
from imagelm.hub.stage_data import stage_dataset
from imagelm.hub.staged import DATASET_FILES
from imagelm.utils.errors import InputError
from tests.conftest import CLASSES
from tests.damage import edit_column
from tests.hub.common import MODEL, ROWS
from tests.images import cats_and_dogs, class_folder, prepare_images, smooth_images


def test_only_dataset_files_of_a_prepared_folder_are_uploaded(pictured: Path, tmp_path: Path):
    data = Path(shutil.copytree(pictured / "data", tmp_path / "data"))
    for name in ("tokenizer/.env", "codec/state.pkl", "me.png", "bad_rows.jsonl"):
        (data / name).write_text("mine")
    options = PushArguments(model_dir="x", repo_id=MODEL, dataset_dir=str(data), dataset_repo_id=ROWS)
    staged = stage_dataset(options, tmp_path / "staged")
    assert not [name for name in staged.files if name.endswith((".env", ".pkl", "bad_rows.jsonl", "me.png"))]
    assert set(staged.files) <= {
        *DATASET_FILES,
        *(f"data/{side}-00000-of-00001.parquet" for side in ("train", "validation", "test")),
    }
    assert {note for note in staged.notes if note.startswith("not uploaded")} == {
        "not uploaded: data/bad_rows.jsonl (may name files of this machine)",
        "not uploaded: data/codec/state.pkl (not a dataset file)",
        "not uploaded: data/me.png (not a dataset file)",
        "not uploaded: data/tokenizer/.env (not a dataset file)",
    }


def test_shards_together_hold_the_rows_in_order_and_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images = smooth_images(45, channels=3)
    class_folder(tmp_path / "in", {name: images[i::3] for i, name in enumerate(CLASSES)})
    prepare_images(tmp_path / "data", tmp_path / "in", keep_images=True)
    monkeypatch.setattr(dataset_repo, "SHARD_BYTES", 2_000)
    options = PushArguments(model_dir="x", repo_id=MODEL, dataset_dir=str(tmp_path / "data"), dataset_repo_id=ROWS)
    staged = stage_dataset(options, tmp_path / "staged")
    check_staged([staged], None)
    assert len([name for name in staged.files if name.startswith("data/train-")]) > 2
    loaded = load_dataset(str(staged.folder), cache_dir=str(tmp_path / "cache"))
    for side, rows in load_prepared(tmp_path / "data").items():
        assert loaded[side].features == rows.features and loaded[side]["input_ids"][:] == rows["input_ids"][:]
        assert all(a.tobytes() == b.tobytes() for a, b in zip(loaded[side]["image"], rows["image"], strict=True))


@pytest.mark.parametrize("column", ["image", "label"])
def test_rows_that_were_changed_are_not_published(tmp_path: Path, column: str):
    cats_and_dogs(tmp_path / "in")
    prepare_images(tmp_path / "data", tmp_path / "in", keep_images=True)
    edit_column(tmp_path / "data", "train", column, lambda values: [*values[1:], values[0]])
    options = PushArguments(model_dir="x", repo_id=MODEL, dataset_dir=str(tmp_path / "data"), dataset_repo_id=ROWS)
    with pytest.raises(InputError, match=f"train: other values, or another order of rows, in column {column}"):
        stage_dataset(options, tmp_path / "staged")
    assert not (tmp_path / "staged").exists()


def test_rows_that_the_model_was_not_trained_on_are_not_published_as_its_own(pictured: Path, tmp_path: Path):
    prepare_images(tmp_path / "data", pictured / "in", seed=7)
    folders = {"model_dir": str(pictured / "out/best_model"), "dataset_dir": str(tmp_path / "data")}
    with pytest.raises(InputError, match="was trained on data with the fingerprint"):
        stage_dataset(PushArguments(repo_id=MODEL, dataset_repo_id=ROWS, **folders), tmp_path / "staged")
    folders["dataset_dir"] = str(pictured / "data")
    stage_dataset(PushArguments(repo_id=MODEL, dataset_repo_id=ROWS, **folders), tmp_path / "staged")
