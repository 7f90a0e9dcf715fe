"""Whether a file can be read to its end, and holds numbers that are numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open

from imagelm.hub.staged import WEIGHTS_INDEX


def file_problems(name: str, file: Path) -> Iterator[str]:
    """What is wrong with a file, a line each; nothing of kinds that this program doesn't write.

    Args:
        name: How to call it.
        file: The file.
    """
    try:
        if file.suffix == ".json":
            content = json.loads(file.read_bytes())
            if name == WEIGHTS_INDEX:
                for shard in sorted(set(content["weight_map"].values())):
                    if not (file.parent / shard).is_file():
                        yield f"{name}: names {shard}, which isn't there"
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (no mapping)
                    if not torch.isfinite(tensors.get_tensor(key)).all():
                        yield f"{name}: {key} holds values that aren't finite"
        elif file.suffix == ".png":
            with Image.open(file) as picture:
                picture.load()
        elif file.suffix == ".parquet":
            pq.read_metadata(file)
    except (ValueError, KeyError, OSError, SafetensorError, UnidentifiedImageError) as error:
        yield f"{name}: isn't whole: {str(error).splitlines()[0]}"
