"""A trained folder with its processor, and a picture that the model hasn't seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagelm.remote_code.processing_imagelm import ImageLMProcessor
from tests.images import smooth_images, to_image


@pytest.fixture(scope="session")
def home(pictured) -> Path:
    return pictured


@pytest.fixture(scope="session")
def folder(home) -> Path:
    return home / "out/best_model"


@pytest.fixture(scope="session")
def processor(folder) -> ImageLMProcessor:
    return ImageLMProcessor.from_pretrained(folder)


@pytest.fixture(scope="session")
def picture(home) -> Path:
    """One that the model hasn't seen, of another size and mode."""
    file = home / "cat.png"
    to_image(smooth_images(1, (20, 14), 3, seed=77)[0]).convert("RGBA").save(file)
    return file
