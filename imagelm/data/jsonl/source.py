"""Raw JSONL with its vocabulary, as a source of rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from imagelm.codecs.open import open_codec
from imagelm.data.arguments import PrepareArguments
from imagelm.data.integrity import digest
from imagelm.data.jsonl.lines import expand_files
from imagelm.data.jsonl.parser import read_rows
from imagelm.data.rows import ProblemLog, RowBatch, RowTable
from imagelm.data.splits import split_in_words
from imagelm.tokens.grammar import Grammar
from imagelm.tokens.vocabulary import load_vocabulary
from imagelm.utils.artifacts import CODEC_FOLDER
from imagelm.utils.atomic_io import read_input
from imagelm.utils.errors import InputError
from imagelm.utils.text import name_problem, printable


class JsonlRows:
    """Raw JSONL files as a source of rows; a codec that is given is saved in the output folder `staging`.

    Raises:
        InputError: A file can't be read, or vocabulary, class names and codec don't fit each other.
    """

    def __init__(self, options: PrepareArguments, staging: Path, problems: ProblemLog) -> None:
        assert options.vocab_file is not None and options.data_files is not None  # checked by the arguments
        self.problems, self.split_by, self.validation_size = problems, options.split_by, options.validation_size
        self.split = split_in_words(options.split_by, options.seed)
        self.split_notes: list[str] = []
        self.grammar = Grammar(load_vocabulary(options.vocab_file))
        self.paths = expand_files(options.data_files)
        self.files = [str(path) for path in self.paths]
        self.class_names = _class_names(options.class_names, self.grammar.num_classes)
        self.share = options.share
        self.identity: dict[str, object] = {
            "input files": len(self.files),
            "bytes of input": sum(path.stat().st_size for path in self.paths),
            "names and sizes of input files": digest([[str(path), path.stat().st_size] for path in self.paths]),
            "vocabulary": digest(self.grammar.vocabulary),
            "class names": digest(self.class_names),
        }
        self.codec = open_codec(options.codec) if options.codec else None
        if self.codec:
            if self.codec.codebook_size != self.grammar.codebook_size:
                raise InputError(
                    f"--codec {options.codec} has {self.codec.codebook_size} entries, but --vocab_file has "
                    f"{self.grammar.codebook_size} codebook tokens"
                )
            self.identity["codec"] = self.codec.describe()
            self.codec.save(staging / CODEC_FOLDER)

    def place(self, file: str, line: int) -> str:
        """`file:line`."""
        return printable(f"{file}:{line}")

    def batches(self) -> Iterator[RowBatch]:
        """All rows that are in the grammar."""
        need_split = self.split_by == "field"
        for batch in read_rows(self.paths, self.grammar, self.problems, need_split, self.share):
            if self.codec and (wrong := np.flatnonzero(batch.lengths != self.codec.num_tokens)).size:
                rows, columns = self.codec.grid
                raise InputError(
                    f"{batch.file}:{batch.lines[wrong[0]]}: {batch.lengths[wrong[0]]} image tokens, but an image of "
                    f"the codec has {rows}×{columns}; remove --codec, or give the codec that made these rows"
                )
            yield batch

    def describe(self, table: RowTable, sides: np.ndarray, folder: Path) -> dict:
        """The codec's description, if there is one."""
        if self.codec is None:
            return {}
        form = {"codebook_size": self.codec.codebook_size, "grid": list(self.codec.grid)}
        return {"codec": {"description": self.codec.describe(), **self.codec.config, **form}}


def _class_names(file: str | None, num_classes: int) -> list[str]:
    """The names in a JSON list; the labels themselves without one."""
    if file is None:
        return [str(label) for label in range(num_classes)]
    text = read_input(file, "--class_names")
    try:
        names = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--class_names {file} isn't JSON: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise InputError(f'--class_names {file}: expected a list of names in the order of the labels: ["cat", "dog"]')
    if len(set(names)) != num_classes or len(names) != num_classes:
        raise InputError(f"--class_names {file} holds {len(names)} names; expected {num_classes} different ones")
    if problem := name_problem(names):
        raise InputError(f"--class_names {file}: {problem}; give each class a name of its own")
    return names
