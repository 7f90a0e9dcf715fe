"""tanh GELU by one exponential.

One idea: ½x(1 + tanh u) = x · sigmoid(2u), and the exponential of the sigmoid costs half of the hyperbolic tangent. A
compiler fuses it into one pass; without one, pieces that stay in a core's cache are almost as good.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.activations import GELUTanh, NewGELUActivation

TWICE_ROOT = 1.5957691216057308  # 2 · √(2/π)
CUBIC = 0.044715
PIECE = 2**15  # elements; in float32 with what is computed from them 0.4 MB


class FastTanhGELU(nn.Module):
    """tanh GELU (Hendrycks and Gimpel, 2016, arXiv:1606.08415), the function of "gelu_new" and "gelu_pytorch_tanh"."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            wide = x.float()
            return (wide * torch.sigmoid(TWICE_ROOT * (wide + CUBIC * wide**3))).to(x.dtype)
        if x.device.type != "cpu" or (x.requires_grad and torch.is_grad_enabled()):
            return functional.gelu(x, approximate="tanh")
        return _in_pieces(x)


def _in_pieces(x: Tensor) -> Tensor:
    """The same without a gradient, computed in float32 at least."""
    result = torch.empty(x.shape, dtype=x.dtype)
    factor = torch.tensor(TWICE_ROOT, dtype=torch.promote_types(x.dtype, torch.float32))
    for piece, place in zip(x.reshape(-1).split(PIECE), result.view(-1).split(PIECE), strict=True):
        wide = piece.to(factor.dtype)
        sigmoid = torch.addcmul(factor, wide, wide, value=TWICE_ROOT * CUBIC).mul_(wide).sigmoid_()
        place.copy_(sigmoid.mul_(wide))
    return result


def use_fast_gelu(model: PreTrainedModel) -> None:
    """Replaces the model's tanh GELUs; its config stays."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation | GELUTanh):
                setattr(module, name, FastTanhGELU())
