"""The checks before an upload: files are complete, the model answers, and nothing private goes out.

One idea: all problems of all repositories are listed at once, and while there is one, nothing is sent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from huggingface_hub import DatasetCard, ModelCard, SpaceCard
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open

from imagelm.hub.privacy import find_private
from imagelm.hub.staged import CARD_FILE, WEIGHTS_INDEX, Staged
from imagelm.inference.loading import LoadedModel
from imagelm.remote_code.pixels_imagelm import image_formats
from imagelm.remote_code.processing_imagelm import PROCESSOR_CONFIG, ImageLMProcessor
from imagelm.utils.errors import InputError
from imagelm.utils.text import NUM_LISTED, first_line, list_first

CARDS = {"dataset": DatasetCard, "model": ModelCard, "space": SpaceCard}


def check_staged(staged: list[Staged], own_token: str | None) -> None:
    """Refuses repositories that must not be published as they are; no file may hold the token in use.

    Raises:
        InputError: With the problems found.
    """
    problems = [f"{one.kind} {problem}" for one in staged for problem in _problems(one, own_token)]
    if problems:
        shown = "\n".join(list_first(problems))
        raise InputError(
            f"nothing was uploaded because of these problems:\n{shown}\nFix the files, or remove them from the folder"
        )


def file_problems(name: str, file: Path) -> Iterator[str]:
    """Yields a line for each defect of a file; files of formats that this program doesn't write have none."""
    try:
        if file.suffix == ".json":
            content = json.loads(file.read_bytes())
            if name == WEIGHTS_INDEX:
                for shard in sorted(set(content["weight_map"].values())):
                    if not (file.parent / shard).is_file():
                        yield f"{name}: names {shard}, which isn't there"
        elif file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118 (not a mapping)
                    if not torch.isfinite(tensors.get_tensor(key)).all():
                        yield f"{name}: {key} holds values that aren't finite"
        elif file.suffix == ".png":
            with Image.open(file, formats=image_formats()) as image:
                image.load()
        elif file.suffix == ".parquet":
            pq.read_metadata(file)
    except (ValueError, KeyError, OSError, SafetensorError, UnidentifiedImageError) as error:
        yield f"{name}: damaged or incomplete: {first_line(error)}"


def _problems(staged: Staged, own_token: str | None) -> Iterator[str]:
    for name, file in staged.files.items():
        yield from file_problems(name, file)
        private = list(islice(find_private(name, file, own_token), NUM_LISTED + 1))
        yield from private[:NUM_LISTED]
        if len(private) > NUM_LISTED:  # a column may hold a million paths
            yield f"{name}: more of this kind"
    try:
        CARDS[staged.kind](staged.files[CARD_FILE].read_text(encoding="utf-8"))
    except (ValueError, TypeError, KeyError) as error:
        yield f"{CARD_FILE}: its metadata isn't valid: {error}"
    if staged.loaded is not None:
        yield from _answer_problems(staged.folder, staged.loaded)


def _answer_problems(folder: Path, loaded: LoadedModel) -> Iterator[str]:
    """Asks the staged model, through the staged processor where there is one, for one class."""
    try:
        if (folder / PROCESSOR_CONFIG).is_file():
            processor = ImageLMProcessor.from_pretrained(folder)
            height, width = processor.codec.image_size
            input_ids = processor(images=np.zeros((height, width), dtype=np.uint8))["input_ids"]
        else:
            input_ids = torch.from_numpy(loaded.grammar.question(loaded.grammar.code_ids[:1])[None])
        with torch.no_grad():
            logits = loaded.model(input_ids=input_ids.to(loaded.device)).logits
        if not logits.isfinite().all():
            yield "doesn't answer: its logits aren't finite"
    except (InputError, ValueError, KeyError, OSError, RuntimeError, SafetensorError) as error:
        yield f"doesn't answer: {first_line(error)}"
