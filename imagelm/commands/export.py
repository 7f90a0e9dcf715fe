#!/usr/bin/env python
"""A trained folder → ONNX, in float32 or with 8-bit weights, for onnxruntime on any machine.

python -m imagelm export --model outputs/mine/best_model --output_dir outputs/mine/onnx --int8
python inference.py --model outputs/mine/best_model --onnx outputs/mine/onnx --mode classify --dataset_dir data/mine
"""

from __future__ import annotations

import argparse
from pathlib import Path

from imagelm.utils.errors import run_script


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m imagelm.export.onnx",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 done, 2 the input is wrong, 1 anything else.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, metavar="M", help="trained folder (…/best_model) or Hub id")
    parser.add_argument("--output_dir", required=True, metavar="D", help="folder to write, whole or not at all")
    parser.add_argument("--int8", action="store_true", help="8-bit weights: smaller and faster, not quite the same")
    parser.add_argument("--overwrite", action="store_true", help="replace an export that stands in --output_dir")
    return parser.parse_args()


def main() -> None:
    from imagelm.export.onnx import export_onnx

    arguments = parse_arguments()
    output = Path(arguments.output_dir)
    difference = export_onnx(arguments.model, output, arguments.int8, arguments.overwrite)
    print(f"written: {output} ({'int8' if arguments.int8 else 'float32'} weights)")
    print(f"largest difference from the model's own logits on random rows: {difference:.2g}")


if __name__ == "__main__":
    run_script(main)
