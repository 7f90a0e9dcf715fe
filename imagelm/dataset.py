"""Checked rows → a `DatasetDict` on disk: mended tails, truncation, deduplication, split, statistics.

One idea: two passes in constant memory. The first reads, checks and cuts every row into a temporary Arrow file and
keeps only a digest and a label of each; then it's known who stays on which side, and the second pass deals them out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import xxhash
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from tqdm import tqdm

from imagelm.errors import InputError
from imagelm.files import check_folder_name, check_output_free, read_json, whole_folder, write_json, write_text
from imagelm.records import SPLITS, ProblemLog, RowBatch, expand_files, read_rows
from imagelm.sequence import NUM_FRAME_TOKENS, NUM_TAIL_TOKENS, Grammar, class_token, load_vocabulary
from imagelm.splits import DIGEST_DTYPE, Duplicates, RowTable, assign_splits, find_duplicates
from imagelm.statistics import dataset_card, describe
from imagelm.tokenizer import build_tokenizer, save_tokenizer

STATS_FILE = "stats.json"
BAD_ROWS_FILE = "bad_rows.jsonl"
TOKENIZER_FOLDER = "tokenizer"


@dataclass
class PrepareOptions:
    """What `prepare_dataset.py` is asked to do; the command's arguments by the same names."""

    data_files: list[str]
    vocab_file: str
    output_dir: str
    max_length: int | None = None
    truncation_side: str = "left"
    test_size: float = 0.2
    split_by: str = "stratified"
    seed: int = 42
    on_bad_rows: str = "stop"
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_folder_name(self.output_dir)
        if not 0 < self.test_size < 1:
            raise InputError(f"--test_size {self.test_size} is no share; give one between 0 and 1, such as 0.2")
        if self.max_length is not None and self.max_length <= NUM_FRAME_TOKENS:
            raise InputError(
                f"--max_length {self.max_length} leaves no room for an image; "
                f"the frame takes {NUM_FRAME_TOKENS} tokens, so give at least {NUM_FRAME_TOKENS + 1}"
            )
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed {self.seed} is out of range; give one from 0 to {2**32 - 1}")


def prepare(options: PrepareOptions, command: str) -> dict:
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
    grammar = load_vocabulary(options.vocab_file)
    files = expand_files(options.data_files)
    with whole_folder(output) as staging:
        rows_file = staging / "rows.arrow"
        table = _first_pass(options, grammar, files, rows_file, staging / BAD_ROWS_FILE)
        duplicates = find_duplicates(table.digests, table.labels, table.file_splits)
        sides = _assign(options, table, grammar, duplicates)
        _second_pass(rows_file, grammar, sides, table, staging)
        max_length = int(table.lengths[duplicates.keep].max()) + NUM_FRAME_TOKENS
        save_tokenizer(build_tokenizer(grammar, max_length), staging / TOKENIZER_FOLDER)
        stats = describe(asdict(options), command, grammar, table, duplicates, sides)
        write_json(staging / STATS_FILE, stats)
        write_text(staging / "README.md", dataset_card(stats))
    return stats


def load_prepared(folder: str | Path) -> DatasetDict:
    """Loads what `prepare` wrote.

    Raises:
        InputError: The folder isn't one.
    """
    folder = Path(folder)
    if not (folder / STATS_FILE).is_file():
        raise InputError(
            f"--dataset_dir {folder} holds no {STATS_FILE}; write it with prepare_dataset.py --output_dir {folder}"
        )
    return datasets.load_from_disk(str(folder))


def load_stats(folder: str | Path) -> dict:
    """The statistics that `prepare` left in `folder`."""
    return read_json(Path(folder) / STATS_FILE)


def check_disjoint(dataset: DatasetDict) -> None:
    """Proves that no image stands on both sides of the split.

    Raises:
        InputError: One does; the folder wasn't written by `prepare`, or was changed since.
    """
    first, second = ({_image_digest(row) for row in _rows(dataset[name])} for name in SPLITS)
    if both := len(first & second):
        raise InputError(
            f"{both} images stand in both the {SPLITS[0]} and the {SPLITS[1]} split, so the figures would be too good; "
            "write the dataset anew with prepare_dataset.py"
        )


def _rows(dataset: Dataset) -> Iterator[np.ndarray]:
    for batch in dataset.select_columns(["input_ids"]).with_format("arrow").iter(10_000):
        rows = batch["input_ids"].combine_chunks()
        yield from np.split(rows.flatten().to_numpy(), rows.offsets.to_numpy()[1:-1] - rows.offsets[0].as_py())


def _image_digest(row: np.ndarray) -> bytes:
    return xxhash.xxh3_128_digest(np.ascontiguousarray(row[1:-NUM_TAIL_TOKENS]))


def _first_pass(
    options: PrepareOptions, grammar: Grammar, files: list[Path], rows_file: Path, bad_file: Path
) -> RowTable:
    """Reads, checks and cuts all rows into `rows_file`; returns what the split needs to know of them."""
    schema = pa.schema([("input_ids", pa.list_(pa.from_numpy_dtype(grammar.id_dtype))), ("source", pa.string())])
    table = RowTable(files=[str(file) for file in files], code_counts=np.zeros(grammar.size, dtype=np.int64))
    with open(bad_file, "wb") as keep, pa.OSFile(str(rows_file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        table.problems = ProblemLog(keep=keep)
        for batch in read_rows(files, grammar, table.problems, need_split=options.split_by == "field"):
            table.num_read_tokens += int(batch.lengths.sum())
            if options.max_length is not None:
                batch = _cut(batch, options.max_length - NUM_FRAME_TOKENS, options.truncation_side, table)
            _note(batch, table)
            ids, offsets = grammar.compose(batch.bodies, batch.lengths, batch.labels)
            lists = pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), pa.array(ids))
            writer.write_batch(pa.record_batch([lists, pa.array(batch.sources, type=pa.string())], schema=schema))
    if table.problems.counts:
        if options.on_bad_rows == "stop":
            raise InputError(
                f"{table.problems.summary()}\n"
                "Nothing was written. Mend the rows, or leave them out with --on_bad_rows skip"
            )
    else:
        bad_file.unlink()
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
    bodies = np.ascontiguousarray(batch.bodies, dtype="<u4")
    ends = np.cumsum(batch.lengths)
    digests = [xxhash.xxh3_128_digest(bodies[end - n : end]) for end, n in zip(ends, batch.lengths, strict=True)]
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
    table.num_mended += batch.num_mended
    table.code_counts += np.bincount(batch.bodies, minlength=len(table.code_counts))


def _assign(options: PrepareOptions, table: RowTable, grammar: Grammar, duplicates: Duplicates) -> np.ndarray:
    """The side of each row that stays, -1 for duplicates; int8, shape (rows,)."""
    keep = duplicates.keep
    names = [class_token(label) for label in range(grammar.num_classes)]
    sides = np.full(len(keep), -1, dtype=np.int8)
    sides[keep] = assign_splits(
        options.split_by,
        options.test_size,
        options.seed,
        table.labels[keep],
        table.groups[keep],
        table.file_splits[keep],
        names,
    )
    return sides


def _second_pass(rows_file: Path, grammar: Grammar, sides: np.ndarray, table: RowTable, staging: Path) -> None:
    """Deals the rows out to their splits and saves the `DatasetDict`; removes the temporary files."""
    features = _features(grammar, with_source=table.has_sources)
    split_files = {name: staging / f"{name}.arrow" for name in SPLITS}
    with pa.memory_map(str(rows_file)) as source:
        reader = pa.ipc.open_file(source)
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
            whole = pa.table({name: columns[name] for name in features}, schema=features.arrow_schema)
            for side, name in enumerate(SPLITS):
                writers[name].write_table(whole.filter(pa.array(sides[part] == side)))
            row = part.stop
        for writer in writers.values():
            writer.close()
    datasets.disable_progress_bars()
    DatasetDict({name: Dataset.from_file(str(file)) for name, file in split_files.items()}).save_to_disk(staging)
    datasets.enable_progress_bars()
    for file in (rows_file, *split_files.values()):
        file.unlink()


def _features(grammar: Grammar, with_source: bool) -> Features:
    label_names = [str(label) for label in range(grammar.num_classes)]
    features = {"input_ids": List(Value(str(grammar.id_dtype))), "label": ClassLabel(names=label_names)}
    if with_source:
        features["source"] = Value("string")
    return Features(features)
