#!/usr/bin/env python
"""Images, or raw JSONL rows → an Arrow `DatasetDict` with its tokenizer, checked, deduplicated and split.

    python prepare_dataset.py --images photos/ --output_dir data/photos
    python prepare_dataset.py --data_files rows.jsonl --vocab_file vocab.json --output_dir data/rows

Images: a folder of pictures for each class, a Parquet/Arrow/Hub dataset with `Image` and `ClassLabel` columns, or an
NPZ file. A codebook is fitted on the training images and turns each image into tokens.
A row is a JSON object: {"tokens": "<IMG> <Z_012> … </IMG> <CLS> <CLS_7> <EOS>", "label": 7}; `tokens` may be a list.
"""

from __future__ import annotations

import argparse
import shlex
import sys

from imagelm.utils.errors import run_script


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 done, 2 the input is wrong, 1 anything else.",
        allow_abbrev=False,
    )
    add = parser.add_argument_group("input and output").add_argument
    add(
        "--images", nargs="+", metavar="F", help="folders, .parquet, .arrow or .npz files, or a dataset's id on the Hub"
    )
    add("--test_images", nargs="+", metavar="F", help="the held-out images (default: a share of --images)")
    add("--data_files", nargs="+", metavar="F", help="rows: .jsonl, .jsonl.gz, .jsonl.zst; several, or globs")
    add("--vocab_file", metavar="V", help="of the rows; vocab.json: token to id")
    add("--class_names", metavar="F", help="of the rows; a JSON list of names in the order of the labels")
    add("--output_dir", required=True, metavar="D", help="folder to write, whole or not at all")
    add("--overwrite", action="store_true", help="replace a dataset that stands in --output_dir")

    add = parser.add_argument_group("images").add_argument
    add("--image_size", metavar="N", help="32 or 32x48 (height x width) pixels; default: the most common size")
    text = "what happens to images of another size: resize them, or pad them (larger ones are shrunk first)"
    add("--fit", choices=("resize", "pad"), default="resize", help=f"{text}; default: resize")
    text = "brightness under transparent and padded pixels, 0 (black, default) to 255 (white)"
    add("--background", type=int, default=0, metavar="B", help=text)
    add("--channels", choices=("auto", "grey", "rgb"), default="auto", help="auto: grey if no image is coloured")
    add("--image_column", metavar="C", help="column or NPZ array of the images (default: found by type)")
    add("--label_column", metavar="C", help="column or NPZ array of the labels")
    text = "variants of each training image: shift=2,rotate=10,scale=0.1,hflip,vflip (pixels, degrees, share)"
    add("--augment", metavar="A", help=f"{text}; any of them")
    add("--variants", type=int, default=0, metavar="N", help="number of variants of each training image (default: 0)")
    add("--keep_images", action="store_true", help="keep the images in the dataset too; train.py --augment needs them")
    add("--write_jsonl", action="store_true", help="write the rows as raw JSONL too, into D/raw")

    add = parser.add_argument_group("codebook").add_argument
    text = "patch: k-means over patches (default); unified: k-means over pixels with position and gradient, a token a "
    text += "pixel; learned: a small vector-quantized autoencoder"
    add("--codebook", choices=("patch", "unified", "learned"), default="patch", help=text)
    add("--patch_size", type=int, default=4, metavar="P", help="pixels a token and side (patch, learned; default: 4)")
    add("--codebook_size", type=int, default=500, metavar="K", help="number of entries (default: 500)")
    add("--codec", metavar="F", help="use this codec instead of fitting one: the D/codec of other images, or a model")
    text = "unified: what a pixel is described by, of x,y,t,R,G,B,A,Gx,Gy (default: x,y,R,G,B,Gx,Gy); t, the number of "
    text += "the picture's file, comes from a column or array t, or is the picture's index within its class"
    add("--features", default="x,y,R,G,B,Gx,Gy", metavar="X,Y", help=text)
    text = "unified: standardize (default) divides each feature by its standard deviation"
    add("--feature_scaling", choices=("standardize", "none"), default="standardize", help=text)
    add("--centroids", metavar="F", help="unified: a CSV of centroids with a column a feature, instead of fitting")
    add("--codec_steps", type=int, default=2000, metavar="N", help="learned: training steps (default: 2000)")
    add("--device", default="auto", metavar="X", help="cpu, cuda, … (default: a GPU where there is one)")

    add = parser.add_argument_group("rows").add_argument
    text = "stop: write nothing (default for rows); skip: leave bad rows or unreadable images out and keep their names "
    text += "in D/bad_rows.jsonl (default for images)"
    add("--on_bad_rows", choices=("stop", "skip"), help=text)
    add("--max_length", type=int, metavar="N", help="longest row in tokens (default: the longest row)")
    text = "where a longer image loses tokens; <IMG> and the tail always stay (default: left)"
    add("--truncation_side", choices=("left", "right"), default="left", help=text)

    add = parser.add_argument_group("split").add_argument
    text = "stratified: at random within each class (default); hash: a row's side never changes as the data grow; "
    text += "field: the rows' own split, train or test"
    add("--split_by", choices=("stratified", "hash", "field"), default="stratified", help=text)
    add("--test_size", type=float, default=0.2, metavar="S", help="share of test rows (default: 0.2)")
    text = "seed of the stratified draw, of codebook and variants (default: 42)"
    add("--seed", type=int, default=42, metavar="N", help=text)
    return parser.parse_args()


def main() -> None:
    arguments = vars(parse_arguments())
    # Imported late, so that --help answers at once.
    from imagelm.data.arguments import make_options
    from imagelm.data.prepare import prepare
    from imagelm.data.stats import summary

    stats = prepare(make_options(arguments), command=shlex.join(["python", *sys.argv]))
    print("\n".join(summary(stats)))
    print(f"written: {arguments['output_dir']}")


if __name__ == "__main__":
    run_script(main)
