"""Rows → raw JSONL with its vocabulary, for `--write_jsonl`.

One idea: rows made from images and rows made elsewhere have the same format; prepare reads the JSONL that it writes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import orjson

from imagelm.data.rows import SPLITS, RowBatch, RowSource
from imagelm.utils.artifacts import CLASS_NAMES_FILE, RAW_FOLDER, RAW_ROWS_FILE, VOCABULARY_FILE
from imagelm.utils.atomic_io import write_json


def write_raw(batches: Iterator[RowBatch], source: RowSource, folder: Path) -> Iterator[RowBatch]:
    """Passes batches on, and writes their rows into a new folder, with vocabulary and class names."""
    folder.mkdir()
    write_json(folder / VOCABULARY_FILE, source.grammar.vocabulary)
    write_json(folder / CLASS_NAMES_FILE, source.class_names)
    with open(folder / RAW_ROWS_FILE, "wb") as file:
        for batch in batches:
            sentences = source.grammar.sentences(batch.bodies, batch.lengths, batch.labels)
            for text, label, side, name in zip(sentences, batch.labels, batch.splits, batch.sources, strict=True):
                row = {"tokens": text, "label": int(label), "split": SPLITS[side], "source": name}
                file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            yield batch


def join_raw(folders: list[Path], target: Path) -> None:
    """Joins what `write_raw` wrote into the `RAW_FOLDER` of several folders, in order."""
    shutil.copytree(folders[0] / RAW_FOLDER, target / RAW_FOLDER)
    with open(target / RAW_FOLDER / RAW_ROWS_FILE, "ab") as file:
        for folder in folders[1:]:
            with open(folder / RAW_FOLDER / RAW_ROWS_FILE, "rb") as part:
                shutil.copyfileobj(part, file)
