"""What is decided before the first step."""

from __future__ import annotations

from transformers import TrainingArguments

from imagelm.training.launch import OneDeviceArguments


def test_a_process_uses_one_gpu_however_many_are_visible(tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 4))
    args = OneDeviceArguments(output_dir=str(tmp_path), use_cpu=True, per_device_train_batch_size=8)
    assert (args.n_gpu, args.train_batch_size, args.eval_batch_size) == (1, 8, 8)
