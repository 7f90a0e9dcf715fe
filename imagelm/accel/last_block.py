"""The last block's feed-forward layer at the positions that are read, and nowhere else.

One idea: everything after the last attention works on each position separately. If one position a row is needed, a
ninth of the products of six blocks can be skipped, and no logit that is read changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from imagelm.accel.compile import blocks


@contextmanager
def only_at(model: PreTrainedModel, positions: Tensor) -> Iterator[None]:
    """Inside the context, the last block's feed-forward layer computes one position a row, and gives 0 at the others.

    Blocks without a plain layer named `mlp` (transformers' classes `…MLP`, with one input) compute as usual.

    Args:
        model: In evaluation mode.
        positions: int64, shape (rows,); read the model's outputs only there.
    """
    layer = getattr(blocks(model)[-1], "mlp", None) if blocks(model) else None
    if layer is None or not type(layer).__name__.endswith("MLP"):
        yield
        return
    whole: list[Tensor] = []

    def pick(module: nn.Module, inputs: tuple, named: dict) -> tuple[tuple, dict] | None:
        if len(inputs) != 1 or named:  # such as BLOOM's, which takes the residual too
            return None
        whole.append(inputs[0])
        return (at_positions(inputs[0], positions),), named

    def put(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        if not whole:
            return None
        spread = torch.zeros_like(whole.pop())
        return spread.scatter(1, _index(positions, output.shape[-1]), output)

    hooks = layer.register_forward_pre_hook(pick, with_kwargs=True), layer.register_forward_hook(put)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def at_positions(hidden: Tensor, positions: Tensor) -> Tensor:
    """Shape (rows, 1, width), of `hidden` of shape (rows, length, width) and `positions` of shape (rows,)."""
    return hidden.gather(1, _index(positions, hidden.shape[-1]))


def _index(positions: Tensor, width: int) -> Tensor:
    return positions[:, None, None].expand(-1, 1, width)
