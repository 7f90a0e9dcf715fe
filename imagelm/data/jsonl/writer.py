"""Rows → raw JSONL with its vocabulary, for `--write_jsonl`.

One idea: rows made from images and rows made elsewhere have the same format; prepare reads the JSONL that it writes.
"""

from __future__ import annotations

from pathlib import Path

import orjson

from imagelm.data.rows import SPLITS, RowBatch, RowSource
from imagelm.utils.artifacts import CLASS_NAMES_FILE, RAW_ROWS_FILE, VOCABULARY_FILE
from imagelm.utils.atomic_io import write_json


class RawWriter:
    """Writes rows as JSONL into a new folder, with vocabulary and class names: what `--data_files` reads."""

    def __init__(self, folder: Path, source: RowSource) -> None:
        folder.mkdir()
        write_json(folder / VOCABULARY_FILE, source.grammar.vocabulary)
        write_json(folder / CLASS_NAMES_FILE, source.class_names)
        self.grammar = source.grammar
        self.file = open(folder / RAW_ROWS_FILE, "wb")  # noqa: SIM115 (closed by finish)

    def write(self, batch: RowBatch) -> None:
        """Adds rows."""
        sentences = self.grammar.sentences(batch.bodies, batch.lengths, batch.labels)
        for text, label, side, source in zip(sentences, batch.labels, batch.splits, batch.sources, strict=True):
            row = {"tokens": text, "label": int(label), "split": SPLITS[side], "source": source}
            self.file.write(orjson.dumps(row) + b"\n")

    def finish(self) -> None:
        """Closes the file."""
        self.file.close()
