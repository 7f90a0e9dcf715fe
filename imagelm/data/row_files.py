"""Checked rows → temporary files → the splits of a saved `DatasetDict`.

One idea: two passes in constant memory. The first reads, checks and cuts every row into an Arrow file, and keeps a few
bytes of each, which decide the row's split; the second writes the rows to their splits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, Image, List, Value
from tqdm import tqdm

from imagelm.data.arguments import PrepareArguments
from imagelm.data.integrity import ColumnDigests
from imagelm.data.jsonl.writer import write_raw
from imagelm.data.rows import ROW_DTYPE, RowBatch, RowCounts, RowSource, RowTable, row_records
from imagelm.data.splits import present_splits
from imagelm.tokens.grammar import NUM_FRAME_TOKENS
from imagelm.utils.artifacts import RAW_FOLDER
from imagelm.utils.errors import InputError
from imagelm.utils.quiet import quiet_datasets

# Temporary, or those of a shard; with --write_jsonl, RAW_FOLDER is beside them.
ROWS_FILE, TABLE_FILE = "rows.arrow", "rows.table"


def read_rows(arguments: PrepareArguments, source: RowSource, folder: Path) -> RowCounts:
    """Reads, checks and cuts all rows of a source into `ROWS_FILE`, and what is kept of each into `TABLE_FILE`."""
    token_type = pa.list_(pa.from_numpy_dtype(source.grammar.id_dtype))
    schema = pa.schema([("input_ids", token_type), ("source", pa.string()), ("image", pa.binary())])
    counts, file_index = RowCounts(np.zeros(source.grammar.size, np.int64)), {n: i for i, n in enumerate(source.files)}
    batches = source.batches()
    if arguments.write_jsonl:
        batches = write_raw(batches, source, folder / RAW_FOLDER)
    with ExitStack() as files:
        table = files.enter_context(open(folder / TABLE_FILE, "wb"))
        sink = files.enter_context(pa.OSFile(str(folder / ROWS_FILE), "wb"))
        writer = files.enter_context(pa.ipc.new_file(sink, schema))
        for batch in batches:
            batch, num_cut = _cut(batch, arguments.max_length, arguments.truncation_side)
            counts.add(batch, num_cut)
            table.write(row_records(batch, file_index[batch.file]).tobytes())
            ids, offsets = source.grammar.compose(batch.bodies, batch.lengths, batch.labels)
            lists = pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), pa.array(ids))
            images = pa.nulls(len(lists), pa.binary()) if batch.images is None else pa.array(batch.images, pa.binary())
            sources = pa.array(batch.sources, type=pa.string())
            writer.write_batch(pa.record_batch([lists, sources, images], schema=schema))
    return counts


def open_table(source: RowSource, folders: list[Path], counts: RowCounts, spill: Path) -> RowTable:
    """What `read_rows` kept of the rows in these folders, one after the other; `spill` is for temporary files.

    Raises:
        InputError: There are no rows.
    """
    table = RowTable(source, [folder / TABLE_FILE for folder in folders], counts, spill)
    if not table.num_rows:
        raise InputError(f"no usable row in {', '.join(source.files)}; expected JSON lines with tokens and label")
    return table


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


def write_splits(
    staging: Path, folders: list[Path], table: RowTable, sides: np.ndarray, with_images: bool
) -> dict[str, dict[str, str]]:
    """Writes the rows in `folders` to their splits and saves the `DatasetDict` in `staging`.

    Returns:
        The digest of each column of each split.
    """
    splits = present_splits(sides)
    split_files = {name: staging / f"{name}.arrow" for name in splits}
    digests = {name: ColumnDigests() for name in split_files}
    features = _features(table.source, table.has_sources, with_images)
    with ExitStack() as files:
        writers = {
            name: files.enter_context(pa.ipc.new_stream(str(file), features.arrow_schema))
            for name, file in split_files.items()
        }
        row = 0
        for batch, labels in _batches(folders):
            part = slice(row, row + batch.num_rows)
            columns = {
                "input_ids": batch["input_ids"],
                "label": pa.array(labels, type=pa.int64()),
                "source": batch["source"],
            }
            if with_images:
                names = pa.nulls(batch.num_rows, pa.string())
                columns["image"] = pa.StructArray.from_arrays([batch["image"], names], ["bytes", "path"])
            whole = pa.table({name: columns[name] for name in features}, schema=features.arrow_schema)
            for name, side in splits.items():
                rows_of_split = whole.filter(pa.array(sides[part] == side))
                writers[name].write_table(rows_of_split)
                digests[name].add(rows_of_split)
            row = part.stop
    _save(split_files, features, staging)
    return {name: digest.hexdigests() for name, digest in digests.items()}


def _batches(folders: list[Path]) -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
    """All rows, some at a time, with their labels."""
    for folder in folders:
        # A mapped file's pages would count as memory.
        with pa.OSFile(str(folder / ROWS_FILE)) as file, open(folder / TABLE_FILE, "rb") as table:
            reader = pa.ipc.open_file(file)
            for i in tqdm(range(reader.num_record_batches), desc="writing", disable=None):
                batch = reader.get_batch(i)
                yield batch, np.fromfile(table, ROW_DTYPE, batch.num_rows)["labels"]


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
