#!/usr/bin/env python
"""`imagelm prepare` with one process and with several, by turns: rows, and images whose codec is given or fitted.

    python -m benchmarks.prepare_processes --images mnist/train.parquet --num_rows 1000000

Times are of whole commands, with the start of Python and the import of the libraries.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import median, parser, random_rows, rounds, run, save

KEYS = ("wall_seconds", "cpu_seconds", "peak_resident_mib")


def main() -> None:
    made = parser(__doc__.split("\n")[0])
    made.add_argument("--num_rows", type=int, default=0, help="random rows of 201 tokens; 0: none")
    made.add_argument("--images", help="as --images of imagelm prepare; without it none")
    made.add_argument("--num_proc", type=int, default=2)
    arguments = made.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = rounds(contestants(Path(folder), arguments), arguments.rounds)
    found = {}
    for name in {name.rsplit(", ", 1)[0]: None for name in results}:
        one, several = (results[f"{name}, {count}"] for count in (1, arguments.num_proc))
        pairs = {key: [round(b[key] / a[key], 3) for a, b in zip(one, several, strict=True)] for key in KEYS}
        medians = {label: {key: round(median(runs, key), 1) for key in KEYS} for label, runs in
                   (("one", one), ("several", several))}  # fmt: skip
        found[name] = {"medians": medians, "several_to_one_by_round": pairs}
    own = {"num_proc": arguments.num_proc, "rounds": arguments.rounds, "num_rows": arguments.num_rows}
    save(
        "prepare_processes",
        own | {"images": arguments.images and Path(arguments.images).name, "commands": found},
        arguments.output,
    )


def contestants(home: Path, arguments) -> dict[str, Callable[[], dict]]:
    """Each command with one process and with several."""
    words = {}
    if arguments.num_rows:
        rows = random_rows(home / "raw", arguments.num_rows, 201)
        words["rows"] = ["--data_files", str(rows), "--vocab_file", str(home / "raw/vocab.json")]
    if arguments.images:
        words["images, codec fitted"] = ["--images", arguments.images]
        words["images, codec given"] = [
            "--images",
            arguments.images,
            "--codec",
            str(home / "images, codec fitted, 1/codec"),
        ]
    made = {}
    for name, given in words.items():
        for count in (1, arguments.num_proc):
            output = home / f"{name}, {count}"
            command = [sys.executable, "-m", "imagelm", "prepare", *given, "--num_proc", str(count)]
            command += ["--output_dir", str(output), "--overwrite"]
            made[output.name] = lambda command=command: run(command, arguments.num_proc)
    return made


if __name__ == "__main__":
    main()
