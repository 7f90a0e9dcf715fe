"""Causal attention as plain matrix products over chunks of rows, for CPUs.

One idea: the fused CPU kernel of torch runs at a small share of the matrix rate where heads are narrow, and has no fast
path for dropout. Products over chunks of query rows run at the full rate, and each chunk leaves out the keys behind its
last row, which are masked in any case. A single query, as in drawing with a cache, is one chunk. transformers calls it
by the name `CAUSAL_PRODUCT`; whatever has another mask (padding on the left, a window) goes to sdpa.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from imagelm.dropout import drop

CAUSAL_PRODUCT = "causal_product"
# About so many query rows a chunk: fewer leave out more of the masked half, more keep the products large.
CHUNK_ROWS = 128
# What other architectures ask of their attention beyond a causal mask.
UNSUPPORTED = ("position_bias", "cache", "s_aux")


def causal_product(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface.

    Args:
        module: The attention layer.
        query: Shape (rows, heads, length, head size); key and value may have fewer heads.
        key: The same.
        value: The same.
        attention_mask: None for a plain causal mask.
        dropout: Of the attention probabilities.
        scaling: Of the scores; None for one over the root of the head size.
        is_causal: False for an encoder's layer.
        kwargs: What else the layer was told.

    Returns:
        Shape (rows, length, heads, head size), and None for the probabilities.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    whole = query.shape[2] in (1, key.shape[2])
    if (
        attention_mask is not None
        or not (causal and whole)
        or any(kwargs.get(name) is not None for name in UNSUPPORTED)
    ):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **kwargs
        )
    if kwargs.get("softcap") is not None:
        raise ValueError(f"{CAUSAL_PRODUCT} has no softcap; take --attention eager")
    groups = query.shape[1] // key.shape[1]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = in_chunks(query * scaling, repeat_kv(key, groups), repeat_kv(value, groups), dropout)
    return output.transpose(1, 2).contiguous(), None


def in_chunks(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """softmax(query · keyᵀ + causal mask) · value, with dropout on the probabilities.

    Args:
        query: Scaled; shape (rows, heads, length, head size), as are the others; a single query sees all keys.
        key: See `query`.
        value: See `query`.
        dropout: Share of the probabilities that is set to zero.
    """
    length = query.shape[2]
    if length == 1:
        shares = torch.matmul(query, key.transpose(-1, -2)).softmax(-1).to(value.dtype)
        return torch.matmul(drop(shares, dropout) if dropout else shares, value)
    size = -(-length // max(1, round(length / CHUNK_ROWS)))
    outputs = []
    for start in range(0, length, size):
        end = min(length, start + size)
        scores = torch.matmul(query[:, :, start:end], key[:, :, :end].transpose(-1, -2))
        hidden = torch.ones(end - start, end, dtype=torch.bool, device=query.device).triu(start + 1)
        shares = scores.masked_fill(hidden, -torch.inf).softmax(-1).to(value.dtype)
        outputs.append(torch.matmul(drop(shares, dropout) if dropout else shares, value[:, :, :end]))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def _mask(*, q_length: int, attention_mask: Tensor | None = None, **kwargs: object) -> Tensor | None:
    """sdpa's mask; None for whole rows that are padded on the right, as no token sees what stands behind it."""
    if attention_mask is not None and _padded_on_the_right(attention_mask, q_length):
        attention_mask = None
    return sdpa_mask(q_length=q_length, attention_mask=attention_mask, **kwargs)


def _padded_on_the_right(attention_mask: Tensor, length: int) -> bool:
    if attention_mask.ndim != 2 or attention_mask.shape[1] != length or length == 1:
        return False
    seen = attention_mask.bool()
    return bool(seen[:, 0].all()) and not bool((seen[:, 1:] & ~seen[:, :-1]).any())


def use_in(model: PreTrainedModel) -> None:
    """Has a model that is loaded compute its attention so, where its architecture has a place for it."""
    if model._supports_attention_backend:
        register()
        model.set_attn_implementation(CAUSAL_PRODUCT)


@functools.cache
def register() -> None:
    """Makes `attn_implementation="causal_product"` known to transformers."""
    AttentionInterface.register(CAUSAL_PRODUCT, causal_product)
    AttentionMaskInterface.register(CAUSAL_PRODUCT, _mask)
