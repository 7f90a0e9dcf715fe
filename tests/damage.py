"""Changes to the files of prepared data, as damage or another program makes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa


def edit_rows(folder: Path, split: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Replaces the Arrow file of a split, and no other file."""
    (file,) = (folder / split).glob("*.arrow")
    with pa.ipc.open_stream(file.read_bytes()) as reader:
        table = change(reader.read_all())
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def edit_column(folder: Path, split: str, name: str, change: Callable[[list], list]) -> None:
    def edit(table: pa.Table) -> pa.Table:
        column = table.schema.get_field_index(name)
        values = pa.array(change(table[name].to_pylist()), table.schema.field(name).type)
        return table.set_column(column, table.schema.field(name), values)

    edit_rows(folder, split, edit)


def with_token(position: int, token: int) -> Callable[[list], list]:
    """A change of row 4 of a column of token ids."""
    return lambda rows: [*rows[:4], [*rows[4][:position], token, *rows[4][position + 1 :]], *rows[5:]]
