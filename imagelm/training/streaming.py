"""Training rows that are read while the model trains, from shards that needn't fit on this machine.

One idea: shards are dealt to lanes, each a `datasets.IterableDataset` that is shuffled by a buffer, and a row's place
in the epoch tells its lane and its number there. So the order of the rows depends neither on the number of processes
nor on interruptions: Trainer's own sampler skips to a place, and a lane is read from its beginning to that row.

`datasets.distributed.split_dataset_by_node` is not used: it deals the shards anew in each epoch and by the number of
processes, so that epochs differ in length, and a run couldn't go on with other processes. `IterableDataset.state_dict`
isn't either: it forgets the rows in the buffer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, IterableDataset

from imagelm.data.disjoint import are_among
from imagelm.data.training_images import image_digests
from imagelm.metrics import IGNORE_INDEX
from imagelm.tokens.grammar import BODY, Grammar
from imagelm.utils.errors import InputError
from imagelm.utils.text import first_line

COLUMNS = ["input_ids", "label"]
MAX_LANES = 64  # so many processes share the shards without reading any row twice
BLOCK_ROWS = 1_000


@dataclass(frozen=True)
class Lane:
    """Some of the shards, in a fixed order, and the number of their rows."""

    rows: IterableDataset
    num_rows: int


@dataclass(frozen=True)
class Update:
    """How the rows of an update are shared.

    Attributes:
        batch: Rows that a process trains on at once.
        steps: Such batches of a process, whose gradients are accumulated.
        num_processes: The processes.
    """

    batch: int
    steps: int
    num_processes: int

    @property
    def num_rows(self) -> int:
        """Rows of all processes together."""
        return self.batch * self.steps * self.num_processes


@dataclass(frozen=True)
class RowCheck:
    """What every row is checked for as it is read: the grammar, and that no split that is evaluated has its image.

    Attributes:
        held_out: `image_digests` of the rows that are evaluated, sorted, as `check_disjoint` gives them.
    """

    grammar: Grammar
    held_out: np.ndarray

    def __call__(self, table: pa.Table) -> list[np.ndarray]:
        """The rows' ids, each of shape (length,).

        Raises:
            InputError: A row isn't in the grammar, or its image is in another split.
        """
        table.validate(full=True)
        ids, labels = table["input_ids"].combine_chunks(), table["label"].cast(pa.int64()).fill_null(-1).to_numpy()
        flat, offsets = ids.flatten().to_numpy(), ids.offsets.to_numpy() - ids.offsets[0].as_py()
        known = (labels >= 0) & (labels < self.grammar.num_classes) & (np.diff(offsets) > 0)
        if not (known.all() and flat.min() >= 0 and flat.max() < self.grammar.size):
            raise InputError("a row is empty, or has a token or a label that the vocabulary doesn't know")
        good, has_old_tail = self.grammar.check(flat.astype(np.int64), offsets, labels)
        if not (good & ~has_old_tail).all():
            raise InputError(f"a row isn't in the grammar: {flat[offsets[np.argmin(good)] :][:8].tolist()} …")
        rows = np.split(flat, offsets[1:-1])
        if both := int(are_among(image_digests(row[BODY] for row in rows), self.held_out).sum()):
            raise InputError(f"{both} of {len(rows)} rows show images that are also in a split that is evaluated")
        return rows


@dataclass
class _Reader:
    """Reads one epoch of a lane forwards."""

    tables: Iterator[pa.Table]
    check: RowCheck
    start: int = 0  # number of the first row in `table`
    table: pa.Table | None = None
    rows: list[np.ndarray] = field(default_factory=list)

    def row(self, index: int) -> np.ndarray:
        while self.table is None or index >= self.start + self.table.num_rows:
            self.start += self.table.num_rows if self.table else 0
            self.table, self.rows = next(self.tables), []
        self.rows = self.rows or self.check(self.table)  # rows that are skipped were checked when they were trained on
        return self.rows[index - self.start]


class StreamedRows(torch.utils.data.Dataset):
    """The training rows by their place in an epoch, in the order in which they are trained on.

    An epoch has whole updates. Lanes differ a little in length, so that in the last updates
    some places are empty: they repeat a row whose labels aren't scored, which changes no gradient.

    Args:
        lanes: A number that divides the rows of an update.
        update: How the rows of an update are shared.
        seed: Of the order.
        buffer: Rows that are shuffled at a time, in all lanes together.
        check: Of every row.
        filler: The row of empty places; token ids, shape (length,).
        source: The shards, for messages.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        update: Update,
        seed: int,
        buffer: int,
        check: RowCheck,
        filler: np.ndarray,
        source: str,
    ) -> None:
        self.check, self.filler, self.source = check, filler, source
        self.update = update
        self.lengths, self.per_lane = [lane.num_rows for lane in lanes], update.num_rows // len(lanes)
        size = max(2, buffer // len(lanes))
        # One shard at a time: to read several, the library starts threads for each lane, which end after five seconds.
        shuffle = {"seed": seed, "buffer_size": size, "max_buffer_input_shards": 1}
        self.lanes = [lane.rows.select_columns(COLUMNS).shuffle(**shuffle).with_format("arrow") for lane in lanes]
        self.num_updates = -(-max(self.lengths) // self.per_lane)
        self.order = {"lanes": len(lanes), "buffer": buffer, "lengths": self.lengths, "datasets": datasets.__version__}
        self.set_epoch(0)

    @property
    def num_rows(self) -> int:
        """The rows of all shards."""
        return sum(self.lengths)

    def __len__(self) -> int:
        return self.num_updates * self.update.num_rows

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next rows; each has another order."""
        self.epoch = epoch
        self.readers: dict[int, _Reader] = {}

    def __getitem__(self, place: int) -> dict[str, np.ndarray]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: list[int]) -> list[dict[str, np.ndarray]]:
        """Several rows at once, as torch's loader reads them."""
        return [self._row(*self.lane_and_index(place)) for place in places]

    def lane_and_index(self, place: int) -> tuple[int, int]:
        """The lane of a place in the epoch, and the number of its row there.

        Trainer deals batches to the processes in turn. Within an update the places are renumbered so that each process
        has neighbouring ones, and with them few lanes.
        """
        number, place = divmod(place, self.update.num_rows)
        step_and_process, row = divmod(place, self.update.batch)
        step, process = divmod(step_and_process, self.update.num_processes)
        lane, row = divmod((process * self.update.steps + step) * self.update.batch + row, self.per_lane)
        return lane, number * self.per_lane + row

    def sample(self, size: int) -> Dataset:
        """The first rows of the lanes, `size` or all, for what needs a whole dataset; reading is started again."""
        self.set_epoch(0)
        tables: list[pa.Table] = []
        by_length = sorted(range(len(self.lanes)), key=self.lengths.__getitem__)
        for place, lane in enumerate(by_length):  # what a short lane lacks, the longer ones give
            left = min(self.lengths[lane], -(-size // (len(by_length) - place)))
            size -= left
            for table in self._tables(self.lanes[lane]) if left else ():
                tables.append(table.slice(0, left))
                left -= len(tables[-1])
                if not left:
                    break
        return Dataset(pa.concat_tables(tables, promote_options="permissive"))

    def _row(self, lane: int, index: int) -> dict[str, np.ndarray]:
        if index >= self.lengths[lane]:
            return {"input_ids": self.filler, "labels": np.full(len(self.filler), IGNORE_INDEX)}
        reader = self.readers.get(lane)
        if reader is None or index < reader.start:
            reader = self.readers[lane] = _Reader(self._tables(self.lanes[lane]), self.check)
        try:
            return {"input_ids": reader.row(index)}
        except InputError as error:
            raise InputError(f"{self.source}: {error}; write the data again with imagelm prepare") from error
        except Exception as error:  # each store raises its own
            reason = first_line(error) or f"lane {lane} ends before row {index}: a shard changed"
            raise InputError(f"{self.source}: the rows can't be read any more: {reason}") from error

    def _tables(self, rows: IterableDataset) -> Iterator[Any]:
        rows.set_epoch(self.epoch)
        return iter(rows.iter(BLOCK_ROWS))


def lane_numbers(rows_per_update: int, num_parts: int) -> list[int]:
    """How many lanes there may be, the largest number first: divisors of the rows per update, no more than parts."""
    return [n for n in range(min(MAX_LANES, num_parts, rows_per_update), 0, -1) if rows_per_update % n == 0]
