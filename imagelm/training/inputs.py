"""What a training run reads: the prepared rows and everything that belongs to them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from imagelm.data.load import augmented, check_disjoint, load_codec_of, load_prepared, load_stats
from imagelm.models.processor import make_processor
from imagelm.remote_code.processing_imagelm import ImageLMProcessor
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.tokenizer import grammar_of, load_tokenizer
from imagelm.training.launch import Launch
from imagelm.utils.artifacts import TOKENIZER_FOLDER

logger = logging.getLogger(__name__)


@dataclass
class TrainingInputs:
    """The rows of a run.

    Attributes:
        dataset: Both splits, as prepared.
        train: The training rows, changed in each epoch if augmentation is on.
        stats: What preparation recorded.
        processor: Turns images into rows; None for data without a codec.
    """

    dataset: DatasetDict
    train: Dataset
    stats: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    grammar: Grammar
    processor: ImageLMProcessor | None


def load_inputs(launch: Launch) -> TrainingInputs:
    """Loads the prepared rows, and checks that no image is in both splits.

    Raises:
        InputError: The folder isn't prepared data, or an image is in both splits.
    """
    args, folder = launch.args, Path(launch.data.dataset_dir)
    dataset = load_prepared(folder, with_images=launch.run.augment is not None)
    stats = load_stats(folder)
    tokenizer = load_tokenizer(folder / TOKENIZER_FOLDER)
    grammar = grammar_of(tokenizer)
    check_disjoint(dataset)
    codec = load_codec_of(folder)
    seed = args.seed if args.data_seed is None else args.data_seed
    train = augmented(dataset["train"], codec, grammar, launch.run.augment, seed)
    processor = make_processor(tokenizer, codec, stats["class_names"]) if codec else None
    logger.info("data: %d training and %d test rows, no image in both", len(dataset["train"]), len(dataset["test"]))
    return TrainingInputs(dataset, train, stats, tokenizer, grammar, processor)
