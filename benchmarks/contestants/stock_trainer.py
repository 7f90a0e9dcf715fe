"""Stock GPT-2 in the stock Trainer, as a user would start. Same rows, size and dropout as the others.

Everything else is the libraries' default: sdpa attention, gelu_new, fused AdamW, the library's collator.
"""

from __future__ import annotations

import argparse
import tempfile

import datasets
import torch
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)

parser = argparse.ArgumentParser()
parser.add_argument("--dataset_dir", required=True)
parser.add_argument("--length", type=int, required=True)
parser.add_argument("--batch_size", type=int, required=True)
parser.add_argument("--dropout", type=float, required=True)
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
parser.add_argument("--layers", type=int, default=6)
parser.add_argument("--width", type=int, default=384)
parser.add_argument("--heads", type=int, default=8)
given = parser.parse_args()

torch.set_num_threads(given.threads)
tokenizer = AutoTokenizer.from_pretrained(f"{given.dataset_dir}/tokenizer")
rows = datasets.load_from_disk(given.dataset_dir)["train"].select_columns(["input_ids"])
config = GPT2Config(
    vocab_size=len(tokenizer),
    n_positions=given.length,
    n_layer=given.layers,
    n_embd=given.width,
    n_head=given.heads,
    resid_pdrop=given.dropout,
    embd_pdrop=given.dropout,
    attn_pdrop=given.dropout,
    bos_token_id=tokenizer.bos_token_id,
    eos_token_id=tokenizer.eos_token_id,
    pad_token_id=tokenizer.pad_token_id,
)
with tempfile.TemporaryDirectory() as folder:
    Trainer(
        model=GPT2LMHeadModel(config),
        args=TrainingArguments(
            folder,
            per_device_train_batch_size=given.batch_size,
            bf16=given.dtype == "bfloat16",
            use_cpu=given.device == "cpu",
            save_strategy="no",
            num_train_epochs=1000,
            disable_tqdm=True,
        ),
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    ).train()
