"""Which attention is faster: a trial of both on one layer."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, LlamaConfig

from imagelm.accel.attention import CAUSAL_PRODUCT
from imagelm.accel.fastest import faster, time_attention

CONFIGS = {
    "dropout": GPT2Config(n_embd=32, n_head=4, attn_pdrop=0.1),
    "grouped heads": LlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=16),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_both_ways_are_timed_and_the_run_s_random_numbers_stay(config, dtype):
    before = torch.get_rng_state()
    times = time_attention(config, (2, 9), dtype)
    assert set(times) == {CAUSAL_PRODUCT, "sdpa"} and min(times.values()) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_sdpa_must_be_clearly_faster():
    assert faster({CAUSAL_PRODUCT: 10.0, "sdpa": 8.9}) == "sdpa"
    assert faster({CAUSAL_PRODUCT: 10.0, "sdpa": 9.1}) == CAUSAL_PRODUCT
    assert faster({}) == CAUSAL_PRODUCT
