#!/usr/bin/env python
"""Raw JSONL → rows of ids: prepare_dataset.py with every check, against `load_dataset` + `map` and run_clm.py.

    python -m benchmarks.prepare_rows --run_clm ../run_clm.py --num_rows 200000

Times are of whole commands with a cold cache. Only prepare_dataset.py checks, deduplicates, splits and counts the rows.
`--growth` also prepares 10³ to 10⁶ rows with prepare_dataset.py alone.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.common import ROOT, median, parser, random_rows, ratios, rounds, run, save

CONTESTANTS = ROOT / "benchmarks" / "contestants"
GROWTH = (1_000, 10_000, 100_000, 1_000_000)


def main() -> None:
    made = parser(__doc__.split("\n")[0])
    made.add_argument("--run_clm", type=Path, help="transformers' examples/pytorch/language-modeling/run_clm.py")
    made.add_argument("--num_rows", type=int, default=200_000)
    made.add_argument("--length", type=int, default=201, help="tokens a row")
    made.add_argument("--growth", action="store_true", help="also 10³ to 10⁶ rows")
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        results = rounds(contestants(arguments, home), arguments.rounds)
        found = {
            "rows": arguments.num_rows,
            "tokens_a_row": arguments.length,
            "threads": arguments.threads,
            "rounds": arguments.rounds,
            "medians": {name: summary(values, arguments.num_rows) for name, values in results.items()},
            "wall_ratios": ratios(results, "wall_seconds", "prepare_dataset.py"),
            "cpu_ratios": ratios(results, "cpu_seconds", "prepare_dataset.py"),
        }
        if arguments.growth:
            found["growth"] = {
                str(num_rows): summary([ours(num_rows, arguments, home)()], num_rows) for num_rows in GROWTH
            }
    save("prepare_rows", found, arguments.output)


def contestants(arguments, home: Path) -> dict:
    file = random_rows(home / "raw", arguments.num_rows, arguments.length)
    prepare = ours(arguments.num_rows, arguments, home)
    prepare()
    tokenizer = str(home / "data" / "tokenizer")

    def cold(words: list[str]):
        def go() -> dict:
            with tempfile.TemporaryDirectory(dir=home) as fresh:
                return run([word.replace("FRESH", fresh) for word in words], arguments.threads)

        return go

    found = {"prepare_dataset.py": prepare}
    words = [sys.executable, str(CONTESTANTS / "map_rows.py"), str(file), tokenizer, "FRESH/out", "FRESH/cache"]
    found["load_dataset + map"] = cold(words)
    if arguments.run_clm:
        json_file = file.with_suffix(".json")  # the suffix that it accepts
        json_file.symlink_to(file)
        words = [sys.executable, str(CONTESTANTS / "run_clm.py"), str(arguments.run_clm.resolve())]
        words += ["--model_type", "gpt2", "--config_overrides", "n_layer=1,n_head=1,n_embd=8"]
        words += ["--tokenizer_name", tokenizer, "--train_file", str(json_file), "--block_size", str(arguments.length)]
        words += ["--output_dir", "FRESH/out", "--cache_dir", "FRESH/cache", "--validation_split_percentage", "20"]
        found["run_clm.py"] = cold(words)
    return found


def ours(num_rows: int, arguments, home: Path):
    def go() -> dict:
        folder = home / ("raw" if num_rows == arguments.num_rows else f"raw{num_rows}")
        file = folder / "rows.jsonl"
        if not file.exists():
            random_rows(folder, num_rows, arguments.length)
        words = ["--data_files", str(file), "--vocab_file", str(folder / "vocab.json"), "--overwrite"]
        output = home / "data" if num_rows == arguments.num_rows else home / "grown"
        return run([sys.executable, "prepare_dataset.py", *words, "--output_dir", str(output)], arguments.threads)

    return go


def summary(values: list[dict], num_rows: int) -> dict:
    keys = ("wall_seconds", "cpu_seconds", "peak_resident_mib")
    found = {key: round(median(values, key), 2) for key in keys}
    return found | {"rows_per_cpu_second": round(num_rows / median(values, "cpu_seconds"))}


if __name__ == "__main__":
    main()
