"""Causal attention: as plain matrix products over chunks of rows, for CPUs, and without a look at the mask, for GPUs.

One idea: in bfloat16 the fused CPU kernel of torch runs at a small share of the matrix rate where heads are narrow, and
it has no fast path for dropout. Products over chunks of query rows run at the full rate, and each chunk omits the keys
after its last row, which are masked in any case. A single query, as in generation with a cache, is one chunk.
transformers calls it by the name `CAUSAL_PRODUCT`; any other mask (padding on the left, a window) goes to sdpa.

`CAUSAL_SDPA` is sdpa without a function that makes masks: the library's reads values from the device in each forward
pass, to find out that whole rows need none.
"""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel

from imagelm.accel.dropout import draw_kept, drop, kept_scale
from imagelm.utils.errors import InputError

CAUSAL_PRODUCT, CAUSAL_SDPA = "causal_product", "causal_sdpa"
SDPA, SDPA_MASK = AttentionInterface()["sdpa"], AttentionMaskInterface()["sdpa"]
# Query rows a chunk, about: fewer omit more of the masked half, more keep the products large.
CHUNK_ROWS = 128
# CPUs on which torch's fused kernel is faster in float32 without a gradient: 1.3 to 1.5 times on one with AVX2. On
# those with AVX-512 only bfloat16 was measured.
FUSED_CAPABILITY = "AVX2"
# What some architectures need of their attention beyond a causal mask.
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
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The function that `AttentionInterface` asks for.

    Args:
        query: Shape (rows, heads, length, head size), as `key` and `value`, which may have fewer heads.
        attention_mask: None for a plain causal mask.
        scaling: Of the scores; None for one over the root of the head size.
        is_causal: False for an encoder's layer.

    Returns:
        Shape (rows, length, heads, head size), and None for the probabilities.
    """
    if kwargs.get("softcap") is not None:
        raise ValueError(f"{CAUSAL_PRODUCT} has no softcap; use --attention eager")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    whole = query.shape[2] in (1, key.shape[2])
    if (
        attention_mask is not None
        or not (causal and whole)
        or any(kwargs.get(name) is not None for name in UNSUPPORTED)
        or _fused_is_faster(query, dropout)
    ):
        return SDPA(module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **kwargs)
    groups = query.shape[1] // key.shape[1]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = in_chunks(query * scaling, _repeat_heads(key, groups), _repeat_heads(value, groups), dropout)
    return output.transpose(1, 2).contiguous(), None


def _fused_is_faster(query: Tensor, dropout: float) -> bool:
    plain = query.shape[2] > 1 and not (dropout or query.requires_grad or torch.compiler.is_compiling())
    on_cpu = query.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == FUSED_CAPABILITY
    return plain and query.dtype == torch.float32 and on_cpu


def _repeat_heads(x: Tensor, groups: int) -> Tensor:
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def in_chunks(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """softmax(query · keyᵀ + causal mask) · value, with dropout on the probabilities.

    All of shape (rows, heads, length, head size); the queries are scaled, and a single one sees all keys.
    """
    if query.shape[2] == 1:
        shares = torch.matmul(query, key.transpose(-1, -2)).softmax(-1).to(value.dtype)
        return torch.matmul(drop(shares, dropout) if dropout else shares, value)
    if torch.compiler.is_compiling():
        return FusedProduct.apply(query, key, value, dropout)
    outputs = []
    for start, end in chunks(query.shape[2]):
        scores = torch.matmul(query[:, :, start:end], key[:, :, :end].transpose(-1, -2))
        if scores.requires_grad:
            scores = scores.masked_fill(_hidden(start, end, query.device), -torch.inf)
        else:  # in place, and only where a key can be hidden
            scores[..., start:].masked_fill_(_hidden(start, end, query.device)[:, start:], -torch.inf)
        shares = scores.softmax(-1).to(value.dtype)
        outputs.append(torch.matmul(drop(shares, dropout) if dropout else shares, value[:, :, :end]))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)


def chunks(length: int) -> list[tuple[int, int]]:
    """First and last row (exclusive) of each chunk; at least one."""
    size = -(-length // max(1, round(length / CHUNK_ROWS)))
    return [(start, min(length, start + size)) for start in range(0, length, size)]


def _hidden(start: int, end: int, device: torch.device) -> Tensor:
    """Which of the first `end` keys the rows from `start` don't see; bool, shape (end - start, end)."""
    return torch.arange(end, device=device) > torch.arange(start, end, device=device)[:, None]


class FusedProduct(torch.autograd.Function):
    """`in_chunks`, written so that a compiler fuses it into one pass a chunk in either direction.

    Exponentials are kept in the dtype of `value`, not yet divided by their sum; the outputs are divided, which are
    narrower. The gradient takes the sum of gradient times probability from gradient times output (Dao et al., 2022,
    arXiv:2205.14135, appendix B), so it reads each chunk once, and masked places are zero by construction.
    Uncompiled it would be slower than the softmax of torch.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        outputs, saved, wide = [], [], torch.promote_types(value.dtype, torch.float32)
        for start, end in chunks(query.shape[2]):
            scores = torch.matmul(query[:, :, start:end], key[:, :, :end].transpose(-1, -2)).to(wide)
            scores = scores.masked_fill(_hidden(start, end, query.device), -torch.inf)
            powers = (scores - scores.amax(-1, keepdim=True)).exp().to(value.dtype)
            factor = 1 / powers.to(wide).sum(-1, keepdim=True)
            saved += [powers, factor]
            if dropout:
                kept = draw_kept(powers, dropout)
                powers, factor = powers * kept.to(value.dtype), factor * kept_scale(dropout)
                saved.append(kept)
            outputs.append((torch.matmul(powers, value[:, :, :end]) * factor).to(value.dtype))
        output = _join(outputs)
        ctx.save_for_backward(query, key, value, output, *saved)
        ctx.dropout = dropout
        return output

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, output, *saved = ctx.saved_tensors
        bounds, each = chunks(query.shape[2]), 3 if ctx.dropout else 2
        wide = torch.promote_types(value.dtype, torch.float32)
        of_query, of_key, of_value = [], [], []
        for i, (start, end) in enumerate(bounds):
            powers, factor, *kept = saved[each * i : each * (i + 1)]
            rows = gradient[:, :, start:end].to(wide) * factor
            mean = (rows * output[:, :, start:end].to(wide)).sum(-1, keepdim=True)
            rows = rows.to(value.dtype)
            of_shares = torch.matmul(rows, value[:, :, :end].transpose(-1, -2)).to(wide)
            used = powers
            if kept:
                scale = kept_scale(ctx.dropout)
                used, rows = powers * kept[0].to(value.dtype), (rows * scale).to(value.dtype)
                of_shares = of_shares * (kept[0].to(wide) * scale)
            of_scores = (powers.to(wide) * (of_shares - mean)).to(value.dtype)
            of_query.append(torch.matmul(of_scores, key[:, :, :end]))
            of_key.append(torch.matmul(of_scores.transpose(-1, -2), query[:, :, start:end]))
            of_value.append(torch.matmul(used.transpose(-1, -2), rows))
        return _join(of_query), _add_up(of_key, bounds), _add_up(of_value, bounds), None


def _add_up(parts: list[Tensor], bounds: list[tuple[int, int]]) -> Tensor:
    """Sum of the chunks' gradients of keys, each of which reaches from the first key to its chunk's end."""
    sums, wide = [], torch.promote_types(parts[0].dtype, torch.float32)
    for i, (start, end) in enumerate(bounds):
        total = cast(Tensor, sum(part[:, :, start:end].to(wide) for part in parts[i:]))
        sums.append(total.to(parts[0].dtype))
    return _join(sums)


def _join(parts: list[Tensor]) -> Tensor:
    """Chunks of shape (rows, heads, chunk, head size) as one; in memory the heads of a position are adjacent.

    The surrounding layers need that layout: otherwise the compiler moves heads element by element.
    """
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1).transpose(1, 2)


def _mask(*, q_length: int, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """sdpa's mask; None for whole rows that are padded on the right, as no token sees what comes after it."""
    if attention_mask is not None and _padded_on_the_right(attention_mask, q_length):
        attention_mask = None
    return SDPA_MASK(q_length=q_length, attention_mask=attention_mask, **kwargs)


def _padded_on_the_right(attention_mask: Tensor, length: int) -> bool:
    if attention_mask.ndim != 2 or attention_mask.shape[1] != length or length == 1:
        return False
    seen = attention_mask.bool()
    return bool(seen[:, 0].all()) and not bool((seen[:, 1:] & ~seen[:, :-1]).any())


def use_attention(model: PreTrainedModel, name: str) -> None:
    """Makes a loaded model compute its attention by one of our ways, if its architecture allows it.

    Raises:
        InputError: `CAUSAL_SDPA`, but some layers hide more than what comes later.
    """
    if not _allows_ours(model):
        return
    if name == CAUSAL_SDPA and not sees_all_before(model.config):
        raise InputError(f"--attention {CAUSAL_SDPA}: {model.config.model_type} hides early tokens, too; choose sdpa")
    register_attention()
    model.set_attn_implementation(name)


def _allows_ours(model: PreTrainedModel) -> bool:
    """Whether a model takes its attention from `AttentionInterface` and has no bound of its scores, as Gemma 2 has."""
    softcap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    return model.is_backend_compatible() and softcap is None


def sees_all_before(config: PreTrainedConfig) -> bool:
    """Whether every token of a model sees all that come before it: no window or chunk is shorter than a row."""
    longest = getattr(config, "max_position_embeddings", None) or float("inf")
    limits = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return all(limit is None or limit >= longest for limit in limits)


def attention_in_use(model: PreTrainedModel, requested: str | None) -> str:
    """The name of the attention that a model computes that was built with `attn_implementation=requested`."""
    if requested in (CAUSAL_PRODUCT, CAUSAL_SDPA) and not _allows_ours(model):
        requested = None
    return model.get_correct_attn_implementation(requested)


@functools.cache
def register_attention() -> None:
    """Makes both names known to transformers as `attn_implementation`."""
    AttentionInterface.register(CAUSAL_PRODUCT, causal_product)
    AttentionMaskInterface.register(CAUSAL_PRODUCT, _mask)
    AttentionInterface.register(CAUSAL_SDPA, SDPA)  # without a function for masks, it gets none
