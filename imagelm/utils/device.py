"""The device, dtype and number of threads that suit this machine.

One idea: one `accelerate_config.yaml` requests bfloat16 everywhere; if the hardware only emulates it, the run uses a
dtype that the device computes fast, and logs it.
"""

from __future__ import annotations

import os
import platform
import re

import torch

from imagelm.utils.errors import InputError

MIXED_PRECISION_VARIABLE = "ACCELERATE_MIXED_PRECISION"  # set by `accelerate launch` from its yaml


def choose_device(name: str) -> torch.device:
    """The device of `--device`; "auto" is a GPU if there is one.

    Raises:
        InputError: This machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if not match:
        raise InputError(f"--device {name} is unknown; choose auto, cpu, cuda or cuda:N")
    if int(match.group(1) or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: {torch.cuda.device_count()} GPUs are visible; choose auto or cpu")
    return torch.device(name)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 run in hardware on `device`.

    A CPU without such instructions emulates them (measured on AVX2: 1 GFLOP/s against 64 in float32), and
    `accelerate` does not ask.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    if platform.machine() in ("aarch64", "arm64"):
        return bool(capabilities.get("bf16", False))
    return bool(capabilities.get("avx512_bf16", False) or capabilities.get("amx_bf16", False))


def resolve_mixed_precision(use_cpu: bool) -> str | None:
    """Replaces a launcher's bfloat16 where the device only emulates it; call it before the first `TrainingArguments`.

    Args:
        use_cpu: Whether the run stays on the CPU even if there is a GPU.

    Returns:
        What was changed and why, for the log; None if nothing was.
    """
    if os.environ.get(MIXED_PRECISION_VARIABLE) != "bf16":
        return None
    device = training_device(use_cpu)
    if has_fast_bfloat16(device):
        return None
    dtype = "fp16" if device.type == "cuda" else "fp32"
    os.environ[MIXED_PRECISION_VARIABLE] = "fp16" if device.type == "cuda" else "no"
    return f"this {device.type.upper()} has no bfloat16 instructions: computing in {dtype} instead"


def training_device(use_cpu: bool) -> torch.device:
    """Where a run without further options trains: on a GPU, if there is one."""
    on_cpu = use_cpu or os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    return torch.device("cpu" if on_cpu or not torch.cuda.is_available() else "cuda")


def set_num_threads(num_threads: int) -> int:
    """Sets the number of CPU threads of this process and returns it.

    `accelerate launch` gives a process one OpenMP thread by default, which leaves the other cores idle.

    Args:
        num_threads: 0 shares the cores among the processes of this machine, unless `OMP_NUM_THREADS` is above 1.
    """
    if num_threads == 0:
        asked = int(os.environ.get("OMP_NUM_THREADS") or 1)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        num_threads = asked if asked > 1 else max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    torch.set_num_threads(num_threads)
    return num_threads
