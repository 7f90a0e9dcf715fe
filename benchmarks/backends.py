#!/usr/bin/env python
"""Classification of 8 × 199 and 64 × 54 tokens by every backend, compared with `model(ids).logits` in float32.

    python -m benchmarks.backends --rounds 9

All contestants are in one process and take turns within a round; CPU seconds of one thread, without loading. The model
has the default size and random weights, which changes no time. bfloat16 is measured where the CPU computes it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.common import parser, ratios, rounds, save
from imagelm.export.arguments import ExportArguments
from imagelm.export.graph import export_model
from imagelm.inference.arguments import LoadArguments
from imagelm.inference.loading import LoadedModel, load_for_inference
from imagelm.inference.scoring import class_probabilities
from imagelm.models.arguments import ModelArguments
from imagelm.models.build import build_model
from imagelm.models.save import save_model
from imagelm.tokens.grammar import NUM_QUESTION_TOKENS, Grammar
from imagelm.tokens.tokenizer import build_tokenizer, save_tokenizer
from imagelm.tokens.vocabulary import make_vocabulary
from imagelm.utils.device import has_fast_bfloat16

SHAPES = ((8, 199), (64, 54))
POSITIONS = 202
STOCK = "model(ids).logits, float32"


def main() -> None:
    arguments = parser(__doc__.split("\n")[0]).parse_args()
    torch.set_num_threads(arguments.threads)
    grammar = Grammar(make_vocabulary(500, 10))
    found = {"threads": arguments.threads, "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory() as home:
        loaded = load_all(make_model(Path(home) / "model", grammar), Path(home))
        stock = AutoModelForCausalLM.from_pretrained(Path(home) / "model").eval()
        for num_rows, length in SHAPES:
            entries = np.random.default_rng(0).integers(0, 500, (num_rows, length - NUM_QUESTION_TOKENS))
            questions = [grammar.question(body) for body in grammar.code_ids[entries]]
            contestants = {
                name: timed(partial(class_probabilities, one, questions, num_rows)) for name, one in loaded.items()
            }
            contestants[STOCK] = timed(partial(stock, torch.from_numpy(np.stack(questions).astype(np.int64))))
            for contest in contestants.values():
                contest()  # warm-up
            found[f"{num_rows} x {length}"] = table(rounds(contestants, arguments.rounds))
    save("backends", found, arguments.output)


def make_model(folder: Path, grammar: Grammar) -> Path:
    tokenizer = build_tokenizer(grammar, POSITIONS)
    model = build_model(ModelArguments(), tokenizer, POSITIONS, None)
    save_model(model, folder, tokenizer, model.state_dict())
    save_tokenizer(tokenizer, folder)
    return folder


def load_all(folder: Path, home: Path) -> dict[str, LoadedModel]:
    fast = has_fast_bfloat16(torch.device("cpu"))
    loaded = {"torch, float32": load_for_inference(LoadArguments(model=str(folder), device="cpu"))}
    if fast:
        loaded["torch, bfloat16"] = load_for_inference(LoadArguments(model=str(folder), device="cpu", dtype="bfloat16"))
    for backend, slot_only in (("onnx", False), ("onnx", True), ("openvino", False)):
        for int8 in (False, True):
            place = str(home / f"int8_{int8}_{slot_only}")
            chosen = {"format": backend, "int8": int8, "slot_only": slot_only}
            export_model(ExportArguments(model=str(folder), output_dir=place, **chosen))
            for dtype in ["float32", *(["bfloat16"] if fast and backend == "openvino" and not int8 else [])]:
                options = LoadArguments(model=str(folder), backend=backend, export_dir=place, dtype=dtype)
                name = f"{backend}{', slot only' if slot_only else ''}, {'int8' if int8 else dtype}"
                loaded[name] = load_for_inference(options)
    return loaded


def timed(answer: Callable[[], object]) -> Callable[[], dict]:
    def go() -> dict:
        with torch.no_grad():
            started = time.process_time()
            answer()
            return {"cpu_seconds": time.process_time() - started}

    return go


def table(results: dict[str, list[dict]]) -> dict:
    lines = {}
    for name, values in results.items():
        seconds = [value["cpu_seconds"] for value in values]
        lines[name] = {"cpu_seconds": float(np.median(seconds)), "fastest": min(seconds), "slowest": max(seconds)}
        if name != STOCK:
            lines[name]["times_as_fast"] = ratios(results, "cpu_seconds", name)[STOCK]
    return lines


if __name__ == "__main__":
    main()
