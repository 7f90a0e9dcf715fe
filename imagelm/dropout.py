"""Dropout with four random numbers from one draw, for CPUs.

One idea: torch's CPU dropout draws a number for each element (6.5 ns), inductor's even more slowly (13 ns). Whether an
element stays needs no more than 16 bits, so each 64-bit draw decides four (1.5 ns).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NUM_LEVELS = 2**16  # a share is rounded to a whole number of these


def drop(x: Tensor, share: float) -> Tensor:
    """Sets `share` of the elements to zero and scales the others, so that the mean stays; on a CPU.

    The share is rounded to 1/65,536; the scale is that of the rounded share.
    """
    num_dropped = round(share * NUM_LEVELS)
    if num_dropped == NUM_LEVELS:
        return x * 0.0
    return x * keep_mask(x, num_dropped) * (NUM_LEVELS / (NUM_LEVELS - num_dropped))


# An operation of its own, and marked as random: the compiler would otherwise draw as slowly as it does, or twice.
@torch.library.custom_op("imagelm::keep_mask", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def keep_mask(like: Tensor, num_dropped: int) -> Tensor:
    """Which elements stay; bool, the shape of `like`."""
    count = like.numel()
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    levels = draws.view(torch.int16)[:count].view(like.shape)
    return levels >= num_dropped - NUM_LEVELS // 2


@keep_mask.register_fake
def _(like: Tensor, num_dropped: int) -> Tensor:
    return torch.empty(like.shape, dtype=torch.bool, device=like.device)


class FastDropout(nn.Dropout):
    """`nn.Dropout` that draws by `drop` where it computes on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        if not self.training or self.p == 0:
            return x
        return drop(x, self.p) if x.device.type == "cpu" else super().forward(x)
