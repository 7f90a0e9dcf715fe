"""Images for tests: random arrays, folders of them, and `prepare_dataset.py --images` as a user calls it."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image

from imagelm.data.arguments import PrepareArguments
from imagelm.data.load import load_prepared
from imagelm.data.prepare import prepare
from imagelm.remote_code.codec_imagelm import PatchCodec, load_codec
from imagelm.tokens.tokenizer import grammar_of, load_tokenizer


def random_images(count: int, size: tuple[int, int] = (8, 8), channels: int = 1, seed: int = 0) -> np.ndarray:
    """uint8, shape (count, height, width, channels), all values equally likely."""
    return np.random.default_rng(seed).integers(0, 256, (count, *size, channels), dtype=np.uint8)


def smooth_images(count: int, size: tuple[int, int] = (8, 8), channels: int = 1, seed: int = 0) -> np.ndarray:
    """As `random_images`, but of big soft shapes, so that neighbouring pixels and patches are alike."""
    rng = np.random.default_rng(seed)
    y, x = np.indices(size)[:, None, :, :, None] / max(size)
    a, b, phase = rng.uniform(-6, 6, (3, count, 1, 1, channels))
    return np.rint(127.5 + 127.5 * np.sin(a * x + b * y + phase)).astype(np.uint8)


def to_image(pixels: np.ndarray) -> Image.Image:
    """A Pillow image of uint8 (height, width, 1, 3 or 4)."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def class_folder(root: Path, classes: dict[str, np.ndarray], suffix: str = ".png") -> Path:
    """A folder with a folder a class; images are named 0, 1, …"""
    for name, images in classes.items():
        (root / name).mkdir(parents=True)
        for i, pixels in enumerate(images):
            to_image(pixels).save(root / name / f"{i}{suffix}")
    return root


def cats_and_dogs(
    root: Path, per_class: int = 10, size: tuple[int, int] = (8, 8), channels: int = 1, seed: int = 0
) -> Path:
    """A folder of random images of two classes."""
    images = random_images(2 * per_class, size, channels, seed)
    return class_folder(root, {"cat": images[:per_class], "dog": images[per_class:]})


def prepare_images(output: Path, images: object, **options: object) -> tuple[datasets.DatasetDict, dict]:
    """`prepare_dataset.py --images …` with a small codebook; the dataset and its statistics."""
    names = [str(name) for name in (images if isinstance(images, list) else [images])]
    fitted = {} if "codec" in options else {"codebook_size": 16, "patch_size": 4}
    if "centroids" in options:
        fitted.pop("codebook_size")
    stats = prepare(
        PrepareArguments(images=names, output_dir=str(output), **{"device": "cpu", **fitted, **options}), command="test"
    )
    return load_prepared(output), stats


def entries_in(rows: datasets.Dataset, folder: Path) -> np.ndarray:
    """The codebook entries of prepared rows; int64, shape (rows, tokens an image)."""
    grammar = grammar_of(load_tokenizer(folder / "tokenizer"))
    entry = np.full(grammar.size, -1)
    entry[grammar.code_ids] = np.arange(len(grammar.code_ids))
    return entry[np.array(rows["input_ids"])[:, 1:-4]]


def restored(rows: datasets.Dataset, folder: Path) -> np.ndarray:
    """The images that prepared rows stand for."""
    return load_codec(folder / "codec").decode(entries_in(rows, folder))


def grey_levels_codec(folder: Path, size: tuple[int, int]) -> Path:
    """A codec without loss for grey images: a token a pixel, an entry a grey value."""
    config = {"image_size": list(size), "channels": 1, "patch_size": 1}
    PatchCodec(config, {"codebook": torch.arange(256, dtype=torch.uint8)[:, None]}).save(folder)
    return folder
