"""tanh GELU by one exponential is the library's function."""

from __future__ import annotations

import pytest
import torch
from transformers.activations import ACT2FN

from imagelm.accel.gelu import PIECE, FastTanhGELU


@pytest.mark.parametrize("name", ["gelu_new", "gelu_pytorch_tanh"])
def test_gelu_is_the_configs_function_compiled_or_not(name):
    x = torch.linspace(-8, 8, 10_001, requires_grad=True)
    expected = ACT2FN[name](x)
    (slope,) = torch.autograd.grad(expected.sum(), x)
    for function in (FastTanhGELU(), torch.compile(FastTanhGELU())):
        found = function(x)
        torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(found.sum(), x)[0], slope, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)]
)
def test_without_a_gradient_it_is_as_exact_as_its_dtype_allows(dtype, tolerance):
    """Several pieces of a matrix that isn't contiguous; bfloat16 is rounded once, at the end."""
    x = torch.linspace(-30, 30, 5 * PIECE // 2).to(dtype).view(-1, 2, 16).transpose(0, 1)
    wide = x.double()
    exact = wide / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)))
    found = FastTanhGELU()(x)
    assert found.dtype == dtype and found.shape == x.shape
    rounding = 2.0**-8 * exact.abs() if dtype == torch.bfloat16 else 0
    assert ((found.double() - exact).abs() <= tolerance + rounding).all()


def test_it_passes_infinity_and_nan_on_as_torch_does():
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 1e20, -1e20])
    torch.testing.assert_close(FastTanhGELU()(x), torch.nn.functional.gelu(x, approximate="tanh"), equal_nan=True)
