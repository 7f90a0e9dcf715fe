"""Training rows made anew in each epoch, from the images themselves.

One idea: what a row looks like depends on seed, epoch and the row's number alone, so that workers, processes and a
resumed run see the same rows.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image

from imagelm.data.augmentation import Augmentation, augment
from imagelm.remote_code.codec_imagelm import Codec
from imagelm.tokens.grammar import Grammar


class AugmentedRows(torch.utils.data.Dataset):
    """Rows whose images are augmented and encoded as they are read.

    Args:
        rows: Training rows with the columns `input_ids` and `image`.
        codec: What the images are encoded with.
        grammar: The rows' vocabulary.
        recipe: How far a row's image may be from the one that is kept.
        seed: Of the augmentation.
    """

    def __init__(self, rows: Dataset, codec: Codec, grammar: Grammar, recipe: Augmentation, seed: int) -> None:
        self.rows = rows.select_columns(["input_ids", "image"]).cast_column("image", ImageFeature(decode=False))
        self.codec, self.grammar, self.recipe, self.seed = codec, grammar, recipe, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.rows)

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next rows are of."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, np.ndarray]]:
        """Several rows at once, as torch's loader asks for them."""
        found = self.rows[indices]
        images = np.stack([self._pixels(image["bytes"]) for image in found["image"]])
        maps = np.concatenate([self.recipe.draw(1, (self.seed, self.epoch, int(index))) for index in indices])
        codes = self.grammar.code_ids[self.codec.encode(augment(images, maps, self.codec.config["background"]))]
        rows = np.array(found["input_ids"])
        rows[:, 1 : 1 + self.codec.num_tokens] = codes
        return [{"input_ids": row} for row in rows]

    def _pixels(self, file: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(file))).reshape(*self.codec.image_size, self.codec.channels)
