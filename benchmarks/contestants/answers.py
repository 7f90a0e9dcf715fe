"""One contestant of benchmarks/answer.py: loads a model, answers, prints seconds and predictions.

`stock` is the code of the libraries' documentation; `ours` calls the functions of `imagelm.inference`.
"""

from __future__ import annotations

import argparse
import json
import time

import datasets
import numpy as np
import torch

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--dataset_dir")
parser.add_argument("--export_dir")
parser.add_argument("--task", choices=("classify", "generate"), required=True)
parser.add_argument("--who", choices=("stock", "ours"), required=True)
parser.add_argument("--dtype", default="float32")
parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("--batch_size", type=int, required=True)
parser.add_argument("--num_rows", type=int, required=True)
given = parser.parse_args()
torch.set_num_threads(given.threads)

if given.task == "classify":
    test = datasets.load_from_disk(given.dataset_dir)["test"].with_format("numpy")[: given.num_rows]
    questions, labels = [np.asarray(row[:-2], dtype=np.int64) for row in test["input_ids"]], test["label"]

if given.who == "stock":
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=getattr(torch, given.dtype)).to(given.device)
    classes = sorted((i for t, i in tokenizer.get_vocab().items() if t.startswith("<CLS_")))

    def answer() -> np.ndarray | None:
        with torch.no_grad():
            if given.task == "generate":
                start = torch.full((given.batch_size, 1), tokenizer.bos_token_id, device=given.device)
                mask, length = torch.ones_like(start), model.config.n_positions - 5
                model.generate(start, attention_mask=mask, do_sample=True, min_new_tokens=length, max_new_tokens=length)
                return None
            found = []
            for first in range(0, len(questions), given.batch_size):
                ids = torch.from_numpy(np.stack(questions[first : first + given.batch_size])).to(given.device)
                found.append(model(ids).logits[:, -1, classes].argmax(-1).cpu().numpy())
        return np.concatenate(found)
else:
    from imagelm.inference.arguments import LoadArguments
    from imagelm.inference.generation import generate_images
    from imagelm.inference.generation_arguments import ClassArguments, GenerationArguments
    from imagelm.inference.loading import load_for_inference
    from imagelm.inference.scoring import class_probabilities

    backend = {"backend": "onnx", "export_dir": given.export_dir} if given.export_dir else {}
    loaded = load_for_inference(LoadArguments(model=given.model, dtype=given.dtype, device=given.device, **backend))

    def answer() -> np.ndarray | None:
        if given.task == "generate":
            generate_images(
                loaded, GenerationArguments(), ClassArguments(num_samples=given.num_rows), None, given.batch_size
            )
            return None
        return class_probabilities(loaded, questions, given.batch_size).argmax(1)


if given.task == "classify":
    whole, questions = questions, questions[: given.batch_size]
    answer()  # warm-up
    questions = whole
if given.device == "cuda":
    answer()  # makes the memory pools and chooses the kernels
    torch.cuda.synchronize()
wall, cpu = time.perf_counter(), time.process_time()
found = answer()
if given.device == "cuda":
    torch.cuda.synchronize()
result = {"answer_wall_seconds": time.perf_counter() - wall, "answer_cpu_seconds": time.process_time() - cpu}
if found is not None:
    result |= {"accuracy": float((found == np.asarray(labels)).mean()), "predictions": found.tolist()}
print("RESULT " + json.dumps(result))
