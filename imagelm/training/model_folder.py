"""`best_model` and `final_model`: how they are written, and which records they hold besides the weights."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

from transformers import PreTrainedTokenizerBase, Trainer

from imagelm.models.processor import add_processor
from imagelm.models.save import save_model
from imagelm.remote_code.processing_imagelm import ImageLMProcessor
from imagelm.tokens.tokenizer import save_tokenizer
from imagelm.training.checkpoint import check_weights
from imagelm.utils.artifacts import HISTORY_FILE, RUN_FILE, SELECTION_FILE, STATS_FILE, TRAINING_ARGUMENTS_FILE
from imagelm.utils.atomic_io import atomic_folder, raise_storage_error, read_json, write_json, write_text


def write_records(folder: Path, run: dict, stats: dict, history: list[dict]) -> None:
    """Writes run, data statistics and log history into a model's folder, where the model card finds them."""
    # JSON has no infinite numbers, but a gradient norm in fp16 may be infinite.
    finite = [
        {name: value for name, value in log.items() if not isinstance(value, float) or math.isfinite(value)}
        for log in history
    ]
    for name, content in ((RUN_FILE, run), (STATS_FILE, stats), (HISTORY_FILE, finite)):
        write_json(folder / name, content)


def read_selection(folder: Path) -> dict | None:
    """Why `best_model` was chosen (metric, value, loss, step), or None if it was not."""
    file = folder / SELECTION_FILE
    return read_json(file) if file.is_file() else None


def save_folder(
    trainer: Trainer, folder: Path, selection: dict, arguments: dict, processor: ImageLMProcessor | None
) -> None:
    """Saves the trainer's model as a whole Hugging Face folder: weights, configs, tokenizer, training arguments.

    Every process must call it; the main one writes.

    Args:
        trainer: Holds the model and its tokenizer.
        folder: Where to.
        selection: Why this model was chosen.
        arguments: The training arguments, without secrets.
        processor: Saved with the model, if it has one.

    Raises:
        DivergedError: The weights aren't finite; nothing was written.
        StorageError: It can't be written.
    """
    check_weights(trainer.model, trainer.state.global_step)
    unwrap = functools.partial(trainer.accelerator.unwrap_model, keep_torch_compile=False)
    state_dict = trainer.accelerator.get_state_dict(unwrap(trainer.model_wrapped))
    tokenizer = trainer.processing_class
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    if trainer.is_world_process_zero():
        with raise_storage_error(folder, "The earlier folder is unchanged"), atomic_folder(folder) as staging:
            save_model(unwrap(trainer.model), staging, tokenizer, state_dict)
            save_tokenizer(tokenizer, staging)
            if processor:
                add_processor(staging, processor)
            # JSON instead of the library's training_args.bin, a pickle that holds tokens in clear.
            write_text(staging / TRAINING_ARGUMENTS_FILE, json.dumps(arguments, indent=2) + "\n")
            write_json(staging / SELECTION_FILE, selection)
    trainer.accelerator.wait_for_everyone()
