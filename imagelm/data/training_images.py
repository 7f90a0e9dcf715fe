"""Which images a model was trained on: a 64-bit digest of the tokens of each, in a file beside the weights.

One idea: an evaluation can report which of its rows the model has seen in training. The file holds no image, but anyone
who has an image can find out whether it was used for training.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from imagelm.data.load import image_bodies
from imagelm.utils.artifacts import TRAINING_IMAGES_FILE
from imagelm.utils.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

MAX_IMAGES = 1_000_000  # of 8 bytes; larger data leave no file
KEY = "digests"


def image_digests(bodies: Iterable[np.ndarray]) -> np.ndarray:
    """The digest of each image body, token ids of shape (tokens,); int64, shape (images,)."""
    digests = (xxhash.xxh3_64_intdigest(body.astype("<i4").tobytes()) for body in bodies)
    return np.fromiter(digests, np.uint64).view(np.int64)


def save_training_images(digests: np.ndarray, folder: Path) -> None:
    """Writes the file into a model's folder."""
    save_file({KEY: digests}, folder / TRAINING_IMAGES_FILE)


def training_images(train: Dataset, earlier: np.ndarray | None = None) -> np.ndarray | None:
    """The digests of the training rows and `earlier` ones, each once; None if there are more than `MAX_IMAGES`."""
    if len(train) > MAX_IMAGES:
        return None
    found = np.unique(image_digests(image_bodies(train)))
    found = found if earlier is None else np.union1d(found, earlier)
    return found if len(found) <= MAX_IMAGES else None


def num_seen(rows: Dataset, digests: np.ndarray | None) -> int:
    """How many rows show images with these digests; 0 if they aren't known."""
    return 0 if digests is None else int(np.isin(image_digests(image_bodies(rows)), digests).sum())


def load_training_images(name: str | Path) -> np.ndarray | None:
    """The digests beside a model, which is a folder or an id on the Hub; None if there are none.

    Raises:
        InputError: The file isn't one that `save_training_images` wrote.
    """
    file = Path(name) / TRAINING_IMAGES_FILE
    if not Path(name).is_dir():
        from transformers.utils import cached_file  # late: rows need no transformers

        file = Path(cached_file(str(name), TRAINING_IMAGES_FILE, _raise_exceptions_for_missing_entries=False) or file)
    if not file.is_file():
        return None
    try:
        if file.stat().st_size > 8 * MAX_IMAGES + 1024:
            raise ValueError(f"it is larger than {MAX_IMAGES:,} digests")
        digests = load_file(file)[KEY]
        if digests.dtype != np.int64 or digests.ndim != 1:
            raise ValueError(f"it holds {digests.dtype} of shape {digests.shape}")
        return digests
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"{file} is damaged: {error}; restore the file or remove it") from error
