#!/usr/bin/env python
"""Peak memory of preparation, the start of training and an evaluation, from 10⁴ to 10⁷ short rows.

    python -m benchmarks.memory --rows 10000 100000 1000000 10000000

The peak is that of the process with all that it imports. Of it, `anonymous` is the memory that it needs; the rest are
pages of files (libraries, rows, flags of rows), which the system drops when memory gets short. The model is tiny.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.common import parser, random_rows, run, save

ROWS = (10_000, 100_000, 1_000_000, 10_000_000)
# The split of the rows, for a large training split and for a large test split.
SPLITS = {"start": ("0.001", "0.001"), "evaluation": ("0.9", "0.01")}
PARTS = ("prepare", "prepare by hash", *SPLITS)
TRAINING = ["--config_overrides", "num_hidden_layers=1,hidden_size=16,num_attention_heads=1", "--max_steps", "2"]
TRAINING += ["--eval_strategy", "no", "--per_device_eval_batch_size", "1024", "--compile", "off", "--overwrite"]
KEYS = ("wall_seconds", "cpu_seconds", "peak_resident_mib", "peak_anonymous_mib")


def main() -> None:
    made = parser(__doc__.split("\n")[0])
    made.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    made.add_argument("--length", type=int, default=13, help="tokens a row")
    made.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    made.add_argument("--max_evaluated", type=int, default=1_000_000, help="the most rows for an evaluation")
    arguments = made.parse_args()
    found: dict[str, list] = {part: [] for part in arguments.parts}
    for num_rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            file = random_rows(home / "raw", num_rows, arguments.length)
            words = ["prepare_dataset.py", "--data_files", str(file), "--vocab_file", str(file.parent / "vocab.json")]
            words += ["--overwrite", "--output_dir", str(home / "data")]
            for part, results in found.items():
                sizes = SPLITS.get(part, SPLITS["start"])
                own = [*words, "--test_size", sizes[0], "--validation_size", sizes[1]]
                own += ["--split_by", "hash"] if part == "prepare by hash" else []
                if part == "evaluation" and num_rows > arguments.max_evaluated:
                    continue
                if part.startswith("prepare") or part == "evaluation" or "prepare" not in found:
                    done = run([sys.executable, *own], arguments.threads)
                if part in SPLITS:
                    command = ["train.py", "--dataset_dir", str(home / "data"), "--output_dir", str(home / "out")]
                    done = run([sys.executable, *command, *TRAINING], arguments.threads)
                results.append({"rows": num_rows, **{key: round(done[key], 1) for key in KEYS}})
                print(part, results[-1], flush=True)
    # At the end, as it imports PyTorch, and a started process counts its parent's memory at first.
    save("memory", {"tokens_a_row": arguments.length, "peaks": found}, arguments.output)


if __name__ == "__main__":
    main()
