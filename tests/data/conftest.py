"""A codec that loses nothing, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.images import grey_levels_codec


@pytest.fixture(scope="session")
def lossless(tmp_path_factory) -> Path:
    """A codec that keeps grey images of 6×8 pixels as they are."""
    return grey_levels_codec(tmp_path_factory.mktemp("codec") / "codec", (6, 8))
