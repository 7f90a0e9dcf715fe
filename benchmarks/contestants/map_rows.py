"""`load_dataset` and `map`, as the documentation prepares JSON rows: no check, no deduplication, no split."""

from __future__ import annotations

import sys

import datasets
from transformers import AutoTokenizer

file, tokenizer_folder, output, cache = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
rows = datasets.load_dataset("json", data_files=file, split="train", cache_dir=cache)
rows = rows.map(lambda batch: tokenizer(batch["tokens"]), batched=True, remove_columns=["tokens"])
rows.save_to_disk(output)
