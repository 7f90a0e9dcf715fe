"""Checked rows → a `DatasetDict` on disk: repaired tails, truncation, deduplication, split, statistics.

One idea: two passes in constant memory. The first reads, checks and cuts every row into a temporary Arrow file and
keeps a few bytes of each, which decide the row's side; the second writes the rows to their splits.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, Image, List, Value
from datasets.config import DATASETDICT_JSON_FILENAME
from tqdm import tqdm

from imagelm.data.arguments import PrepareArguments
from imagelm.data.integrity import ColumnDigests
from imagelm.data.jsonl.source import JsonlRows
from imagelm.data.jsonl.writer import write_raw
from imagelm.data.rows import ProblemLog, RowBatch, RowSource, RowTable, RowTableBuilder
from imagelm.data.splits import find_duplicates, present_splits, split_rows
from imagelm.data.stats import dataset_card, describe, summary, warnings
from imagelm.tokens.grammar import NUM_FRAME_TOKENS
from imagelm.tokens.tokenizer import write_tokenizer
from imagelm.utils.artifacts import BAD_ROWS_FILE, RAW_FOLDER, STATS_FILE, TOKENIZER_FOLDER
from imagelm.utils.atomic_io import write_json, write_text
from imagelm.utils.output_folder import atomic_folder, check_replaceable
from imagelm.utils.quiet import quiet_datasets

logger = logging.getLogger(__name__)

ROWS_FILE = "rows.arrow"  # temporary


def prepare(arguments: PrepareArguments, command: str) -> dict:
    """Writes the `DatasetDict`, the tokenizer, `stats.json` and the dataset card into `arguments.output_dir`.

    Memory doesn't grow with the tokens of the input; deduplication and split take about 200 bytes a row. The
    statistics, which hold the command line, are returned too, and a summary is logged.

    Raises:
        InputError: The input is wrong or the output folder is taken. Nothing is written then.
    """
    output = Path(arguments.output_dir)
    check = partial(check_replaceable, marker=DATASETDICT_JSON_FILENAME, overwrite=arguments.overwrite)
    with atomic_folder(output, check) as staging:
        with open(staging / BAD_ROWS_FILE, "wb") as keep:
            problems = ProblemLog(keep)
            source = _open_source(arguments, staging, problems)
            table = _read_rows(arguments, source, problems, staging)
        if not problems.counts:
            (staging / BAD_ROWS_FILE).unlink()
        duplicates = find_duplicates(table)
        sides, split_notes = split_rows(table, duplicates, arguments)
        digests = _write_splits(staging, table, sides)
        max_length = int(table.lengths[duplicates.keep].max()) + NUM_FRAME_TOKENS
        write_tokenizer(source.grammar, max_length, staging / TOKENIZER_FOLDER)
        stats = describe(arguments.record(), command, table, problems, duplicates, sides, split_notes, digests)
        stats |= source.describe(table, sides >= 0, staging)
        write_json(staging / STATS_FILE, stats)
        write_text(staging / "README.md", dataset_card(stats))
    for line in summary(stats):
        logger.info("%s", line)
    for warning in warnings(stats):
        logger.warning("%s", warning)
    logger.info("written: %s", output)
    return stats


def _open_source(arguments: PrepareArguments, staging: Path, problems: ProblemLog) -> RowSource:
    if arguments.images is None:
        return JsonlRows(arguments, staging, problems)
    from imagelm.data.image_rows import open_image_rows  # late: rows of tokens need none of its libraries

    return open_image_rows(arguments, staging, problems)


def _read_rows(arguments: PrepareArguments, source: RowSource, problems: ProblemLog, staging: Path) -> RowTable:
    """Reads, checks and cuts all rows into a temporary file; returns the table that decides the split."""
    token_type = pa.list_(pa.from_numpy_dtype(source.grammar.id_dtype))
    schema = pa.schema([("input_ids", token_type), ("source", pa.string()), ("image", pa.binary())])
    builder = RowTableBuilder(source)
    batches = source.batches()
    if arguments.write_jsonl:
        batches = write_raw(batches, source, staging / RAW_FOLDER)
    with pa.OSFile(str(staging / ROWS_FILE), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            batch, num_cut = _cut(batch, arguments.max_length, arguments.truncation_side)
            builder.add(batch, num_cut)
            ids, offsets = source.grammar.compose(batch.bodies, batch.lengths, batch.labels)
            lists = pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), pa.array(ids))
            images = pa.nulls(len(lists), pa.binary()) if batch.images is None else pa.array(batch.images, pa.binary())
            sources = pa.array(batch.sources, type=pa.string())
            writer.write_batch(pa.record_batch([lists, sources, images], schema=schema))
    problems.stop_if(arguments.on_bad_rows)
    return builder.finish()


def _cut(batch: RowBatch, max_length: int | None, side: str) -> tuple[RowBatch, np.ndarray]:
    """A batch cut to `max_length` tokens at the left or right of the bodies, and each row's loss; shape (rows,)."""
    max_body = batch.lengths.max(initial=0) if max_length is None else max_length - NUM_FRAME_TOKENS
    lost = np.maximum(batch.lengths - max_body, 0)
    if not lost.any():
        return batch, lost
    starts = np.cumsum(batch.lengths) - batch.lengths
    position = np.arange(len(batch.bodies)) - np.repeat(starts, batch.lengths)
    low = np.repeat(lost if side == "left" else np.zeros_like(lost), batch.lengths)
    stays = (position >= low) & (position < low + max_body)
    return replace(batch, bodies=batch.bodies[stays], lengths=batch.lengths - lost), lost


def _write_splits(staging: Path, table: RowTable, sides: np.ndarray) -> dict[str, dict[str, str]]:
    """Writes the rows to their splits and saves the `DatasetDict`; returns the digest of each column of each split.

    Removes the temporary files.
    """
    rows_file = staging / ROWS_FILE
    split_files = {name: staging / f"{name}.arrow" for name in present_splits(sides)}
    digests = {name: ColumnDigests() for name in split_files}
    with pa.OSFile(str(rows_file)) as rows:  # a mapped file's pages would count as memory
        reader = pa.ipc.open_file(rows)
        with_images = reader.num_record_batches > 0 and reader.get_batch(0)["image"].null_count == 0
        features = _features(table.source, table.has_sources, with_images)
        writers = {name: pa.ipc.new_stream(str(file), features.arrow_schema) for name, file in split_files.items()}
        row = 0
        for i in tqdm(range(reader.num_record_batches), desc="writing", disable=None):
            batch = reader.get_batch(i)
            part = slice(row, row + batch.num_rows)
            columns = {
                "input_ids": batch["input_ids"],
                "label": pa.array(table.labels[part], type=pa.int64()),
                "source": batch["source"],
            }
            if with_images:
                names = pa.nulls(batch.num_rows, pa.string())
                columns["image"] = pa.StructArray.from_arrays([batch["image"], names], ["bytes", "path"])
            whole = pa.table({name: columns[name] for name in features}, schema=features.arrow_schema)
            for name, side in present_splits(sides).items():
                rows_of_split = whole.filter(pa.array(sides[part] == side))
                writers[name].write_table(rows_of_split)
                digests[name].add(rows_of_split)
            row = part.stop
        for writer in writers.values():
            writer.close()
    rows_file.unlink()
    _save(split_files, features, staging)
    return {name: digest.hexdigests() for name, digest in digests.items()}


def _save(split_files: dict[str, Path], features: Features, folder: Path) -> None:
    """Turns the Arrow streams of the splits, which aren't empty, into a saved `DatasetDict` without reading their rows.

    The library saves the first row of each split with all metadata; the whole stream then replaces that row's file.
    """
    first = {}
    for name, file in split_files.items():
        with pa.OSFile(str(file)) as stream, pa.ipc.open_stream(stream) as reader:
            batch = next(batch for batch in reader if batch.num_rows)
        first[name] = Dataset(pa.Table.from_batches([batch.slice(0, 1)]), DatasetInfo(features=features))
    with quiet_datasets():
        DatasetDict(first).save_to_disk(folder)
    for name, file in split_files.items():
        (written,) = (folder / name).glob("*.arrow")
        file.replace(written)


def _features(source: RowSource, with_source: bool, with_images: bool) -> Features:
    features = {"input_ids": List(Value(str(source.grammar.id_dtype))), "label": ClassLabel(names=source.class_names)}
    if with_source:
        features["source"] = Value("string")
    if with_images:
        features["image"] = Image()
    return Features(features)
