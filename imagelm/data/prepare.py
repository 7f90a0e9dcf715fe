"""Checked rows → a `DatasetDict` on disk: repaired tails, truncation, deduplication, split, statistics.

One idea: two passes in constant memory. The first reads, checks and cuts every row into a temporary Arrow file and
keeps only a digest and a label of each; then it's known who stays on which side, and the second pass deals them out.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
import pyarrow as pa
import xxhash
from datasets import ClassLabel, Dataset, DatasetDict, DatasetInfo, Features, Image, List, Value
from tqdm import tqdm

from imagelm.data.arguments import PrepareArguments
from imagelm.data.jsonl.source import JsonlRows, RawWriter
from imagelm.data.rows import SPLITS, ProblemLog, RowBatch, RowSource
from imagelm.data.splits import (
    DIGEST_DTYPE,
    Duplicates,
    RowTable,
    assign_splits,
    drop_variants_of_dropped,
    find_duplicates,
)
from imagelm.data.stats import dataset_card, describe
from imagelm.tokens.grammar import NUM_FRAME_TOKENS
from imagelm.tokens.tokenizer import write_tokenizer
from imagelm.utils.artifacts import BAD_ROWS_FILE, RAW_FOLDER, STATS_FILE, TOKENIZER_FOLDER
from imagelm.utils.atomic_io import atomic_folder, check_output_free, write_json, write_text
from imagelm.utils.errors import InputError

if TYPE_CHECKING:
    pass

ROWS_FILE = "rows.arrow"  # temporary


def prepare(options: PrepareArguments, command: str) -> dict:
    """Writes the `DatasetDict`, the tokenizer, `stats.json` and the dataset card into `options.output_dir`.

    Memory doesn't grow with the tokens of the input; deduplication and split take about 200 bytes a row.

    Args:
        options: What to do.
        command: The command line, kept in the statistics.

    Returns:
        The statistics, as in `stats.json`.

    Raises:
        InputError: The input is wrong or the output folder is taken. Nothing is written then.
    """
    output = Path(options.output_dir)
    check_output_free(output, STATS_FILE, options.overwrite)
    with atomic_folder(output) as staging:
        with open(staging / BAD_ROWS_FILE, "wb") as keep:
            problems = ProblemLog(keep=keep)
            source = _open_source(options, staging, problems)
            table = _first_pass(options, source, problems, staging)
        if not problems.counts:
            (staging / BAD_ROWS_FILE).unlink()
        duplicates = find_duplicates(table.digests, table.labels, table.file_splits)
        drop_variants_of_dropped(duplicates, table.groups, table.digests)
        sides = _assign(options, table, source, duplicates)
        _second_pass(staging, source, sides, table)
        max_length = int(table.lengths[duplicates.keep].max()) + NUM_FRAME_TOKENS
        write_tokenizer(source.grammar, max_length, staging / TOKENIZER_FOLDER)
        stats = describe(asdict(options), command, source, table, duplicates, sides)
        write_json(staging / STATS_FILE, stats)
        write_text(staging / "README.md", dataset_card(stats))
    return stats


def _open_source(options: PrepareArguments, staging: Path, problems: ProblemLog) -> RowSource:
    if options.images is None:
        return JsonlRows(options, staging, problems)
    from imagelm.data.image_rows import ImageRows  # late: rows of tokens need none of its libraries

    return ImageRows(options, staging, problems)


def _first_pass(options: PrepareArguments, source: RowSource, problems: ProblemLog, staging: Path) -> RowTable:
    """Reads, checks and cuts all rows into a temporary file; returns what the split needs to know of them."""
    grammar = source.grammar
    token_type = pa.list_(pa.from_numpy_dtype(grammar.id_dtype))
    schema = pa.schema([("input_ids", token_type), ("source", pa.string()), ("image", pa.binary())])
    code_counts = np.zeros(grammar.size, dtype=np.int64)
    table = RowTable(files=source.files, where=source.place, code_counts=code_counts, problems=problems)
    raw = RawWriter(staging / RAW_FOLDER, source) if options.write_jsonl else None
    with pa.OSFile(str(staging / ROWS_FILE), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in source.batches():
            table.num_read_tokens += int(batch.lengths.sum())
            if options.max_length is not None:
                batch = _cut(batch, options.max_length - NUM_FRAME_TOKENS, options.truncation_side, table)
            _note(batch, table)
            if raw:
                raw.write(batch)
            ids, offsets = grammar.compose(batch.bodies, batch.lengths, batch.labels)
            lists = pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), pa.array(ids))
            images = pa.array(batch.images or [None] * len(lists), type=pa.binary())
            sources = pa.array(batch.sources, type=pa.string())
            writer.write_batch(pa.record_batch([lists, sources, images], schema=schema))
    if raw:
        raw.finish()
    problems.stop_if(options.on_bad_rows)
    table.finish()
    if not len(table.labels):
        raise InputError(f"no usable row in {', '.join(table.files)}; expected JSON lines with tokens and label")
    return table


def _cut(batch: RowBatch, max_body: int, side: str, table: RowTable) -> RowBatch:
    """Cuts image bodies to `max_body` tokens; side "left" drops a body's first tokens, "right" its last."""
    lost = np.maximum(batch.lengths - max_body, 0)
    if not lost.any():
        return batch
    table.num_cut_rows += int((lost > 0).sum())
    table.num_cut_tokens += int(lost.sum())
    starts = np.cumsum(batch.lengths) - batch.lengths
    position = np.arange(len(batch.bodies)) - np.repeat(starts, batch.lengths)
    low = np.repeat(lost if side == "left" else np.zeros_like(lost), batch.lengths)
    stays = (position >= low) & (position < low + max_body)
    return replace(batch, bodies=batch.bodies[stays], lengths=batch.lengths - lost)


def _note(batch: RowBatch, table: RowTable) -> None:
    """Adds a batch to the table."""
    # Always 32 bits wide: a digest, and with it a side of --split_by hash, outlives a change of vocabulary size.
    bodies = memoryview(np.ascontiguousarray(batch.bodies, dtype="<u4")).cast("B")
    ends = [0, *(4 * np.cumsum(batch.lengths)).tolist()]
    digests = [xxhash.xxh3_128_digest(bodies[start:end]) for start, end in pairwise(ends)]
    groups = [
        own if source is None else xxhash.xxh3_128_digest(source.encode())
        for own, source in zip(digests, batch.sources, strict=True)
    ]
    table.append(
        lengths=batch.lengths,
        labels=batch.labels,
        file_splits=batch.splits,
        lines=batch.lines,
        file_index=np.full(len(batch.lines), table.files.index(batch.file)),
        digests=np.frombuffer(b"".join(digests), dtype=DIGEST_DTYPE),
        groups=np.frombuffer(b"".join(groups), dtype=DIGEST_DTYPE),
    )
    table.num_repaired += batch.num_repaired
    table.code_counts += np.bincount(batch.bodies, minlength=len(table.code_counts))


def _assign(options: PrepareArguments, table: RowTable, source: RowSource, duplicates: Duplicates) -> np.ndarray:
    """The side of each row that stays, -1 for duplicates; int8, shape (rows,)."""
    keep = duplicates.keep
    if source.split_by == "field":
        for side, name in enumerate(SPLITS):
            if (table.file_splits == side).any() and not (table.file_splits[keep] == side).any():
                raise InputError(
                    f"as tokens, every {name} image repeats another one; the codebook keeps too little of the images"
                )
    sides = np.full(len(keep), -1, dtype=np.int8)
    sides[keep] = assign_splits(
        source.split_by,
        options.test_size,
        options.seed,
        table.labels[keep],
        table.groups[keep],
        table.file_splits[keep],
        source.class_names,
    )
    return sides


def _second_pass(staging: Path, source: RowSource, sides: np.ndarray, table: RowTable) -> None:
    """Deals the rows out to their splits and saves the `DatasetDict`; removes the temporary files."""
    rows_file = staging / ROWS_FILE
    split_files = {name: staging / f"{name}.arrow" for name in SPLITS}
    with pa.OSFile(str(rows_file)) as rows:  # a mapped file's pages would count as memory
        reader = pa.ipc.open_file(rows)
        with_images = reader.num_record_batches > 0 and reader.get_batch(0)["image"].null_count == 0
        features = _features(source, with_source=table.has_sources, with_images=with_images)
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
            for side, name in enumerate(SPLITS):
                writers[name].write_table(whole.filter(pa.array(sides[part] == side)))
            row = part.stop
        for writer in writers.values():
            writer.close()
    rows_file.unlink()
    _save(split_files, features, staging)


def _save(split_files: dict[str, Path], features: Features, folder: Path) -> None:
    """Makes Arrow streams of the splits, which aren't empty, a saved `DatasetDict`, without reading their rows.

    The library writes all but the rows: the folder of the first row alone, in whose place the whole stream comes.
    """
    first = {}
    for name, file in split_files.items():
        with pa.OSFile(str(file)) as stream, pa.ipc.open_stream(stream) as reader:
            batch = next(batch for batch in reader if batch.num_rows)
        first[name] = Dataset(pa.Table.from_batches([batch.slice(0, 1)]), DatasetInfo(features=features))
    datasets.disable_progress_bars()
    DatasetDict(first).save_to_disk(folder)
    datasets.enable_progress_bars()
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
