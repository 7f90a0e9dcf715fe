#!/usr/bin/env python
"""Classifies a row of tokens with numpy, onnxruntime and tokenizers alone, from a folder that imagelm export wrote to.

python examples/classify_onnx.py outputs/mine/best_model "<IMG> <Z_012> <Z_499> </IMG> <CLS>"
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

folder, row = Path(sys.argv[1]), sys.argv[2]
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
session = onnxruntime.InferenceSession(str(next((folder / "onnx").glob("*.onnx"))))

ids = np.array([tokenizer.encode(row).ids])
inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None]}
for value in session.get_inputs():
    if value.name.startswith("past_key_values"):  # nothing came before this row
        inputs[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), dtype=np.float32)
logits = session.run(["logits"], inputs)[0][0, -1]

classes = {token: i for token, i in tokenizer.get_vocab().items() if token.startswith("<CLS_")}
powers = np.exp(logits[list(classes.values())] - logits.max())
for token, share in sorted(zip(classes, powers / powers.sum(), strict=True), key=lambda pair: -pair[1]):
    print(f"{token} {share:.4f}")
