"""A published model and its rows, as everyone gets them: standard classes, no code of the repositories.

One idea: rows may be prepared data, Parquet, Arrow or JSONL, as ids or as token text; each becomes a whole row in the
grammar, and everything else is named and refused.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import orjson
import pyarrow as pa
from datasets import Dataset
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedModel

from imagelm.data.jsonl.lines import line_chunks
from imagelm.data.load import load_stats
from imagelm.data.sources.loading import is_saved_dataset, load_saved_dataset
from imagelm.data.sources.names import split_kind
from imagelm.hub.arguments import VerifyArguments
from imagelm.hub.staged import CARD_FILE
from imagelm.inference.loading import PATH_LIKE, download, model_folder
from imagelm.models.build import load_model
from imagelm.models.foreign import check_config
from imagelm.tokens.grammar import TAIL, Grammar, Role
from imagelm.tokens.tokenizer import grammar_of, load_grammar
from imagelm.tokens.vocabulary import PAD
from imagelm.utils.artifacts import BAD_ROWS_FILE, RAW_FOLDER, STATS_FILE, TOKENIZER_CONFIG, TOKENIZER_FOLDER
from imagelm.utils.device import choose_device
from imagelm.utils.errors import InputError
from imagelm.utils.quiet import quiet_datasets, quiet_transformers
from imagelm.utils.text import first_line, printable, reason

TABLE_KINDS = {".parquet": "parquet", ".arrow": "arrow"}
ROW_COLUMNS = ("input_ids", "tokens", "text")  # in this order
DATA_PATTERNS = ["*.parquet", "*.arrow", "*.jsonl", "*.jsonl.gz", "*.jsonl.zst", STATS_FILE, f"{TOKENIZER_FOLDER}/*"]
BATCH_ROWS = 1_000
_ANSWER = TAIL.index(Role.CLASS) - len(TAIL)  # counted from the end of a whole row


@dataclass
class PublishedModel:
    """A model in fp32, in evaluation mode, as `from_pretrained` gives it; `folder` holds its files."""

    folder: Path
    model: PreTrainedModel
    grammar: Grammar
    max_length: int | None  # the tokenizer's own limit, where it has one

    @property
    def num_positions(self) -> int | None:
        """Longest sequence, in tokens; None if the architecture sets no limit."""
        return getattr(self.model.config, "max_position_embeddings", None)


@dataclass
class PublishedData:
    """The rows of a dataset by split, as they are stored.

    Attributes:
        name: What the user gave.
        tables: The stored columns of each split.
        stats: `stats.json` beside the rows, or None.
        grammar: Of the tokenizer beside the rows, or None.
    """

    name: str
    tables: dict[str, Dataset]
    stats: dict[str, Any] | None
    grammar: Grammar | None


def open_data(options: VerifyArguments) -> PublishedData:
    """Reads `--dataset`: a folder or file, or a Hub id.

    Raises:
        InputError: There is none, or it holds no rows.
    """
    path = Path(options.dataset).expanduser()
    try:
        exists = path.exists()
    except OSError as error:  # such as a name that is too long
        raise InputError(f"--dataset {options.dataset}: {error.strerror or error}") from error
    if exists and options.dataset_revision:
        raise InputError(f"--dataset_revision belongs to a Hub id, but --dataset {options.dataset} is a local path")
    if not exists:
        if PATH_LIKE.search(options.dataset):
            raise InputError(f"--dataset {options.dataset}: no such file or folder")
        path = download("--dataset", options.dataset, options.dataset_revision, DATA_PATTERNS, "dataset")
    has_tokenizer = (path / TOKENIZER_FOLDER / "tokenizer.json").is_file()
    with quiet_datasets():
        tables = _tables(path, options.dataset)
    stats = load_stats(path) if (path / STATS_FILE).is_file() else None
    return PublishedData(
        options.dataset, tables, stats, load_grammar(path / TOKENIZER_FOLDER) if has_tokenizer else None
    )


@quiet_transformers(errors_only=True)
def open_model(options: VerifyArguments, data: PublishedData) -> PublishedModel:
    """Loads `--model` with its tokenizer, or the dataset's where it has none.

    Raises:
        InputError: It can't be loaded, or its vocabulary isn't that of the rows.
    """
    device, where = choose_device(options.device), f"--model {options.model}"
    try:
        folder = model_folder(options.model, options.revision, [CARD_FILE])
    except OSError as error:  # such as a name that is too long
        raise InputError(f"{where}: {error.strerror or error}") from error
    try:
        check_config(folder)
        grammar, max_length = data.grammar, None
        if (folder / TOKENIZER_CONFIG).is_file():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            grammar, max_length = grammar_of(tokenizer), tokenizer.model_max_length
        if grammar is None:
            raise InputError("neither the model nor the dataset has a tokenizer; save it with the model")
        model = load_model(folder).eval().to(device)
    except InputError as error:
        raise InputError(f"{where} isn't a model of images as token sentences: {error}") from error
    except Exception as error:  # a stranger's files can make a library fail in any way
        raise InputError(f"{where} can't be loaded: {reason(error)}") from error
    if data.grammar and (token := _first_difference(grammar, data.grammar)):
        ids = (vocabulary.get(token, "none") for vocabulary in (grammar.vocabulary, data.grammar.vocabulary))
        model_id, data_id = ids
        raise InputError(
            f"{where} has another vocabulary than --dataset {data.name}: {printable(token)} has id {model_id} in the "
            f"model, {data_id} in the dataset; give the dataset that the model was trained on"
        )
    if model.config.get_text_config().vocab_size < grammar.size:
        raise InputError(f"{where} has fewer tokens than its tokenizer ({grammar.size}); save both together")
    return PublishedModel(folder, model, grammar, max_length if max_length and max_length < 10**9 else None)


def whole_rows(table: Dataset, grammar: Grammar, where: str) -> Dataset:
    """The rows of a split as ids without padding, and their labels; the predecessor's tail is repaired.

    Raises:
        InputError: A row isn't in the grammar; the message names the first one.
    """
    name = next((name for name in ROW_COLUMNS if name in table.features), None)
    if name is None:
        found = ", ".join(map(printable, table.features))
        raise InputError(f"{where} has no column {' or '.join(ROW_COLUMNS)}; it has {found}")
    columns = [column for column in (name, "label", "source") if column in table.features]
    rows: list[np.ndarray] = []
    sources: list[Any] = []
    for batch in table.select_columns(columns).with_format("arrow").iter(BATCH_ROWS):
        try:
            ids = [_ids(row, grammar) for row in _entries(batch[name].combine_chunks())]
        except (TypeError, ValueError) as error:
            raise InputError(f"{where}: column {name} holds neither ids nor tokens: {first_line(error)}") from error
        # Labels of another kind, such as names, tell nothing that the row's class token doesn't.
        is_labelled = "label" in columns and pa.types.is_integer(batch.schema.field("label").type)
        given = batch["label"].to_pylist() if is_labelled else [None] * len(ids)
        rows += _checked(ids, given, grammar, where, len(rows))
        sources += batch["source"].to_pylist() if "source" in columns else []
    labels = [int(grammar.label_of_id[row[_ANSWER]]) for row in rows]
    return Dataset.from_dict({"input_ids": rows, "label": labels} | ({"source": sources} if sources else {}))


def id_arrays(rows: Dataset) -> list[np.ndarray]:
    """The ids of each row; shape (tokens,)."""
    return [np.asarray(row) for row in rows.with_format("numpy")["input_ids"]]


def _first_difference(first: Grammar, second: Grammar) -> str | None:
    ours, theirs = first.vocabulary, second.vocabulary
    return min((token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)), default=None)


def _entries(column: Any) -> Iterator[Any]:
    """The rows of an Arrow column: integer arrays, or lists of tokens."""
    values = column.type.value_type if hasattr(column.type, "value_type") else column.type
    if str(values) in ("string", "large_string"):
        yield from (row.split() if isinstance(row, str) else row for row in column.to_pylist())
    else:
        yield from (np.asarray(row.values).astype(np.int64) for row in column)


def _ids(row: Any, grammar: Grammar) -> np.ndarray:
    """The ids of a row without padding at its end, -1 for unknown tokens; int64."""
    if not isinstance(row, np.ndarray):
        row = np.array([grammar.vocabulary.get(token, -1) for token in row], dtype=np.int64)
    row = np.where((row >= 0) & (row < grammar.size), row, -1)
    content = np.flatnonzero(row != grammar.id(PAD))
    return row[: content[-1] + 1] if len(content) else row[:0]


def _checked(
    rows: list[np.ndarray], given: list[int | None], grammar: Grammar, where: str, start: int
) -> list[np.ndarray]:
    """Whole rows in the grammar with their class tokens; `start` is the number of the first row."""
    whole = [len(row) >= len(TAIL) and row[_ANSWER] >= 0 for row in rows]
    own = [int(grammar.label_of_id[row[_ANSWER]]) if ok else -1 for row, ok in zip(rows, whole, strict=True)]
    labels = np.array([mine if label is None else int(label) for mine, label in zip(own, given, strict=True)])
    good = np.array(whole) & (labels >= 0) & (labels < grammar.num_classes)
    if good.all():
        offsets = np.cumsum([0, *map(len, rows)])
        good, _ = grammar.check(np.concatenate(rows), offsets, labels)
    for i in np.flatnonzero(~good):
        tokens = [grammar.tokens[token] if token >= 0 else "no token of the vocabulary" for token in rows[i]]
        if problem := grammar.explain(tokens, max(0, own[i]) if given[i] is None else int(labels[i])):
            raise InputError(f"{where}, row {start + i}: {printable(problem[1])}")
    for i in np.flatnonzero(np.array(own) < 0):  # the predecessor's tail
        rows[i] = rows[i].copy()
        rows[i][_ANSWER] = grammar.class_ids[labels[i]]
    return [row.astype(grammar.id_dtype) for row in rows]


def _tables(path: Path, name: str) -> dict[str, Dataset]:
    """The stored rows of each split."""
    if path.is_dir() and is_saved_dataset(path):
        found = load_saved_dataset(path, "--dataset")
        return dict(found) if isinstance(found, datasets.DatasetDict) else {split_kind(path.name) or "test": found}
    inner = [*path.glob("*"), *path.glob("*/*")] if path.is_dir() else [path]
    files = sorted(file for file in inner if file.is_file() and _kind(file) and not _is_raw(file))
    if not files:
        raise InputError(f"--dataset {name} holds no Parquet, Arrow or JSONL file; give the rows of the model")
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(file, path) or ("test" if len(files) == 1 else "rows"), []).append(file)
    kinds = {_kind(file) for file in files}
    if len(kinds) > 1:
        raise InputError(
            f"--dataset {name} holds files of several kinds ({', '.join(sorted(map(str, kinds)))}); keep one"
        )
    kind = kinds.pop()
    try:
        if kind == "jsonl":
            return _jsonl_tables(splits)
        escaped = {split: [glob.escape(str(file)) for file in found] for split, found in splits.items()}
        return dict(datasets.load_dataset(str(kind), data_files=escaped))
    except InputError:
        raise
    except Exception as error:  # the library raises its own, pyarrow's, OSError, …
        raise InputError(f"--dataset {name} can't be read: {first_line(error)}") from error


def _jsonl_tables(splits: dict[str, list[Path]]) -> dict[str, Dataset]:
    """Rows of JSONL files; a row's own `split` comes before that of its file's name."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for split, files in splits.items():
        for file in files:
            for number, lines in line_chunks(file, tqdm(disable=True)):
                for i, line in enumerate(lines, start=number):
                    if line.strip():
                        row = _object(line, f"{file}:{i}")
                        rows.setdefault(row.get("split", split), []).append(row)
    return {
        split: Dataset.from_list(
            [{key: row.get(key) for key in (*ROW_COLUMNS, "label", "source") if key in found[0]} for row in found]
        )
        for split, found in rows.items()
    }


def _object(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InputError(f"{place}: not JSON ({error})") from error
    if not isinstance(row, dict) or not isinstance(row.get("split", ""), str) or not {*ROW_COLUMNS} & {*row}:
        raise InputError(f"{place}: expected an object with tokens or input_ids")
    return row


def _kind(file: Path) -> str | None:
    if re.search(r"\.jsonl(\.gz|\.zst)?$", file.name.lower()):
        return "jsonl"
    return TABLE_KINDS.get(file.suffix.lower())


def _is_raw(file: Path) -> bool:
    return file.name == BAD_ROWS_FILE or file.parent.name == RAW_FOLDER


def _split_of(file: Path, root: Path) -> str | None:
    """The split that a file's name, or its folder's, names."""
    words = [*re.split(r"[^a-z]+", file.name.lower()), *([] if file.parent == root else [file.parent.name])]
    return next((kind for word in words if (kind := split_kind(word))), None)
