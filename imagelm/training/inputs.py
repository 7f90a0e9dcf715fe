"""The prepared rows of a run, and what belongs to them.

One idea: rows lie in memory-mapped files, or are streamed; either way they are checked before or as they are used, and
whatever follows reads them in the same way.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase, TrainingArguments

from imagelm.data.augmentation import AugmentedRows
from imagelm.data.disjoint import check_disjoint
from imagelm.data.load import PREPARE_AGAIN, augmented, load_codec_of, load_prepared, load_stats
from imagelm.data.stats import rows_in_words
from imagelm.evaluation.baselines import MAX_FITTED, baseline_hits, fitted_record
from imagelm.models.save import make_processor
from imagelm.remote_code.processing_imagelm import ImageLMProcessor
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.tokenizer import grammar_of, load_tokenizer
from imagelm.training.device_rows import DeviceRows, fits_on
from imagelm.training.launch import Launch
from imagelm.training.shard_files import open_streams
from imagelm.training.streaming import RowCheck, StreamedRows, Update
from imagelm.utils.artifacts import TOKENIZER_FOLDER
from imagelm.utils.errors import InputError

logger = logging.getLogger(__name__)

EMPTY_PLACES_TOLD = 0.05


@dataclass
class TrainingInputs:
    """The rows of a run, and what belongs to them."""

    dataset: DatasetDict  # all splits, as prepared; without the training rows if these are streamed
    train: Dataset | AugmentedRows | DeviceRows | StreamedRows  # changed in each epoch if augmentation is on
    stats: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase
    grammar: Grammar
    processor: ImageLMProcessor | None  # None for data without a codec

    @property
    def eval_split(self) -> str:
        """The split that is evaluated in training, and chooses the best model."""
        return "validation" if "validation" in self.dataset else "test"

    def full_batch(self, args: TrainingArguments) -> tuple[int, int] | None:
        """Rows and length of a full training batch of a process; None if rows differ in length."""
        lengths = self.stats["lengths"]
        return (args.per_device_train_batch_size, lengths["max"]) if lengths["min"] == lengths["max"] else None

    def baseline_hits(self) -> dict[str, dict[str, np.ndarray]]:
        """Which rows the baselines get right, of the test rows and of those that are evaluated in training."""
        train = self.train.sample(MAX_FITTED) if isinstance(self.train, StreamedRows) else self.dataset["train"]
        splits = {name: self.dataset[name] for name in ("test", self.eval_split)}
        return baseline_hits(train, splits, self.grammar, self.stats["classes"]["train"])

    def fitted_record(self) -> dict[str, Any]:
        """What the results say of the rows that the baselines are fitted on."""
        return fitted_record(self.stats["num_rows"]["train"], isinstance(self.train, StreamedRows))


def load_inputs(launch: Launch) -> TrainingInputs:
    """Loads the prepared rows, and checks that no image is in two splits; streamed rows are checked as they are read.

    Raises:
        InputError: The folder isn't prepared data, or an image is in two splits.
    """
    args, folder = launch.args, launch.folder
    seed = args.seed if args.data_seed is None else args.data_seed
    if launch.data.streaming is None:
        dataset = load_prepared(folder, with_images=launch.run.augment is not None)
    stats = load_stats(folder)
    tokenizer = load_tokenizer(folder / TOKENIZER_FOLDER)
    grammar, codec = grammar_of(tokenizer), load_codec_of(folder)
    if launch.run.cuda_graph and stats["lengths"]["min"] < stats["lengths"]["max"]:
        raise InputError("--cuda_graph: remove it; the rows differ in length")
    train: Dataset | AugmentedRows | DeviceRows | StreamedRows
    if launch.data.streaming is None:
        train = augmented(dataset["train"], codec, grammar, launch.run.augment, seed)
        if launch.run.rows_on_device:
            train = _on_device(launch, dataset["train"], stats, tokenizer)
        check_disjoint(dataset)
        checked = "no image in two splits"
    else:
        dataset, train = _open(launch, stats, grammar, seed)
        checked = f"the training rows are streamed in {len(train.lengths)} lanes and checked as they are read"
    processor = make_processor(tokenizer, codec, stats["class_names"]) if codec else None
    num_rows, batch = stats["num_rows"]["train"], args.per_device_train_batch_size
    if args.dataloader_drop_last and num_rows < batch * args.world_size:
        raise InputError(
            f"--dataloader_drop_last: {num_rows} training rows don't fill one batch of {batch} in each process; "
            "remove it, or lower --per_device_train_batch_size"
        )
    logger.info("data: %s rows, %s", rows_in_words(stats["num_rows"]), checked)
    inputs = TrainingInputs(dataset, train, stats, tokenizer, grammar, processor)
    if inputs.eval_split == "test" and args.eval_strategy != "no" and args.process_index == 0:
        logger.warning(
            "the data have no validation split, so best_model is chosen on the test rows, which makes its figures "
            "there too good; %s to get one (--validation_size)",
            PREPARE_AGAIN,
        )
    return inputs


def _open(launch: Launch, stats: dict[str, Any], grammar: Grammar, seed: int) -> tuple[DatasetDict, StreamedRows]:
    """The splits that are evaluated, and the stream of the training rows."""
    args, options = launch.args, launch.data
    update = Update(args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size)
    held_out, lanes, source = open_streams(
        options.dataset_dir, launch.folder, options.streaming or None, stats, grammar, update.num_rows
    )
    check, filler = RowCheck(grammar, check_disjoint(held_out)), np.asarray(held_out["test"][0]["input_ids"])
    train = StreamedRows(lanes, update, seed, options.shuffle_buffer, check, filler, source)
    if (empty := 1 - train.num_rows / len(train)) > EMPTY_PLACES_TOLD and args.process_index == 0:
        logger.warning(
            "%.0f %% of the places in an epoch's batches stay empty, as the shards differ in size or are few for a "
            "batch of %d rows; write shards of equal size, or lower the batch",
            100 * empty,
            update.num_rows,
        )
    return held_out, train


def _on_device(
    launch: Launch, train: Dataset, stats: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> Dataset | DeviceRows:
    """The training rows in the memory of the device, if they fit; says so in the log."""
    device = launch.args.device
    if not fits_on(device, len(train), stats["lengths"]["max"]):
        launch.notes.append(f"--rows_on_device: {len(train)} rows don't fit into the free memory of {device}")
        return train
    rows = DeviceRows(train, device, int(tokenizer.pad_token_id))
    launch.notes.append(f"training rows on {device}: {rows.ids.nbytes / 1e6:.1f} MB")
    return rows
