"""The predictions of docs/how_to/scale.md: what they are computed from, and that the page holds them."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.cost import LENGTH, PAGE, SHAPES, VOCABULARY, filled


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_the_sizes_are_those_of_real_models(shape):
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=shape.width, n_layer=shape.layers, n_head=8, **ids
    )
    with torch.device("meta"):
        assert GPT2LMHeadModel(config).num_parameters() == shape.parameters


def test_the_smallest_model_on_one_gpu_takes_the_measured_time_and_others_more():
    small, medium, large = SHAPES
    assert small.seconds == pytest.approx(26.4e-3)
    # 6 x 99,782,400 + 12 x 14 x 768 x 201 operations a token, and 0.1836 ns for each of its 14 x 768 units of width.
    assert medium.seconds == pytest.approx(256 * 201 * (624_628_224 / 790e12 + 14 * 768 * 1.8362e-10), rel=1e-3)
    assert large.traffic(8) == 2 * 7 / 8 * 4 * large.parameters
    assert large.update_seconds(64) > large.update_seconds(8) == large.seconds


def test_the_page_holds_the_tables():
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page) == page, "run python -m benchmarks.cost --write"
