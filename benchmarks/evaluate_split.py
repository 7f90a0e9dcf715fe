#!/usr/bin/env python
"""Evaluation (perplexity, both accuracies) against the stock Trainer with the loss alone and with gathered logits.

    python -m benchmarks.evaluate_split --num_rows 2000 --length 789

The gathered logits take memory in rows × length × vocabulary, so a tiny model is used for that comparison, in
--rounds_gathered rounds of many minutes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.common import ROOT, median, parser, random_rows, ratios, rounds, run, save

CONTESTANT = str(ROOT / "benchmarks" / "contestants" / "evaluation.py")
SIZES = {"11M": (6, 384, 8), "tiny": (2, 64, 2)}  # layers, width, heads; tiny has 0.2 M parameters


def main() -> None:
    made = parser(__doc__.split("\n")[0])
    made.add_argument("--num_rows", type=int, default=2000, help="rows for the tiny model")
    made.add_argument("--num_rows_large", type=int, default=200, help="rows for the model of 11 M parameters")
    made.add_argument("--length", type=int, default=789, help="tokens a row")
    made.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES), help="models to evaluate")
    made.add_argument("--rounds_gathered", type=int, default=1, help="rounds of the contestant that gathers logits")
    arguments = made.parse_args()
    found = {"length": arguments.length, "threads": arguments.threads}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        file = random_rows(home / "raw", int(1.3 * arguments.num_rows) + 100, arguments.length)
        words = ["--data_files", str(file), "--vocab_file", str(file.parent / "vocab.json")]
        words += ["--validation_size", "0"]
        run([sys.executable, "prepare_dataset.py", *words, "--output_dir", str(home / "data")], arguments.threads)
        for size in arguments.sizes:
            layers, width, heads = SIZES[size]
            num_rows = arguments.num_rows if size == "tiny" else arguments.num_rows_large

            def contest(who: str, num_rows=num_rows, shape=(layers, width, heads)):
                words = [sys.executable, CONTESTANT, "--dataset_dir", str(home / "data"), "--who", who]
                for name, value in zip(("layers", "width", "heads"), shape, strict=True):
                    words += [f"--{name}", str(value)]
                words += ["--num_rows", str(num_rows), "--threads", str(arguments.threads)]

                def go() -> dict:
                    done = run(words, arguments.threads)
                    line = next(line for line in done["output"].splitlines() if line.startswith("RESULT "))
                    return {"peak_resident_mib": done["peak_resident_mib"], **json.loads(line.removeprefix("RESULT "))}

                return go

            contestants = {"ours": contest("ours"), "stock, loss alone": contest("loss")}
            results = rounds(contestants, arguments.rounds)
            if size == "tiny":
                results |= rounds({"stock, logits gathered": contest("gather")}, arguments.rounds_gathered)
            found[size] = {
                "rows": num_rows,
                "rounds": {name: len(values) for name, values in results.items()},
                "medians": {n: {key: round(median(v, key), 3) for key in v[0]} for n, v in results.items()},
                "wall_ratios": ratios(results, "evaluate_wall_seconds", "ours"),
                "cpu_ratios": ratios(results, "evaluate_cpu_seconds", "ours"),
            }
            save("evaluate_split", found, arguments.output)


if __name__ == "__main__":
    main()
