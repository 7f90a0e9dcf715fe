#!/usr/bin/env python
"""Growth of cost with rows (prepare), length and model size (train) and batch (classify); one log-log plot.

    python -m benchmarks.growth --plot docs/performance_growth.png

Slopes are of the least-squares line through the logarithms: 1 means proportional. Figures are CPU seconds, which other
processes on the machine hardly change.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import parser, random_rows, run, save
from benchmarks.train_step import LAUNCHER, NUM_FIRST_STEPS, prepare, timed_steps, train_words

ROWS = (1_000, 10_000, 100_000, 1_000_000)
LENGTHS = (54, 108, 201, 400, 789)
SIZES = {"1 M": (4, 144, 4), "3 M": (5, 224, 4), "11 M": (6, 384, 8), "30 M": (10, 496, 8), "100 M": (14, 768, 12)}
BATCHES = (1, 4, 16, 64)
STEPS = 7


def main() -> None:
    made = parser(__doc__.split("\n")[0])
    made.add_argument("--plot", type=Path, help="PNG to write")
    made.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="rows to prepare")
    made.add_argument("--parts", nargs="+", default=["rows", "length", "size", "batch"], help="parts to measure")
    arguments = made.parse_args()
    curves = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        measured = {
            "rows": lambda: _rows(arguments, home),
            "length": lambda: _lengths(arguments, home),
            "size": lambda: _sizes(arguments, home),
            "batch": lambda: _batches(arguments),
        }
        for part in arguments.parts:
            curves |= measured[part]()
            print(list(curves.items())[-1], flush=True)
    for curve in curves.values():
        x, y = np.log(curve["x"]), np.log(curve["cpu_seconds"])
        curve["slope"] = round(float(np.polyfit(x, y, 1)[0]), 3)
        curve["slope_of_last_two"] = round(float((y[-1] - y[-2]) / (x[-1] - x[-2])), 3)
    save("growth", {"threads": arguments.threads, "curves": curves}, arguments.output)
    if arguments.plot:
        draw(curves, arguments.plot)


def _rows(arguments, home: Path) -> dict:
    seconds, peaks = [], []
    for num_rows in arguments.rows:
        file = random_rows(home / "raw", num_rows, 201)
        words = ["--data_files", str(file), "--vocab_file", str(file.parent / "vocab.json"), "--overwrite"]
        done = run([sys.executable, "prepare_dataset.py", *words, "--output_dir", str(home / "out")], arguments.threads)
        seconds.append(round(done["cpu_seconds"], 3))
        peaks.append(round(done["peak_resident_mib"]))
    name = "prepare_dataset.py, rows of 201 tokens"
    return {name: {"x": arguments.rows, "cpu_seconds": seconds, "peak_resident_mib": peaks}}


def _step(arguments, home: Path, length: int, batch_size: int, overrides: str) -> float:
    data = home / f"data{length}"
    if not data.exists():
        prepare(home / f"raw{length}", data, 500, length)
    words = train_words(data, home / "run", batch_size, arguments.threads, overrides)
    words += ["--use_cpu", "--compile", "off"]  # train_step measures the gain of compiling
    found = timed_steps("train.py", tuple(words), LAUNCHER, (NUM_FIRST_STEPS, STEPS), arguments.threads, home)
    return round(found["cpu_ms_a_step"] / 1000, 4)


def _lengths(arguments, home: Path) -> dict:
    overrides = "num_hidden_layers=6,num_attention_heads=8,hidden_size=384"
    seconds = [_step(arguments, home, length, 4, overrides) for length in LENGTHS]
    return {"train.py, a step of 4 rows, by length": {"x": list(LENGTHS), "cpu_seconds": seconds}}


def _sizes(arguments, home: Path) -> dict:
    seconds, parameters = [], []
    for layers, width, heads in SIZES.values():
        overrides = f"num_hidden_layers={layers},num_attention_heads={heads},hidden_size={width}"
        seconds.append(_step(arguments, home, 201, 8, overrides))
        parameters.append(12 * layers * width**2 + (516 + 201) * width)
    return {"train.py, a step of 8 × 201 tokens, by parameters": {"x": parameters, "cpu_seconds": seconds}}


def _batches(arguments) -> dict:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from imagelm.accel.attention import CAUSAL_PRODUCT, use_attention

    torch.set_num_threads(arguments.threads)
    config = GPT2Config(
        vocab_size=516, n_positions=201, n_embd=384, n_layer=6, n_head=8, bos_token_id=0, eos_token_id=1,
        activation_function="gelu_pytorch_tanh",
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval().bfloat16()
    use_attention(model, CAUSAL_PRODUCT)
    seconds = []
    for batch_size in BATCHES:
        ids, last = torch.randint(516, (batch_size, 199)), torch.full((batch_size, 1), 198)
        with torch.no_grad():
            taken = []
            for _ in range(6):
                started = time.process_time()
                model(input_ids=ids, use_cache=False, logits_to_keep=last)
                taken.append(time.process_time() - started)
        seconds.append(round(float(np.median(taken[1:])), 4))
    return {"classify in bfloat16, 199 tokens, by batch": {"x": list(BATCHES), "cpu_seconds": seconds}}


def draw(curves: dict, file: Path) -> None:
    """One log-log plot: cost and size relative to each curve's smallest point."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5.5))
    for name, curve in curves.items():
        x, y = np.array(curve["x"]), np.array(curve["cpu_seconds"])
        axes.loglog(x / x[0], y / y[0], marker="o", label=f"{name} (slope {curve['slope']:.2f})")
    reach = max(curve["x"][-1] / curve["x"][0] for curve in curves.values())
    axes.loglog([1, reach], [1, reach], color="grey", linestyle=":", label="proportional")
    axes.set(xlabel="size, relative to the smallest", ylabel="CPU seconds, relative to the smallest")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
