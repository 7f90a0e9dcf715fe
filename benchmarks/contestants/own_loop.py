"""nanoGPT's and LitGPT's models in the plain loop of nanoGPT's train.py: autocast, clipping, AdamW.

The model comes from a checkout (`--checkout`). All rows are on the device, so loading batches costs nothing.
"""

from __future__ import annotations

import argparse
import sys

import datasets
import numpy as np
import torch
from torch.nn import functional

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
parser.add_argument("--peer", choices=("nanogpt", "litgpt"), required=True)
parser.add_argument("--checkout", required=True)
parser.add_argument("--compile", action="store_true")
given = parser.parse_args()

torch.set_num_threads(given.threads)
sys.path.insert(0, given.checkout)
rows = datasets.load_from_disk(given.dataset_dir)["train"].with_format("numpy")["input_ids"][:256]
rows = torch.from_numpy(np.stack(rows).astype(np.int64)).to(given.device)
vocabulary = 516

if given.peer == "nanogpt":
    from model import GPT, GPTConfig

    config = GPTConfig(given.length, vocabulary, given.layers, given.heads, given.width, given.dropout, bias=True)
    model = GPT(config).to(given.device)
    optimizer = model.configure_optimizers(0.1, 1e-4, (0.9, 0.95), given.device)
else:
    from litgpt.config import Config
    from litgpt.model import GPT

    if given.dropout:
        raise SystemExit("LitGPT's model has no dropout")
    # As close to GPT-2 as LitGPT allows: its positions are rotary, not learned.
    config = Config(
        block_size=given.length,
        padded_vocab_size=vocabulary,
        n_layer=given.layers,
        n_head=given.heads,
        n_embd=given.width,
        mlp_class_name="GptNeoxMLP",
        gelu_approximate="tanh",
        parallel_residual=False,
    )
    model = GPT(config).to(given.device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, (0.9, 0.95), weight_decay=0.1)

step_model = torch.compile(model) if given.compile else model
generator = torch.Generator().manual_seed(0)
while True:
    batch = rows[torch.randint(len(rows), (given.batch_size,), generator=generator).to(given.device)]
    inputs, targets = batch[:, :-1], batch[:, 1:]
    with torch.autocast(given.device, torch.bfloat16, enabled=given.dtype == "bfloat16"):
        if given.peer == "nanogpt":
            _, loss = step_model(inputs, targets.contiguous())
        else:
            logits = step_model(inputs)
            loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
