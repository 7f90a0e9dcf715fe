#!/usr/bin/env python
"""Streams rows as two processes of `imagelm train --streaming` do, stopped and started again in the middle, twice.

    python -m benchmarks.stream_rows --num_rows 1000000

No model is trained: the rows are read, checked and shuffled, and those seen are compared with those that there are.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from benchmarks.common import parser, save
from imagelm.tokens.grammar import NUM_FRAME_TOKENS, Grammar
from imagelm.tokens.vocabulary import make_vocabulary
from imagelm.training.shard_files import count_rows, deal, find_shards, open_shards
from imagelm.training.streaming import Lane, RowCheck, StreamedRows, Update

UPDATE, HELD_OUT, BUFFER = Update(batch=64, steps=1, num_processes=2), 100_000, 65_536


def main() -> None:
    made = parser(__doc__.split("\n")[0])
    made.add_argument("--num_rows", type=int, default=1_000_000)
    made.add_argument("--length", type=int, default=201, help="tokens a row")
    made.add_argument("--num_shards", type=int, default=8)
    arguments = made.parse_args()
    grammar = Grammar(make_vocabulary(500, 10))
    with tempfile.TemporaryDirectory() as folder:
        expected = write_shards(Path(folder), grammar, arguments)
        files = find_shards(folder, "train")
        counts = count_rows(files, folder)
        shares = deal(counts, UPDATE.num_rows)
        check = RowCheck(grammar, np.unique(np.random.default_rng(1).integers(-(2**63), 2**63, HELD_OUT)))

        def start() -> StreamedRows:
            lanes = [Lane(open_shards([files[i] for i in share]), sum(counts[i] for i in share)) for share in shares]
            return StreamedRows(lanes, UPDATE, 1, BUFFER, check, np.zeros(1, np.int64), folder)

        num_updates = start().num_updates
        stops = [0, num_updates // 3, 2 * num_updates // 3, num_updates]
        seen: Counter[int] = Counter()
        launches = [
            read(start(), process, first, last, seen)
            for first, last in pairwise(stops)
            for process in range(UPDATE.num_processes)
        ]
    assert seen == expected, "rows are missing or repeated"
    found = {name: getattr(arguments, name) for name in ("num_rows", "length", "num_shards")}
    save("stream_rows", found | {"lanes": len(shares), "launches": launches}, arguments.output)


def write_shards(folder: Path, grammar: Grammar, arguments) -> Counter[int]:
    """Random rows as Parquet shards; the digests of all rows."""
    rng, found = np.random.default_rng(0), Counter[int]()
    count, body = arguments.num_rows // arguments.num_shards, arguments.length - NUM_FRAME_TOKENS
    for shard in range(arguments.num_shards):
        labels = rng.integers(0, 10, count)
        bodies = grammar.code_ids[rng.integers(0, 500, count * body)]
        ids, offsets = grammar.compose(bodies, np.full(count, body), labels)
        ids = ids.astype(np.uint16)
        rows = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(ids))
        table = pa.table({"input_ids": rows, "label": pa.array(labels)})
        pq.write_table(table, folder / f"train-{shard:05d}.parquet", row_group_size=10_000)
        found.update(map(digest, ids.reshape(count, -1)))
    return found


def read(rows: StreamedRows, process: int, first: int, last: int, seen: Counter[int]) -> dict[str, float]:
    """Reads the batches of a process from one update to another, as Trainer does; counts the rows."""
    started, found = time.perf_counter(), 0.0
    for update in range(first, last):
        place = update * UPDATE.num_rows + process * UPDATE.batch
        batch = rows.__getitems__(list(range(place, place + UPDATE.batch)))
        found = found or time.perf_counter() - started
        seen.update(digest(row["input_ids"]) for row in batch if "labels" not in row)
    seconds = time.perf_counter() - started - found
    return {
        "process": process,
        "first_update": first,
        "seconds_to_first_batch": round(found, 2),
        "rows_per_second": round((last - first) * UPDATE.batch / seconds),
    }


def digest(row: np.ndarray) -> int:
    return xxhash.xxh3_64_intdigest(row.tobytes())


if __name__ == "__main__":
    main()
