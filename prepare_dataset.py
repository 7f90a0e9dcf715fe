#!/usr/bin/env python
"""Raw JSONL rows → an Arrow `DatasetDict` with its tokenizer, checked, deduplicated and split.

    python prepare_dataset.py --data_files rows.jsonl --vocab_file vocab.json --output_dir data/rows

A row is a JSON object: {"tokens": "<IMG> <Z_012> … </IMG> <CLS> <CLS_7> <EOS>", "label": 7}; `tokens` may be a list.
"""

from __future__ import annotations

import argparse
import shlex
import sys

from imagelm.errors import run_script


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], epilog="Exit codes: 0 done, 2 the input is wrong, 1 anything else."
    )
    files = parser.add_argument_group("input and output")
    files.add_argument(
        "--data_files", nargs="+", required=True, metavar="F", help=".jsonl, .jsonl.gz, .jsonl.zst; several, or globs"
    )
    files.add_argument("--vocab_file", required=True, metavar="V", help="vocab.json: token to id")
    files.add_argument("--output_dir", required=True, metavar="D", help="folder to write, whole or not at all")
    files.add_argument("--overwrite", action="store_true", help="replace a dataset that stands in --output_dir")
    rows = parser.add_argument_group("rows")
    rows.add_argument(
        "--on_bad_rows",
        choices=("stop", "skip"),
        default="stop",
        help="stop: write nothing (default); skip: leave bad rows out and keep them in D/bad_rows.jsonl",
    )
    rows.add_argument("--max_length", type=int, metavar="N", help="longest row in tokens (default: the longest row)")
    rows.add_argument(
        "--truncation_side",
        choices=("left", "right"),
        default="left",
        help="where a longer image loses tokens; <IMG> and the tail always stay (default: left)",
    )
    split = parser.add_argument_group("split")
    split.add_argument(
        "--split_by",
        choices=("stratified", "hash", "field"),
        default="stratified",
        help="stratified: at random within each class (default); hash: a row's side never changes as the data grow; "
        "field: the rows' own split, train or test",
    )
    split.add_argument("--test_size", type=float, default=0.2, metavar="S", help="share of test rows (default: 0.2)")
    split.add_argument("--seed", type=int, default=42, metavar="N", help="seed of the stratified draw (default: 42)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    # Imported late, so that --help answers at once.
    from imagelm.dataset import PrepareOptions, prepare
    from imagelm.statistics import summary

    stats = prepare(PrepareOptions(**vars(arguments)), command=shlex.join(["python", *sys.argv]))
    print("\n".join(summary(stats)))
    print(f"written: {arguments.output_dir}")


if __name__ == "__main__":
    run_script(main)
