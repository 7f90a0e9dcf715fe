"""Which attention is faster on this machine: both are tried on one layer.

One idea: torch's fused kernel and products over chunks of rows overtake each other by dtype, head size, dropout and
kind of CPU, so neither a name nor a table decides, but a fraction of a second at the start of a long run.
"""

from __future__ import annotations

import time

import torch
from torch import nn
from transformers import PreTrainedConfig

from imagelm.accel.attention import CAUSAL_PRODUCT, SDPA, causal_product

WAYS = {CAUSAL_PRODUCT: causal_product, "sdpa": SDPA}
NUM_TRIALS = 5
# sdpa is taken if it needs less than this share of the time: what is nearly equal shall not depend on noise.
CLEARLY_LESS = 0.9


class _Layer(nn.Module):
    """What an attention function reads of the layer that calls it."""

    is_causal = True
    num_key_value_groups = 1


def time_attention(config: PreTrainedConfig, batch: tuple[int, int], dtype: torch.dtype) -> dict[str, float]:
    """Milliseconds that a layer's attention takes forwards and backwards on the CPU, by its name.

    The best of `NUM_TRIALS` in turn, after one that warms up. No generator's state is changed.

    Args:
        config: Of the model; names the heads, their size and the dropout on probabilities.
        batch: Rows and length.
        dtype: Of the matrix products.
    """
    dropout = getattr(config, "attn_pdrop", None) or getattr(config, "attention_dropout", None) or 0.0
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    layer = _Layer()
    layer.num_key_value_groups = heads // key_heads
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn((*batch, number, size), generator=generator).to(dtype).transpose(1, 2).requires_grad_()
        for number in (heads, key_heads, key_heads)
    ]
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    with torch.random.fork_rng(devices=()), torch.enable_grad():
        for _ in range(1 + NUM_TRIALS):
            for name, way in WAYS.items():
                started = time.perf_counter()
                output = way(layer, *inputs, None, dropout=dropout)[0]
                torch.autograd.grad(output, inputs, torch.ones_like(output))
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: min(values[1:]) for name, values in times.items()}


def faster(times: dict[str, float]) -> str:
    """The name of the attention to take: sdpa only if it was measured and clearly faster."""
    return "sdpa" if times and times["sdpa"] < CLEARLY_LESS * times[CAUSAL_PRODUCT] else CAUSAL_PRODUCT
