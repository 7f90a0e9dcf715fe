"""How a model computes while it trains, faster: with the same weights, the same function.

One idea: what is computed follows the config (tanh GELU, dropout, causal attention), so the saved folder is a standard
one; how it is computed is chosen once for device, dtype, length and measured time, logged, recorded in `run.json`, and
can be set by `--attention`, `--compile` and `--num_threads`.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from imagelm.accel.attention import attention_in_use
from imagelm.accel.dropout import FastDropout
from imagelm.accel.gelu import use_fast_gelu

# What compiling the blocks saves of a step at least, and what it costs, with 6 blocks of width 384 in bf16. On one core
# of a Zen 4 a step of 8 rows of 201 tokens took 0.71 s compiled and 0.78 uncompiled, and compiling took 10 to 30 s. On
# one H100 a step of 256 such rows took 26.4 ms compiled and 33.8 uncompiled, one of 64 rows 18.6 and 16.9.
SAVED_SHARE = {"cpu": 0.09, "cuda": 0.22}
COMPILE_SECONDS = {"cpu": 30, "cuda": 25}
GPU_BATCH_TOKENS = 256 * 201
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KEPT_BYTES = 2**30


@dataclass
class ComputePlan:
    """How a training run computes."""

    attention: str  # transformers' name
    activation: str  # the config's name
    compiled: bool
    reason: str  # why the blocks are compiled, or why not
    keeps_memory: bool  # freed memory, from step to step
    attention_ms: dict[str, float] = field(default_factory=dict)  # of a layer, by name, where it was measured

    def note(self) -> str:
        """One line for the log."""
        blocks = f"blocks {'compiled' if self.compiled else 'not compiled'} ({self.reason})"
        times = ", ".join(f"{name} {milliseconds:.3g}" for name, milliseconds in self.attention_ms.items())
        attention = f"{self.attention} (ms a layer: {times})" if times else self.attention
        return f"attention {attention}, activation {self.activation}; {blocks}"


def accelerate_training(
    model: PreTrainedModel,
    device: torch.device,
    choice: str,
    seconds: float | None,
    batch: tuple[int, int] | None,
    attention: str | None = None,
) -> ComputePlan:
    """Prepares a model for fast training; weights and names of parameters stay.

    Args:
        model: Not yet wrapped.
        device: Where it will train.
        choice: `--compile`: auto, on or off.
        seconds: That training takes if the blocks aren't compiled, as measured; decides for auto. None if no clock may
            decide.
        batch: Rows and length of a full batch; None if lengths differ.
        attention: The `attn_implementation` that the model was built with.
    """
    keeps = device.type == "cpu" and keep_memory()
    use_fast_gelu(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Dropout and child.p > 0 and device.type == "cpu":
                setattr(module, name, FastDropout(child.p))
    compiled, reason = _whether_to_compile(device, choice, seconds, batch)
    if compiled:
        for block in blocks(model):
            compile_in_training(block, batch)
    names = (getattr(model.config, name, None) for name in ("activation_function", "hidden_activation", "hidden_act"))
    activation = str(next(filter(None, names), "its own"))
    return ComputePlan(attention_in_use(model, attention), activation, compiled, reason, keeps)


def blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of a decoder, in order; empty if they aren't found."""
    num_layers = getattr(model.config, "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return list(module)
    return []


def compile_in_training(block: nn.Module, batch: tuple[int, int] | None) -> None:
    """Compiles a block for full batches of training; other batches are computed as before.

    The last batch of an epoch and evaluations therefore cost no further compilation.
    """
    plain, compiled = block.forward, torch.compile(block.forward, dynamic=None if batch is None else False)

    def forward(hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        full = batch is None or tuple(hidden_states.shape[:2]) == batch
        return (compiled if block.training and full else plain)(hidden_states, *args, **kwargs)

    block.forward = forward


def keep_memory() -> bool:
    """Makes glibc keep freed memory, instead of faulting it in again page by page in each step; False if it can't."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))


def _whether_to_compile(
    device: torch.device, choice: str, seconds: float | None, batch: tuple[int, int] | None
) -> tuple[bool, str]:
    if choice != "auto":
        return choice == "on", "as requested"
    if device.type not in SAVED_SHARE:
        return False, "not measured on this device; --compile on"
    if batch is None:
        return False, "rows differ in length"
    if device.type == "cuda" and batch[0] * batch[1] < GPU_BATCH_TOKENS:
        return False, f"batches are smaller than {GPU_BATCH_TOKENS:,} tokens"
    if seconds is None:
        return False, "a measured time can't decide with --full_determinism; --compile on"
    if seconds * SAVED_SHARE[device.type] < 2 * COMPILE_SECONDS[device.type]:
        return False, "the run is too short to repay the compile time"
    if not any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name):
        return False, "there is no C++ compiler"
    return True, "the run is long enough"
