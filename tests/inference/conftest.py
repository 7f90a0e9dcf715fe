"""A tiny model, made once."""

from __future__ import annotations

import pytest

from imagelm.inference.loading import LoadedModel
from imagelm.tokens.grammar import Grammar
from tests.inference.tiny import tiny


@pytest.fixture(scope="session")
def loaded(grammar: Grammar) -> LoadedModel:
    """The 30 codes and 3 classes of the other tests, images of up to 9 tokens."""
    return tiny(grammar, 14)
