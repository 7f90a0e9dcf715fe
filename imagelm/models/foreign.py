"""Refuses a stranger's model files that would run code, read other files or fill the memory.

One idea: everything is checked on the JSON files and on a model without values, before transformers reads the weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.utils import cached_file

# Whole numbers whose size costs time or memory as soon as a config or a model without values is made, by part of name.
MOST = {"layer": 10_000, "expert": 10_000, "block": 1 << 20, "num_labels": 1 << 20}
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_ENDINGS = (".safetensors", ".bin")


def check_model_files(name: str | Path) -> None:
    """Checks a folder or the model of a Hub id.

    Raises:
        OSError: It holds no config, or the Hub can't be reached.
        ValueError: It names code or other files, its weights are quantized, or its sizes fit neither files nor memory.
            The library's own errors about a config come as they are.
    """
    check_config(name)
    if _read(name, "adapter_config.json"):
        raise ValueError("adapter_config.json: an adapter needs another model; merge it into that model first")
    shards: set[str] = set()
    for index in INDICES:
        shards |= set((_read(name, index) or {"weight_map": {}})["weight_map"].values())
        for file in shards:
            if Path(file).name != file or not file.endswith(WEIGHT_ENDINGS):
                raise ValueError(f"{index}: {file!r} isn't a file of weights in the same folder")
    needed = check_size(AutoConfig.from_pretrained(name, trust_remote_code=False))
    held = sum(file.stat().st_size for file in _weight_files(name, shards))
    if needed > held:
        raise ValueError(f"config.json describes {needed} weights, which the files of {held} bytes can't hold")


def check_size(config: PretrainedConfig) -> int:
    """The number of weights of a model; raises a ValueError if the machine's memory can't hold it in fp32."""
    _check_numbers(config.to_dict())
    with torch.device("meta"):  # uses neither memory nor random numbers
        model = AutoModelForCausalLM.from_config(config)
    num_weights = sum(weights.numel() for weights in model.parameters())
    needed = 4 * num_weights + sum(buffer.nbytes for buffer in model.buffers())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise ValueError(f"{needed / 2**30:,.0f} GiB of weights and masks, but the memory is {memory / 2**30:,.0f} GiB")
    return num_weights


def check_config(name: str | Path) -> None:
    """The part of `check_model_files` that `config.json` alone shows; `name` may also be a config file."""
    is_file = Path(name).is_file()
    config = json.loads(Path(name).read_bytes()) if is_file else _read(name, "config.json")
    for key, value in _entries(config):
        if "implementation" in key and "/" in str(value):
            raise ValueError(f"config.json: {key} is code on the Hub, {value!r}; remove the entry")
        if key in ("quantization_config", "compression_config") and value:
            raise ValueError(f"config.json: the weights are quantized ({key}); save the model with plain weights")
    _check_numbers(config)


def _check_numbers(config: Any) -> None:
    for key, value in _entries(config):
        most = min((most for part, most in MOST.items() if part in key), default=value)
        if type(value) is int and value > most:
            raise ValueError(f"{key} is {value}, expected at most {most}")


def _weight_files(name: str | Path, shards: Iterable[str]) -> list[Path]:
    """The files of weights in a folder; of a Hub id those that transformers loads, which are downloaded."""
    if Path(name).is_dir():
        return [file for file in Path(name).iterdir() if file.suffix in WEIGHT_ENDINGS]
    for names in (sorted(shards), ["model.safetensors"], ["pytorch_model.bin"]):
        found = [cached_file(str(name), file, _raise_exceptions_for_missing_entries=False) for file in names]
        if any(found):
            return [Path(file) for file in found if file]
    return []


def _read(name: str | Path, file: str) -> Any:
    """The content of a JSON file; None if the folder or repository doesn't hold it."""
    found = cached_file(str(name), file, _raise_exceptions_for_missing_entries=False)
    return None if found is None else json.loads(Path(found).read_bytes())


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """All keys with their values, nested ones too."""
    if isinstance(content, dict):
        yield from ((str(key), value) for key, value in content.items())  # id2label has numbers as keys
    for value in content.values() if isinstance(content, dict) else content if isinstance(content, list) else ():
        yield from _entries(value)
