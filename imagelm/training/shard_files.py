"""Finding, counting and opening the shards of prepared data, here or in a store that `fsspec` knows.

One idea: what is small (statistics, tokenizer, codec, the rows that are evaluated) is fetched before the training. Of
the training rows only each shard's number is read, so that a missing, damaged or repeated shard is named at once.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, DatasetDict, Features, IterableDataset, List, Value, load_dataset
from fsspec.core import url_to_fs

from imagelm.data.integrity import changes
from imagelm.data.load import PREPARE_AGAIN, load_prepared
from imagelm.data.rows import SPLITS
from imagelm.data.sources.loading import is_saved_dataset
from imagelm.tokens.grammar import Grammar
from imagelm.training.streaming import COLUMNS, Lane, lane_numbers
from imagelm.utils.artifacts import CODEC_FOLDER, STATS_FILE, TOKENIZER_FOLDER
from imagelm.utils.errors import InputError
from imagelm.utils.quiet import quiet_datasets
from imagelm.utils.text import first_line, join_first

BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".jsonl": "json"}
LAYOUTS = ("{split}/*", "{split}-*", "data/{split}-*", "data/{split}/*")  # ours, and those of the Hub
HELD_OUT = SPLITS[1:]
PARTS_OF_A_SAVED_LANE = 16  # that are read in turn, since neighbouring rows often have one class
THREADS = 16
MAX_EMPTY = 0.01


def is_url(name: str) -> bool:
    """Whether a folder lies in a store, such as `s3://bucket/data` or `hf://datasets/me/data`."""
    return "://" in name


def fetch_small_parts(folder: str) -> Path:
    """A local folder with the statistics, tokenizer and codec of prepared data in a store; itself if it is local.

    Raises:
        InputError: The store can't be read, or holds no prepared data there.
    """
    if not is_url(folder):
        return Path(folder)
    local = Path(tempfile.mkdtemp(prefix="imagelm-"))
    atexit.register(shutil.rmtree, local, ignore_errors=True)
    try:
        store, root = url_to_fs(folder)
        found = [name for part in (TOKENIZER_FOLDER, CODEC_FOLDER) for name in store.glob(f"{root}/{part}/*")]
        for name in (f"{root}/{STATS_FILE}", *found):
            file = local / Path(name).relative_to(root)
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(store.cat_file(name))
    except FileNotFoundError as error:
        remedy = "give a folder that imagelm prepare wrote"
        raise InputError(f"--dataset_dir {folder} holds no {STATS_FILE}; {remedy}") from error
    except Exception as error:  # each store raises its own
        raise InputError(f"--dataset_dir {folder} can't be read: {first_line(error)}") from error
    return local


def open_streams(
    folder: str, parts: Path, pattern: str | None, stats: dict[str, Any], grammar: Grammar, rows_per_update: int
) -> tuple[DatasetDict, list[Lane], str]:
    """The splits that are evaluated, the lanes of the training rows, and where these come from.

    Args:
        folder: `--dataset_dir`.
        parts: The local folder with its small parts.
        pattern: Of the shards of the training rows; None for those in the folder.
        stats: The content of `stats.json`.
        grammar: The vocabulary.
        rows_per_update: Of all processes together.

    Raises:
        InputError: Rows are missing, can't be read, or aren't those that `stats.json` describes.
    """
    saved = not is_url(folder) and is_saved_dataset(parts)
    held_out = load_prepared(parts, HELD_OUT) if saved else _load_held_out(folder, parts, stats, grammar)
    if saved and pattern is None:
        train = held_out["train"]
        count = lane_numbers(rows_per_update, len(train))[0]
        shares = [train.shard(count, index, contiguous=True) for index in range(count)]
        lanes = [Lane(part.to_iterable_dataset(min(PARTS_OF_A_SAVED_LANE, len(part))), len(part)) for part in shares]
        source = f"--dataset_dir {folder}"
    else:
        files = find_shards(folder, "train") if pattern is None else _glob(pattern)
        source = f"--dataset_dir {folder}" if pattern is None else f"--streaming {pattern}"
        if not files:
            raise InputError(f"{source}: no shards of training rows ({', '.join(BUILDERS)})")
        counts = count_rows(files, source)
        dealt = deal(counts, rows_per_update)
        lanes = [Lane(open_shards([files[i] for i in lane]), sum(counts[i] for i in lane)) for lane in dealt]
    found, recorded = sum(lane.num_rows for lane in lanes), stats["num_rows"]["train"]
    if found != recorded:
        problem = "a shard is missing" if found < recorded else "a shard is there twice"
        numbers = f"{found} training rows, but {STATS_FILE} records {recorded}"
        raise InputError(f"{source}: {numbers}: {problem}, or of other data")
    return DatasetDict({name: held_out[name] for name in HELD_OUT if name in held_out}), lanes, source


def find_shards(folder: str, split: str) -> list[str]:
    """The shards of a split in a folder, local or in a store, in the order of their names."""
    return next(filter(None, (_glob(f"{folder.rstrip('/')}/{layout.format(split=split)}") for layout in LAYOUTS)), [])


def count_rows(files: list[str], source: str) -> list[int]:
    """The number of rows in each shard; Parquet tells it in its last bytes, other files are read.

    Raises:
        InputError: Names the shards that can't be read.
    """

    def count(file: str) -> int | str:
        try:
            with fsspec.open(file) as stream:
                if file.endswith(".parquet"):
                    return pq.ParquetFile(stream).metadata.num_rows
                if file.endswith(".jsonl"):
                    return sum(not line.isspace() for line in stream)
                return sum(batch.num_rows for batch in pa.ipc.open_stream(stream))
        except Exception as error:  # each store raises its own
            return f"{file}: {first_line(error)}"

    with ThreadPoolExecutor(THREADS) as pool:
        counts = list(pool.map(count, files))
    if bad := [entry for entry in counts if isinstance(entry, str)]:
        raise InputError(
            f"{source}: {len(bad)} of {len(files)} shards can't be read: {join_first(bad, separator='; ')}"
        )
    return [entry for entry in counts if isinstance(entry, int)]


def deal(counts: list[int], rows_per_update: int) -> list[list[int]]:
    """Deals shards to lanes, the largest shard first and each to the emptiest lane; the numbers of each lane's shards.

    There are as many lanes as can be without leaving more than `MAX_EMPTY` of their places empty.
    """
    least, best = 1.0, [list(range(len(counts)))]
    for count in lane_numbers(rows_per_update, len(counts)):
        lanes: list[list[int]] = [[] for _ in range(count)]
        totals = np.zeros(count)
        for shard in sorted(range(len(counts)), key=lambda shard: -counts[shard]):
            emptiest = int(totals.argmin())
            lanes[emptiest].append(shard)
            totals[emptiest] += counts[shard]
        empty = 1 - totals.mean() / max(totals.max(), 1)
        if empty <= max(MAX_EMPTY, least):
            least, best = empty, [sorted(lane) for lane in lanes]
        if empty <= MAX_EMPTY:
            break
    return best


def open_shards(files: list[str]) -> IterableDataset:
    """The rows of shards of one kind, one after the other."""
    builder = BUILDERS[_suffix(files[0])]
    options = {"columns": COLUMNS} if builder == "parquet" else {}
    return load_dataset(builder, data_files=files, split="train", streaming=True, **options)


def _load_held_out(folder: str, parts: Path, stats: dict[str, Any], grammar: Grammar) -> DatasetDict:
    found = DatasetDict()
    for split in (name for name in HELD_OUT if name in stats["num_rows"]):
        if not (files := find_shards(folder, split)):
            raise InputError(f"--dataset_dir {folder} holds no shards of the {split} rows; {PREPARE_AGAIN}")
        local = [_fetch(file, parts) for file in files]
        cache = {"cache_dir": str(parts / "cache")} if is_url(folder) else {}  # which ends with the process
        types = {"input_ids": List(Value(str(grammar.id_dtype))), "label": ClassLabel(names=stats["class_names"])}
        with quiet_datasets():
            rows = load_dataset(BUILDERS[_suffix(local[0])], data_files=local, split="train", **cache)
            found[split] = rows.cast(Features(rows.features | types))
    # JSON has no columns of this order and these types, so that only the grammar and the counts can be compared.
    known = stats if not any(file.endswith(".jsonl") for file in files) else stats | {"digests": {}}
    if problems := list(changes(dict(found), known, grammar)):
        raise InputError(f"--dataset_dir {folder} isn't what was prepared: {'; '.join(problems)}; {PREPARE_AGAIN}")
    return found


def _fetch(file: str, parts: Path) -> str:
    """A local copy of a file in a store; the file itself if it is local."""
    if not is_url(file):
        return file
    store, path = url_to_fs(file)
    (parts / "rows").mkdir(exist_ok=True)
    store.get_file(path, str(local := parts / "rows" / Path(path).name))
    return str(local)


def _glob(pattern: str) -> list[str]:
    try:
        store, path = url_to_fs(pattern)
        found = sorted(store.unstrip_protocol(name) if is_url(pattern) else name for name in store.glob(path))
    except Exception as error:  # each store raises its own
        raise InputError(f"{pattern} can't be read: {first_line(error)}") from error
    return [name for name in found if _suffix(name) in BUILDERS]


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()
