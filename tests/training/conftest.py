"""The rows that every session prepares once, as the trainer takes them."""

from __future__ import annotations

import pytest

from imagelm.data.load import load_prepared
from imagelm.tokens.tokenizer import load_tokenizer


@pytest.fixture
def tokenizer(prepared):
    return load_tokenizer(prepared / "tokenizer")


@pytest.fixture
def data(prepared):
    return load_prepared(prepared)
