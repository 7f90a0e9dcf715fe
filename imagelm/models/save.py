"""What a saved model consists of: weights that every version of transformers can load, and what accepts images.

One idea: codec, processor, pipeline and their code are added to a folder that is complete without them; loading the
plain model never touches them.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from imagelm import remote_code as published
from imagelm.remote_code.codec_imagelm import Codec
from imagelm.remote_code.processing_imagelm import PROCESSOR_CONFIG, ImageLMProcessor
from imagelm.tokens.tokenizer import grammar_of
from imagelm.utils.atomic_io import read_json, write_json

CODE_FILES = tuple(f"{name}_imagelm.py" for name in ("codec", "pixels", "processing", "vectors"))
HANDLER_FILE = "handler.py"  # which Inference Endpoints look for
PIPELINE_TASK = "image-classification"
PIPELINE = {"impl": "processing_imagelm.ImageLMPipeline", "pt": ["AutoModelForCausalLM"], "type": "image"}


def weights_sha256(folder: Path) -> str:
    """Identifies the weights of a saved model: SHA-256 over its safetensors files in the order of their names.

    For a model of one file it is that file's SHA-256, as the Hub shows it.
    """
    digest = hashlib.sha256()
    for file in sorted(folder.glob("model*.safetensors")):
        with open(file, "rb") as stream:
            while piece := stream.read(1 << 22):
                digest.update(piece)
    return digest.hexdigest()


def save_model(
    model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase, state_dict: dict[str, torch.Tensor]
) -> None:
    """Saves weights (safetensors; `state_dict`, gathered from all processes), config and generation config."""
    # Without a max_length: `generate(max_new_tokens=…)` would warn that it takes precedence.
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    # Trainer turns the cache off, which is right for training; generation without it is quadratic.
    use_cache, model.config.use_cache = model.config.use_cache, True
    model.save_pretrained(folder, state_dict=state_dict)
    model.config.use_cache = use_cache


def make_processor(tokenizer: PreTrainedTokenizerBase, codec: Codec, class_names: list[str]) -> ImageLMProcessor:
    """The processor of a model; the codec has as many entries as its tokenizer has codebook tokens."""
    grammar = grammar_of(tokenizer)
    before_image = grammar.prefix(np.empty(0, np.int64)).tolist()
    layout = {
        "before_image": before_image,
        "after_image": grammar.question(np.empty(0, np.int64))[len(before_image) :].tolist(),
        "code_ids": grammar.code_ids.tolist(),
        "class_ids": grammar.class_ids.tolist(),
        "class_names": class_names,
    }
    return ImageLMProcessor(tokenizer, codec, layout)


def add_processor(folder: Path, processor: ImageLMProcessor) -> None:
    """Adds codec, processor and pipeline to a folder with a saved model."""
    processor.codec.save(folder)
    write_json(folder / PROCESSOR_CONFIG, processor.to_dict())
    copy_code(folder)
    config = read_json(folder / "config.json")
    write_json(folder / "config.json", config | {"custom_pipelines": {PIPELINE_TASK: PIPELINE}})


def copy_code(folder: Path, *more: str) -> None:
    """Copies the code that reads images into a folder, and `more` files of `remote_code`."""
    for name in (*CODE_FILES, *more):
        shutil.copyfile(Path(published.__file__).parent / name, folder / name)
