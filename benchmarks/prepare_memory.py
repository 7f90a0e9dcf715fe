#!/usr/bin/env python
"""Peak memory of prepare_dataset.py from 10⁴ to 10⁷ short rows, by split.

    python -m benchmarks.prepare_memory --rows 10000 100000 1000000 10000000

The peak is that of the process with all that it imports.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks.common import parser, random_rows, run, save

ROWS = (10_000, 100_000, 1_000_000, 10_000_000)
SPLITS = ("stratified", "hash")


def main() -> None:
    made = parser(__doc__.split("\n")[0])
    made.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    made.add_argument("--length", type=int, default=13, help="tokens a row")
    made.add_argument("--split_by", nargs="+", default=list(SPLITS), choices=SPLITS)
    arguments = made.parse_args()
    found: dict[str, list] = {split: [] for split in arguments.split_by}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for num_rows in arguments.rows:
            file = random_rows(home / "raw", num_rows, arguments.length)
            words = ["--data_files", str(file), "--vocab_file", str(file.parent / "vocab.json"), "--overwrite"]
            for split, results in found.items():
                words_of_split = [*words, "--output_dir", str(home / "out"), "--split_by", split]
                done = run([sys.executable, "prepare_dataset.py", *words_of_split], arguments.threads)
                keys = ("wall_seconds", "cpu_seconds", "peak_resident_mib")
                results.append({"rows": num_rows, **{key: round(done[key], 1) for key in keys}})
                print(split, results[-1], flush=True)
    for results in found.values():
        first, last = results[0], results[-1]
        grown = (last["peak_resident_mib"] - first["peak_resident_mib"]) * 2**20
        last["bytes_a_row"] = round(grown / max(last["rows"] - first["rows"], 1), 1)
    save("prepare_memory", {"tokens_a_row": arguments.length, "peaks": found}, arguments.output)


if __name__ == "__main__":
    main()
