"""What a saved model needs to accept images: codec, processor, pipeline, and their code.

One idea: all of it is added to a folder that is complete without it; loading the plain model never touches it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from imagelm import remote_code as published
from imagelm.remote_code.codec_imagelm import Codec
from imagelm.remote_code.processing_imagelm import PROCESSOR_CONFIG, ImageLMProcessor
from imagelm.tokens.tokenizer import grammar_of
from imagelm.utils.atomic_io import read_json, write_json

CODE_FILES = ("codec_imagelm.py", "processing_imagelm.py")
PIPELINE_TASK = "image-classification"
PIPELINE = {"impl": "processing_imagelm.ImageLMPipeline", "pt": ["AutoModelForCausalLM"], "type": "image"}


def make_processor(tokenizer: PreTrainedTokenizerBase, codec: Codec, class_names: list[str]) -> ImageLMProcessor:
    """The processor of a model.

    Args:
        tokenizer: The model's.
        codec: With as many entries as the tokenizer has codebook tokens.
        class_names: Indexed by label.
    """
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


def copy_code(folder: Path) -> None:
    """Copies the code that reads images into a folder."""
    for name in CODE_FILES:
        shutil.copyfile(Path(published.__file__).parent / name, folder / name)
