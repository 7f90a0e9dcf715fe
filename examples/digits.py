#!/usr/bin/env python
"""Writes scikit-learn's 1,797 digits of 8×8 pixels as raw JSONL rows, with vocabulary and codec; downloads nothing.

    python -m examples.digits --output_dir data/digits/raw

A fifth of the images are test images, a tenth of the others are validation images, and a k-means codebook of 2×2
patches is fitted on the rest. Each training image is also written shifted by one pixel in the eight directions, because
rows of tokens can't be shifted later; `source` names the image that a row is made from, and `split` its split. The
other images aren't shifted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import orjson
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from imagelm.codecs.kmeans import fit_patch_codec
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.vocabulary import make_vocabulary
from imagelm.utils.artifacts import CODEC_FOLDER, VOCABULARY_FILE
from imagelm.utils.atomic_io import write_json
from imagelm.utils.errors import run_script

SHIFTS = [(0, 0), *((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("data/digits/raw"), help="default: data/digits/raw")
    parser.add_argument("--patch_size", type=int, default=2, choices=(1, 2, 4), help="side in pixels (default: 2)")
    parser.add_argument("--codebook_size", type=int, default=64, help="number of centroids (default: 64)")
    parser.add_argument("--test_size", type=float, default=0.2, help="share of test images (default: 0.2)")
    parser.add_argument(
        "--validation_size", type=float, default=0.1, help="share of validation images in the others (default: 0.1)"
    )
    parser.add_argument("--seed", type=int, default=42, help="seed of splits and codebook (default: 42)")
    return parser.parse_args()


def shift(images: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Images moved by (dy, dx) pixels, with empty pixels moving in; shape (images, height, width, channels)."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    _, height, width, _ = images.shape
    return padded[:, 1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]


def main() -> None:
    arguments = parse_arguments()

    images, labels = load_digits(return_X_y=True)
    # 17 levels of grey, spread over 8 bits.
    images = np.rint(images.reshape(-1, 8, 8, 1) * 255 / 16).astype(np.uint8)
    split = np.full(len(images), "train", dtype=object)
    for name, share in (("test", arguments.test_size), ("validation", arguments.validation_size)):
        rest = np.flatnonzero(split == "train")
        _, drawn = train_test_split(rest, test_size=share, stratify=labels[rest], random_state=arguments.seed)
        split[drawn] = name
    train = images[split == "train"]
    codec = fit_patch_codec(train, arguments.patch_size, arguments.codebook_size, arguments.seed)

    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    rows_file = arguments.output_dir / "rows.jsonl"
    grammar = Grammar(make_vocabulary(arguments.codebook_size, labels.max() + 1))
    with open(rows_file, "wb") as file:
        for dy, dx in SHIFTS:
            bodies = grammar.code_ids[codec.encode(shift(images, dy, dx))]
            lengths = np.full(len(bodies), codec.num_tokens)
            for i, sentence in enumerate(grammar.sentences(bodies.reshape(-1), lengths, labels)):
                if split[i] != "train" and (dy, dx) != (0, 0):
                    continue
                row = {"tokens": sentence, "label": int(labels[i])}
                row |= {"split": split[i], "source": f"digit_{i:04d}"}
                file.write(orjson.dumps(row) + b"\n")
    codec.save(arguments.output_dir / CODEC_FOLDER)
    write_json(arguments.output_dir / VOCABULARY_FILE, grammar.vocabulary)
    counts = f"{(split == 'test').sum()} for testing, {(split == 'validation').sum()} for validation"
    print(f"{len(images)} images, {counts}, {len(SHIFTS)} variants of each of the others: {rows_file}")


if __name__ == "__main__":
    run_script(main)
