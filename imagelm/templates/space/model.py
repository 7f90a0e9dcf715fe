"""The model of this Space, loaded once: classes, likelihoods and new images.

It needs only the model's repository, which contains the code that turns images into tokens and back.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, LogitsProcessorList
from transformers.utils import cached_file, has_file

MODEL_ID = os.environ.get("MODEL_ID") or Path(__file__).with_name("model_id.txt").read_text().strip()
BATCH_SIZE = 32  # images generated at once; another size gives other images from the same seed
MAX_DRAWS = 256  # images generated for one request

model = AutoModelForCausalLM.from_pretrained(MODEL_ID).eval()
tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
# Without a codec, and so without a processor, the model accepts only rows of tokens.
has_codec = has_file(MODEL_ID, "processor_config.json")
processor: Any = AutoProcessor.from_pretrained(MODEL_ID, trust_remote_code=True) if has_codec else None
if processor and "t" in processor.codec.config.get("features", ()):
    processor = None  # its codebook needs the number of an image's file, which a drawing doesn't have
vocabulary = tokenizer.get_vocab()
# Without a processor the classes are known only by the names of their tokens.
class_tokens = [token for label in range(len(vocabulary)) if (token := f"<CLS_{label}>") in vocabulary]
class_ids = processor.class_ids if processor else [vocabulary[token] for token in class_tokens]
BEFORE: list[int] = processor.layout["before_image"] if processor else []
AFTER: list[int] = processor.layout["after_image"] if processor else []
# Names are shown without control and zero-width characters; equal ones get their number.
class_names = [
    "".join(c for c in str(model.config.id2label.get(label, label)) if c.isprintable()).strip()
    for label in range(len(class_ids))
]
class_names = [
    name if name and class_names.count(name) == 1 else f"{name} ({label})" for label, name in enumerate(class_names)
]


def published(file: str) -> Path | None:
    """A file of the model's repository, or None if it holds none of this name."""
    return Path(str(cached_file(MODEL_ID, file))) if has_file(MODEL_ID, file) else None


def published_results() -> dict[str, Any]:
    """The figures of the model's evaluation; empty where none are published."""
    file = published("eval_results.json")
    return json.loads(file.read_text(encoding="utf-8")) if file else {}


def published_datasets() -> list[str]:
    """The datasets that the model's card names."""
    card = published("README.md")
    return list(ModelCard.load(card).data.get("datasets") or []) if card else []


@torch.inference_mode()
def class_probabilities(input_ids: Tensor) -> Tensor:
    """Probabilities among the classes; ids of rows that end with `<CLS>`, shape (rows, length) → (rows, classes)."""
    return model(input_ids=input_ids).logits[:, -1, class_ids].float().softmax(-1)


@torch.inference_mode()
def surprise(input_ids: Tensor) -> list[float]:
    """Bits of each token of one row after its first, −log2 of its probability among all tokens; ids (1, length)."""
    logits = model(input_ids=input_ids).logits[0, :-1].float()
    nats = torch.nn.functional.cross_entropy(logits, input_ids[0, 1:], reduction="none")
    return (nats.clamp(min=0) / math.log(2)).tolist()  # rounding may give -0


class OnlyCodes:
    """Allows only codebook tokens, so that the generated tokens are an image."""

    def __init__(self) -> None:
        self.forbidden = torch.ones(model.config.vocab_size, dtype=torch.bool)
        self.forbidden[torch.as_tensor(processor.code_ids)] = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill(self.forbidden, -torch.inf)


@torch.inference_mode()
def sample(prompt: Tensor, count: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Images that begin with a prompt, and the model's own answers to the question of their class.

    Args:
        prompt: Ids up to the last known token of the image, shape (1, length).

    Returns:
        Ids of rows that end with `<CLS>`, shape (count, length), and probabilities of shape (count, classes).
    """
    missing = len(BEFORE) + processor.codec.num_tokens - prompt.shape[1]
    rows = prompt.repeat(count, 1)
    if missing:
        rows = model.generate(
            rows,
            attention_mask=torch.ones_like(rows),
            max_new_tokens=missing,
            min_new_tokens=missing,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            logits_processor=LogitsProcessorList([OnlyCodes()]),
        )
    rows = torch.cat([rows, torch.tensor([AFTER]).expand(count, -1)], dim=1)
    return rows, class_probabilities(rows)


def draw(label: int | None, count: int, temperature: float, seed: int) -> Iterator[tuple[list, int]]:
    """New images, of the class `label` or of any: those that the model itself gives this class, a batch at a time.

    Yields:
        Pairs of row and probabilities found so far, at most `count`; and how many were generated to get them, at most
        MAX_DRAWS.
    """
    torch.manual_seed(seed)
    found: list[tuple[Tensor, Tensor]] = []
    num_drawn = 0
    while len(found) < count and num_drawn < MAX_DRAWS:
        batch = count if label is None else BATCH_SIZE
        for row, shares in zip(*sample(torch.tensor([BEFORE]), batch, temperature), strict=True):
            num_drawn += 1
            if len(found) < count and (label is None or int(shares.argmax()) == label):
                found.append((row, shares))
        yield found, num_drawn


@torch.inference_mode()
def paper() -> int:
    """Grey value of the sheet to draw on, 0 or 255: what the model expects in the corner where an image begins."""
    if not processor.codec.can_decode:
        return 255 if processor.codec.config["background"] > 127 else 0
    expected = model(input_ids=torch.tensor([BEFORE])).logits[0, -1, processor.code_ids].float().softmax(-1)
    brightness = torch.from_numpy(processor.codec.entry_pixels()).float().flatten(1).mean(1)
    return 255 if float(expected @ brightness) > 127 else 0
