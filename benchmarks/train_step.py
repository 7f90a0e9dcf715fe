#!/usr/bin/env python
"""A step of training: train.py as a user starts it, against nanoGPT, LitGPT, the stock Trainer and run_clm.py.

    python -m benchmarks.train_step --nanogpt ../nanoGPT --litgpt ../litgpt --run_clm ../run_clm.py --dropout 0
    python -m benchmarks.train_step --nanogpt ../nanoGPT --device cuda --shapes 8x201 64x201 256x201 32x789 --steps 220

Every contestant trains the same model (6 layers, 8 heads, 384 wide) on the same rows, in bfloat16 autocast or in
float32 (--dtype), in a separate process that ends after --steps optimizer steps. A figure is the median time between
two steps, without the first ones (compilation); on a GPU the mean, without waiting in between. The dropout is the same
too, except for run_clm.py, which trains its own recipe (0.1).
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from benchmarks.common import ROOT, median, parser, peak_gflops, random_rows, ratios, rounds, run, save

SHAPES = ("32x54", "8x201", "2x789")
# What is tried beside the defaults.
CPU_OPTIONS = {"not compiled": ["--compile", "off"]}
GPU_OPTIONS = {
    "compiled": ["--compile", "on"],
    "rows on the device": ["--rows_on_device", "true"],
    "rows on the device, unchecked": ["--rows_on_device", "true", "--max_unchecked_steps", "10"],
    "graph": ["--rows_on_device", "true", "--max_unchecked_steps", "10", "--cuda_graph", "true"],
    "graph, compiled": [
        *("--rows_on_device", "true", "--max_unchecked_steps", "10", "--cuda_graph", "true", "--compile", "on")
    ],
}
CONTESTANTS = ROOT / "benchmarks" / "contestants"
NUM_FIRST_STEPS, NUM_FIRST_STEPS_ON_GPU = 4, 20  # a GPU's clock rises first
TIME = "ms_a_step"
LAYERS, WIDTH = 6, 384
LAUNCHER = ("accelerate", "launch", "--config_file", "accelerate_config.yaml")


def main() -> None:
    made = parser(__doc__.split("\n")[0])
    made.add_argument("--nanogpt", type=Path, help="checkout of karpathy/nanoGPT")
    made.add_argument("--litgpt", type=Path, help="checkout of Lightning-AI/litgpt")
    made.add_argument("--run_clm", type=Path, help="transformers' examples/pytorch/language-modeling/run_clm.py")
    made.add_argument("--shapes", nargs="+", default=SHAPES, metavar="ROWSxTOKENS", help="of a batch")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train")
    made.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the matrix products")
    made.add_argument("--dropout", type=float, default=0.0, help="dropout of attention, residuals and embeddings")
    made.add_argument("--steps", type=int, default=14, help="optimizer steps per process")
    arguments = made.parse_args()
    name = "train_step" if arguments.dropout == 0 else "train_step_dropout"
    name = name if arguments.device == "cpu" else f"gpu_{name}"
    name = name if arguments.dtype == "bfloat16" else f"{name}_{arguments.dtype}"
    tables: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as home:
        for shape in arguments.shapes:
            batch_size, length = (int(number) for number in shape.split("x"))
            tables[shape] = compare(arguments, batch_size, length, Path(home))
            found = {
                "threads": arguments.threads,
                "dtype": arguments.dtype,
                "dropout": arguments.dropout,
                "shapes": tables,
            }
            save(name, found, arguments.output)  # on a CPU each shape is a quarter of an hour


def compare(arguments, batch_size: int, length: int, home: Path) -> dict:
    data, on_gpu = home / f"data{length}", arguments.device == "cuda"
    if not data.exists():
        prepare(home / f"raw{length}", data, 2000, length)
    dropout = arguments.dropout
    shape = ["--dataset_dir", str(data), "--length", str(length), "--batch_size", str(batch_size)]
    shape += ["--dropout", str(dropout), "--threads", str(arguments.threads)]
    shape += ["--device", arguments.device, "--dtype", arguments.dtype]
    sizes = f"num_hidden_layers={LAYERS},num_attention_heads=8,hidden_size={WIDTH}"
    rates = f"resid_pdrop={dropout},embd_pdrop={dropout},attn_pdrop={dropout}"

    def contest(script: str, *words: str, launcher: tuple[str, ...] = (sys.executable,)):
        first = NUM_FIRST_STEPS_ON_GPU if on_gpu else NUM_FIRST_STEPS
        return lambda: timed_steps(script, words, launcher, (first, arguments.steps), arguments.threads, home)

    ours = train_words(data, home / "out", batch_size, arguments.threads, f"{sizes},{rates}")
    ours += ["--bf16", str(arguments.dtype == "bfloat16").lower(), *([] if on_gpu else ["--use_cpu"])]
    contestants = {"train.py": contest("train.py", *ours, launcher=LAUNCHER)}
    for options, words in (GPU_OPTIONS if on_gpu else CPU_OPTIONS).items():
        contestants[f"train.py, {options}"] = contest("train.py", *ours, *words, launcher=LAUNCHER)
    contestants["stock Trainer"] = contest(str(CONTESTANTS / "stock_trainer.py"), *shape)
    loop = str(CONTESTANTS / "own_loop.py")
    if arguments.nanogpt:
        peer = ["--peer", "nanogpt", "--checkout", str(arguments.nanogpt.resolve())]
        contestants["nanoGPT compiled"] = contest(loop, *shape, *peer, "--compile")
        if dropout:
            contestants["nanoGPT"] = contest(loop, *shape, *peer)
    if arguments.litgpt and not dropout:
        peer = ["--peer", "litgpt", "--checkout", str(arguments.litgpt.resolve())]
        contestants["LitGPT compiled"] = contest(loop, *shape, *peer, "--compile")
    if arguments.run_clm and not dropout:
        words = run_clm_words(arguments.run_clm, home / f"raw{length}", data, length, batch_size)
        words += ["--bf16"] if arguments.dtype == "bfloat16" else []
        contestants["run_clm.py, dropout 0.1"] = contest(str(CONTESTANTS / "run_clm.py"), *words)
    peaks = [peak_gflops(arguments.dtype, arguments.threads, arguments.device)]
    results = rounds(contestants, arguments.rounds)
    peaks.append(peak_gflops(arguments.dtype, arguments.threads, arguments.device))
    flops, ours = model_flops(length, batch_size), "train.py"
    if on_gpu:  # the fastest way of ours
        ours = min((name for name in results if name.startswith(ours)), key=lambda name: median(results[name], TIME))
    return {
        "batch_size": batch_size,
        "rounds": arguments.rounds,
        "medians": {
            name: {key: round(median(values, key), 2) for key in values[0]} for name, values in results.items()
        },
        "ours": ours,
        "wall_ratios": ratios(results, TIME, ours),
        "cpu_ratios": ratios(results, "cpu_ms_a_step", ours),
        "model_gflop_a_step": round(flops / 1e9, 1),
        "peak_gflops_before_and_after": [round(peak, 1) for peak in peaks],
        "million_tokens_a_second": round(batch_size * length / median(results[ours], TIME) / 1e3, 3),
        "share_of_peak": round(
            flops / 1e6 / median(results[ours], TIME if on_gpu else "cpu_ms_a_step") / max(peaks), 3
        ),
    }


def prepare(raw: Path, data: Path, num_rows: int, length: int) -> None:
    """Random rows of one length, prepared."""
    rows = random_rows(raw, num_rows, length)
    words = ["--data_files", str(rows), "--vocab_file", str(raw / "vocab.json"), "--output_dir", str(data)]
    run([sys.executable, "prepare_dataset.py", *words], 1)


def train_words(data: Path, output: Path, batch_size: int, threads: int, overrides: str) -> list[str]:
    """The arguments of train.py for a long run."""
    return [
        *("--dataset_dir", str(data), "--output_dir", str(output), "--overwrite", "--disable_tqdm", "true"),
        *("--config_overrides", overrides, "--per_device_train_batch_size", str(batch_size)),
        *("--num_train_epochs", "1000", "--num_threads", str(threads)),
    ]


def run_clm_words(script: Path, raw: Path, data: Path, length: int, batch_size: int) -> list[str]:
    """The arguments of run_clm.py for a long run: size, vocabulary and rows of ours, all else its default."""
    json_file = raw / "rows.json"  # the suffix that it accepts
    json_file.symlink_to(raw / "rows.jsonl")
    sizes = f"n_layer={LAYERS},n_head=8,n_embd={WIDTH},n_positions={length},vocab_size=516"
    return [
        *(str(script.resolve()), "--model_type", "gpt2", "--config_overrides", sizes, "--use_cpu"),
        *("--tokenizer_name", str(data / "tokenizer"), "--train_file", str(json_file), "--block_size", str(length)),
        *("--do_train", "--per_device_train_batch_size", str(batch_size), "--num_train_epochs", "1000"),
        *("--output_dir", str(raw / "out"), "--cache_dir", str(raw / "cache"), "--disable_tqdm", "true"),
    ]


def timed_steps(
    script: str, words: tuple[str, ...], launcher: tuple[str, ...], steps: tuple[int, int], threads: int, home: Path
) -> dict[str, float]:
    """Milliseconds a step of a script, without the first ones; seconds to the end of the first; peak memory."""
    times, (first, last) = home / "times.json", steps
    timed = ["benchmarks/timed.py", "--steps", str(last), "--first", str(first), "--times", str(times), script, *words]
    run([*launcher, *timed], threads)
    found = json.loads(times.read_text())
    ends = found["ends"]
    if found["on_gpu"]:
        wall, cpu = ([1000 * (ends[-1][i] - ends[first - 1][i]) / (last - first)] for i in (0, 1))
    else:
        wall, cpu = ([1000 * (after[i] - before[i]) for before, after in pairwise(ends[first:])] for i in (0, 1))
    return {
        TIME: statistics.median(wall),
        "cpu_ms_a_step": statistics.median(cpu),
        "first_step_s": ends[0][0],
        "peak_resident_mib": found["peak_resident_mib"],
    }


def model_flops(length: int, batch_size: int) -> float:
    """Products of forward and backward: those of the matrices, and the causal half of attention's."""
    matrices = 12 * LAYERS * WIDTH**2 + 516 * WIDTH
    attention = LAYERS * WIDTH * length  # half of 2 products of length × width a token and layer
    return 6.0 * (matrices + attention) * length * batch_size


if __name__ == "__main__":
    main()
