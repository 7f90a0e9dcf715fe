"""Sources as `prepare` opens them, tables of images, and what is read of either."""

from __future__ import annotations

import io

import datasets
import numpy as np
from PIL import Image

from imagelm.data.arguments import PrepareArguments
from imagelm.data.sources.open import LabelledImages, batches, open_labelled_images
from tests.images import random_images, to_image


def pixels_of(source) -> list[np.ndarray]:
    """All images, read in slices of 3, as arrays."""
    return [np.asarray(image) for _, images in batches(source, 3) for image in images]


def labelled(*names: object, **options: object) -> LabelledImages:
    """The images that `prepare` would read."""
    return open_labelled_images(PrepareArguments(images=list(map(str, names)), output_dir="none", **options))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    to_image(pixels).save(buffer, "PNG")
    return buffer.getvalue()


FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["owl", "ant"])})


def table(count: int = 8, channels: int = 3, seed: int = 0) -> tuple[datasets.Dataset, np.ndarray]:
    images = random_images(count, channels=channels, seed=seed)
    columns = {"image": [to_image(image) for image in images], "label": [i % 2 for i in range(count)]}
    return datasets.Dataset.from_dict(columns, features=FEATURES), images


def check_source(source, images: np.ndarray, names: list[str], labels: list[int]) -> None:
    assert source.class_names == names
    assert source.labels.tolist() == labels
    found = pixels_of(source)
    assert len(source) == len(found) == len(images)
    assert all((one.reshape(other.shape) == other).all() for one, other in zip(found, images, strict=True))


def sizes(images: LabelledImages) -> list[int]:
    """The number of images of each source; every one of them can be read."""
    for source in images.sources:
        assert all(isinstance(image, Image.Image) for image in source.load(0, len(source)))
    return list(map(len, images.sources))
