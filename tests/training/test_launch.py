"""What is decided before the first step."""

from __future__ import annotations

import shutil

import pytest
from transformers import TrainingArguments

from imagelm.commands.train import parse_launch, run
from imagelm.training.launch import OneDeviceArguments
from imagelm.utils.errors import InputError
from tests.damage import edit_column, with_token


def test_a_process_uses_one_gpu_however_many_are_visible(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 4))
    args = OneDeviceArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=8)
    assert (args.n_gpu, args.train_batch_size, args.eval_batch_size) == (1, 8, 8)


def test_changed_rows_are_refused_before_anything_is_written(prepared, tmp_path):
    data = shutil.copytree(prepared, tmp_path / "data")
    edit_column(data, "train", "input_ids", with_token(2, 999))
    words = ["--dataset_dir", str(data), "--output_dir", str(tmp_path / "out"), "--use_cpu", "true"]
    with pytest.raises(InputError, match="train: row 4: token 3 has id 999"):
        run(parse_launch(words))
    assert not (tmp_path / "out").exists()
