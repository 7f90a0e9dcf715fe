"""Dropout with four random numbers from one draw, for CPUs.

One idea: torch's CPU dropout draws a number for each element (6.5 ns); inductor's is even slower (13 ns). To decide
whether an element is kept takes 15 bits, so each 64-bit draw decides four (1.5 ns).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

NUM_LEVELS = 2**15  # a share is rounded to a whole number of these
BFLOAT16_ONE = 0x3F80  # the bits of 1.0


def drop(x: Tensor, share: float) -> Tensor:
    """Sets `share` of the elements to zero and scales the others, so that the mean is unchanged.

    The share is rounded to 1/32,768; the scale is that of the rounded share.
    """
    return x * draw_kept(x, share).to(x.dtype) * kept_scale(share)


def draw_kept(like: Tensor, share: float) -> Tensor:
    """1 where an element is kept, 0 for the `share` that isn't; bfloat16, the shape of `like`."""
    num_dropped = round(share * NUM_LEVELS)
    if like.device.type != "cpu":  # torch's own draw is fast there
        return (torch.rand(like.shape, device=like.device) >= num_dropped / NUM_LEVELS).to(torch.bfloat16)
    return keep_mask(like.detach(), num_dropped)


def kept_scale(share: float) -> float:
    """The factor of the elements that are kept; 0 if none is."""
    num_dropped = round(share * NUM_LEVELS)
    return NUM_LEVELS / (NUM_LEVELS - num_dropped) if num_dropped < NUM_LEVELS else 0.0


# A custom operation, marked as random: the compiler would otherwise use its own slow draw, or draw twice.
@torch.library.custom_op("imagelm::keep_mask", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def keep_mask(like: Tensor, num_dropped: int) -> Tensor:
    """1 where an element is kept, 0 where not; bfloat16, the shape of `like`.

    Composed of bits: a conversion from bool takes as long as the whole draw.
    """
    count = like.numel()
    draws = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    levels = draws.view(torch.int16)[:count].bitwise_and_(NUM_LEVELS - 1)
    kept = levels.sub_(num_dropped).bitwise_right_shift_(15).bitwise_not_()  # all bits where the level is high enough
    return kept.bitwise_and_(BFLOAT16_ONE).view(torch.bfloat16).view(like.shape)


@keep_mask.register_fake
def _(like: Tensor, num_dropped: int) -> Tensor:
    return torch.empty(like.shape, dtype=torch.bfloat16, device=like.device)


class FastDropout(nn.Dropout):
    """`nn.Dropout` that draws by `drop`."""

    def forward(self, x: Tensor) -> Tensor:
        return drop(x, self.p) if self.training and self.p else x
