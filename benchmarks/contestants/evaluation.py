"""One contestant of benchmarks/evaluate_split.py: evaluates an untrained model on random rows, once.

`ours` is the trainer of train.py; `loss` the stock Trainer without metrics; `gather` the stock Trainer with a
`compute_metrics` over gathered logits, as in most examples.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time

import datasets
import numpy as np
import torch
from transformers import AutoTokenizer, DataCollatorForLanguageModeling, GPT2Config, GPT2LMHeadModel, Trainer
from transformers import TrainingArguments as Arguments

parser = argparse.ArgumentParser()
parser.add_argument("--dataset_dir", required=True)
parser.add_argument("--who", choices=("ours", "loss", "gather"), required=True)
parser.add_argument("--layers", type=int, required=True)
parser.add_argument("--width", type=int, required=True)
parser.add_argument("--heads", type=int, required=True)
parser.add_argument("--num_rows", type=int, required=True)
parser.add_argument("--threads", type=int, required=True)
given = parser.parse_args()

torch.set_num_threads(given.threads)
tokenizer = AutoTokenizer.from_pretrained(f"{given.dataset_dir}/tokenizer")
rows = datasets.load_from_disk(given.dataset_dir)["train"].select(range(given.num_rows))
torch.manual_seed(0)
config = GPT2Config(
    vocab_size=len(tokenizer),
    n_positions=tokenizer.model_max_length,
    n_layer=given.layers,
    n_embd=given.width,
    n_head=given.heads,
    activation_function="gelu_pytorch_tanh",
    bos_token_id=tokenizer.bos_token_id,
    eos_token_id=tokenizer.eos_token_id,
    pad_token_id=tokenizer.pad_token_id,
)
model = GPT2LMHeadModel(config)


def accuracies(prediction) -> dict[str, float]:
    logits, labels = prediction.predictions[:, :-1], prediction.label_ids[:, 1:]
    return {"next_token_accuracy": float((logits.argmax(-1) == labels)[labels != -100].mean())}


with tempfile.TemporaryDirectory() as folder:
    arguments = Arguments(folder, per_device_eval_batch_size=8, use_cpu=True, disable_tqdm=True)
    if given.who == "ours":
        from imagelm.models.build import fix_loss_scale
        from imagelm.training.arguments import RunArguments
        from imagelm.training.trainer import ImageTrainer

        fix_loss_scale(model)
        trainer = ImageTrainer(model, arguments, RunArguments(), tokenizer, None, rows)
    else:
        rows = rows.select_columns(["input_ids"])
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        metrics = accuracies if given.who == "gather" else None
        trainer = Trainer(model, arguments, collator, eval_dataset=rows, compute_metrics=metrics)
    wall, cpu = time.perf_counter(), time.process_time()
    found = trainer.evaluate()
    result = {"evaluate_wall_seconds": time.perf_counter() - wall, "evaluate_cpu_seconds": time.process_time() - cpu}
print("RESULT " + json.dumps(result | {"eval_loss": float(np.float64(found["eval_loss"]))}))
