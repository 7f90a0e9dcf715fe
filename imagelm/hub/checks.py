"""What is checked before anything leaves: are the files whole, does the model load, is there anything private?

One idea: all problems of all repositories are found at once, and while there is one, nothing is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from huggingface_hub import DatasetCard, ModelCard, SpaceCard
from safetensors import SafetensorError

from imagelm.hub.privacy import find_private
from imagelm.hub.staged import CARD_FILE, Staged
from imagelm.hub.wholeness import file_problems
from imagelm.inference.arguments import LoadArguments
from imagelm.inference.loading import load_for_inference
from imagelm.remote_code.processing_imagelm import PROCESSOR_CONFIG, ImageLMProcessor
from imagelm.utils.errors import InputError

MAX_SHOWN = 20
CARDS = {"dataset": DatasetCard, "model": ModelCard, "space": SpaceCard}


def check_staged(staged: list[Staged], own_token: str | None) -> None:
    """Refuses repositories that must not be published as they are.

    Args:
        staged: All of them.
        own_token: The Hub token in use; it may stand in no file.

    Raises:
        InputError: With the problems found, up to `MAX_SHOWN`.
    """
    problems = [f"{one.kind} {problem}" for one in staged for problem in _problems(one, own_token)]
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:MAX_SHOWN])
        more = "\n  and more" if len(problems) > MAX_SHOWN else ""
        raise InputError(
            f"nothing was uploaded, as problems were found:\n{shown}{more}\nMend them, or take them out of the folder"
        )


def _problems(staged: Staged, own_token: str | None) -> Iterator[str]:
    broken = False
    for name, file in staged.files.items():
        for problem in file_problems(name, file):
            broken = True
            yield problem
        # A column of a million paths is said as soon as a screen is full.
        yield from islice(find_private(name, file, own_token), MAX_SHOWN + 1)
    try:
        CARDS[staged.kind](staged.files[CARD_FILE].read_text(encoding="utf-8"))
    except (ValueError, TypeError, KeyError) as error:
        yield f"{CARD_FILE}: its metadata isn't valid: {error}"
    if staged.kind == "model" and not broken:
        yield from _loading_problems(staged)


def _loading_problems(staged: Staged) -> Iterator[str]:
    """Loads the folder as its users will, and asks it one question."""
    try:
        loaded = load_for_inference(LoadArguments(model=str(staged.folder)))
        if (staged.folder / PROCESSOR_CONFIG).is_file():
            processor = ImageLMProcessor.from_pretrained(staged.folder)
            height, width = processor.codec.image_size
            input_ids = processor(images=np.zeros((height, width), dtype=np.uint8))["input_ids"]
        else:
            input_ids = torch.from_numpy(loaded.grammar.question(loaded.grammar.code_ids[:1])[None])
        with torch.no_grad():
            logits = loaded.model(input_ids=input_ids).logits
        if not logits.isfinite().all():
            yield "doesn't answer: its logits aren't finite"
    except (InputError, ValueError, KeyError, OSError, RuntimeError, SafetensorError) as error:
        yield f"doesn't load: {str(error).splitlines()[0]}"
