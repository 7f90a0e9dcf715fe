"""Reading what `prepare` wrote."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from imagelm.data.integrity import changes
from imagelm.data.rows import SPLITS
from imagelm.data.sources.loading import load_saved_dataset
from imagelm.tokens.grammar import BODY, Grammar
from imagelm.tokens.tokenizer import load_grammar
from imagelm.utils.artifacts import CODEC_FOLDER, STATS_FILE, TOKENIZER_FOLDER
from imagelm.utils.atomic_io import read_json
from imagelm.utils.errors import InputError
from imagelm.utils.manifest import damage
from imagelm.utils.text import first_line

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from imagelm.data.augmentation import AugmentedRows
    from imagelm.remote_code.codec_imagelm import Codec


logger = logging.getLogger(__name__)

PREPARE_AGAIN = "write the data again with imagelm prepare"
FILES_BESIDE_ROWS = (STATS_FILE, f"{TOKENIZER_FOLDER}/", f"{CODEC_FOLDER}/")
NEEDED_STATS = ("class_names", "classes", "fingerprint", "lengths", "max_length", "num_rows")


def load_prepared(folder: str | Path, splits: Collection[str] | None = None, with_images: bool = False) -> DatasetDict:
    """Loads what `prepare` wrote, and checks that it is still what was prepared.

    Args:
        folder: The folder.
        splits: The splits to check; None for all.
        with_images: Whether kept images are checked too.

    Raises:
        InputError: The folder isn't a prepared dataset, is damaged, or was changed since.
    """
    from datasets import DatasetDict

    folder = Path(folder)
    if not (folder / STATS_FILE).is_file():
        raise InputError(
            f"--dataset_dir {folder} holds no {STATS_FILE}; write it with imagelm prepare --output_dir {folder}"
        )
    if damaged := damage(folder, FILES_BESIDE_ROWS):
        raise InputError(f"--dataset_dir {folder} isn't what was prepared: {damaged}; {PREPARE_AGAIN}")
    stats, dataset = load_stats(folder), load_saved_dataset(folder, "--dataset_dir")
    needed = [name for name in SPLITS if name != "validation" or name in stats["num_rows"]]
    if not isinstance(dataset, DatasetDict) or not set(needed) <= set(dataset):
        raise InputError(f"--dataset_dir {folder} lacks one of the splits {', '.join(needed)}; {PREPARE_AGAIN}")
    checked = {name: rows for name, rows in dataset.items() if splits is None or name in splits}
    if problems := list(changes(checked, stats, load_grammar(folder / TOKENIZER_FOLDER), with_images)):
        lines = "\n".join(f"  {problem}" for problem in problems)
        raise InputError(f"--dataset_dir {folder} isn't what was prepared:\n{lines}\n{PREPARE_AGAIN}")
    if "digests" not in stats:
        logger.warning(
            "--dataset_dir %s was prepared by a version that recorded no digests: a row that was replaced by another "
            "valid one isn't noticed; %s",
            folder,
            PREPARE_AGAIN,
        )
    return dataset


def load_stats(folder: str | Path) -> dict:
    """The statistics that `prepare` wrote into `folder`.

    Raises:
        InputError: An earlier version wrote them, or they are damaged.
    """
    file = Path(folder) / STATS_FILE
    try:
        stats = read_json(file)
    except ValueError as error:
        raise InputError(f"{file} is damaged: {first_line(error)}; {PREPARE_AGAIN}") from error
    if lacking := [name for name in NEEDED_STATS if name not in stats]:
        raise InputError(f"{file} lacks {', '.join(lacking)}: it is damaged, or of an earlier version; {PREPARE_AGAIN}")
    stats.setdefault("repaired_tails", stats.get("mended_tails", 0))  # its name before version 0.2
    return stats


def load_codec_of(folder: str | Path) -> Codec | None:
    """The codec that made the rows; None for rows that came without one.

    Raises:
        InputError: It is damaged.
    """
    codec = Path(folder) / CODEC_FOLDER
    if not codec.is_dir():
        return None
    from imagelm.remote_code.codec_imagelm import load_codec  # late: rows of tokens need no torch

    try:
        return load_codec(codec)
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"--dataset_dir {folder}: {error}; write it again with imagelm prepare") from error


def augmented(
    train: Dataset, codec: Codec | None, grammar: Grammar, recipe: str | None, seed: int
) -> Dataset | AugmentedRows:
    """The training rows; with a recipe, rows whose images are augmented and encoded again in each epoch.

    Raises:
        InputError: The recipe is wrong, or the data hold no images.
    """
    if recipe is None:
        return train
    if codec is None or "image" not in train.features:
        raise InputError("--augment needs the images: write the data with imagelm prepare --images … --keep_images")
    if "t" in codec.config.get("features", ()):
        raise InputError("--augment: this codec uses t, the number of an image's file, which a variant doesn't have")
    from imagelm.data.augmentation import AugmentedRows, parse_augmentation  # late, as above

    augmentation = parse_augmentation(recipe)
    return train if augmentation is None else AugmentedRows(train, codec, grammar, augmentation, seed)


def image_bodies(dataset: Dataset) -> Iterator[np.ndarray]:
    """The image of each row, as token ids; shape (tokens,)."""
    for batch in dataset.select_columns(["input_ids"]).with_format("arrow").iter(10_000):
        ids = batch["input_ids"].combine_chunks()
        rows = np.split(ids.flatten().to_numpy(), ids.offsets.to_numpy()[1:-1] - ids.offsets[0].as_py())
        yield from (np.ascontiguousarray(row[BODY]) for row in rows)
