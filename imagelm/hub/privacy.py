"""Finds secrets and local paths, which must never be published.

One idea: paths in texts that the push writes are shortened; anything else that looks like a secret or a local path in
a staged file stops the whole push.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from imagelm.hub.secret_forms import secrets_in
from imagelm.remote_code.pixels_imagelm import image_formats

# Folders at the root of a file system that hold people's files, on this machine or where a model may have been trained.
# Not every word after a slash: texts are full of these.
ROOTS = "afs|app|archive|beegfs|bin|ceph|cfs|cluster|content|data|datasets|dbfs|dev|efs|etc|export|fsx|glade|global"
ROOTS += "|gpfs|groups?|homes?|hpc|hpcwork|ihome|kaggle|labs?|lfs|local|localscratch|lscratch|lustre|media|mnt|mount"
ROOTS += "|nas|net|nfs|nobackup|opt|panfs|pfs|private|proc|projects?|pscratch|ptmp|root|run|scratch|shared?|srv|storage"
ROOTS += "|store|sys|tank|teamspace|tmp|users?|usr|var|vast|weka|work|workspaces?|Users|Volumes"
ROOTS += r"|(?:disk|gpfs|home|lustre|nfs|nvme|raid|scratch|ssd|vol|volume|work)\d+"
ROOTS = "|".join([ROOTS, *sorted(re.escape(entry.name) for entry in Path("/").iterdir())])
END = r"[^\s\"'`<>|,;)\]]"  # the characters of the rest of a path
POSIX_PATH = re.compile(rf"(?<![\w./~-])(?:file://)?/(?:{ROOTS})/{END}+")
# ~/x, ~alice/x, C:\x and \\server\x, also with backslashes doubled, as JSON and Markdown write them.
OTHER_PATH = re.compile(
    rf"(?<![\w.<>/:-])(?:~(?:[a-z_][\w-]*)?/{END}+|[A-Za-z]:\\{{1,2}}\w{END}*|\\{{2,4}}\w[\w.$-]*\\{{1,2}}[\w$]{END}*)"
)
JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
TEXT_ENDINGS = {".json", ".md", ".txt", ".py", ".yaml", ".yml", ".jsonl", ".csv", ".toml", ".cfg", ".html", ".xml", ""}
GRAPH_ENDINGS = {".onnx", ".data", ".bin"}  # names and texts among binary weights
PRINTABLE_RUN = re.compile(rb"[\x20-\x7e]{16,}")


def without_paths(content: Any) -> tuple[Any, int]:
    """A text or JSON value with its local paths shortened to their last part, and how many there were."""
    if isinstance(content, str):
        count = 0
        for pattern in (POSIX_PATH, OTHER_PATH):
            content, found = pattern.subn(lambda match: re.split(r"[/\\]+", match.group().rstrip("/\\"))[-1], content)
            count += found
        return content, count
    if isinstance(content, dict):
        pairs = {name: without_paths(value) for name, value in content.items()}
        return {name: value for name, (value, _) in pairs.items()}, sum(found for _, found in pairs.values())
    if isinstance(content, list):
        entries = [without_paths(value) for value in content]
        return [value for value, _ in entries], sum(found for _, found in entries)
    return content, 0


def find_private(name: str, file: Path, own_token: str | None) -> Iterator[str]:
    """Yields a line for each secret or local path in a file: its place and its kind, without the secret itself.

    `name` is the file's path in the repository; `own_token`, the Hub token in use, is found whatever its form.
    """
    # Other files are searched for secrets only: bytes may look like a path by chance.
    is_text = file.suffix in (*TEXT_ENDINGS, ".parquet", ".png", ".safetensors", ".onnx")
    for place, text in _texts(file):
        yield from (f"{name}:{place}: {kind}" for kind in secrets_in(text))
        if own_token and own_token in text:
            yield f"{name}:{place}: the Hub token in use"
        for pattern in (POSIX_PATH, OTHER_PATH) if is_text else ():
            if match := pattern.search(text):
                yield f"{name}:{place}: a local path, {match.group()!r}"


def _texts(file: Path) -> Iterator[tuple[str, str]]:
    """Yields all texts in a file, each with its place."""
    if file.suffix == ".parquet":
        yield from _parquet_texts(file)
    elif file.suffix == ".safetensors":
        with open(file, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = stream.read(min(length, 1 << 24)).decode("utf-8", errors="replace")
        yield "header", _without_escapes(header)
    elif file.suffix == ".png":
        try:
            with Image.open(file, formats=image_formats()) as image:
                image.load()  # texts may come after the pixels
        except OSError:  # no image, which another check reports
            return
        yield from ((str(name), value) for name, value in image.info.items() if isinstance(value, str))
    elif file.suffix in GRAPH_ENDINGS:
        runs = PRINTABLE_RUN.finditer(file.read_bytes())
        yield from ((f"byte {run.start()}", run.group().decode("ascii")) for run in runs)
    else:
        content = file.read_bytes().decode("utf-8" if file.suffix in TEXT_ENDINGS else "latin-1", errors="replace")
        for number, line in enumerate(content.splitlines(), start=1):
            yield str(number), _without_escapes(line) if file.suffix == ".json" else line


def _without_escapes(line: str) -> str:
    """A line of JSON with its strings as they are meant: \\u002fhome is a path too, and C:\\\\ is C:\\."""
    try:
        return JSON_STRING.sub(lambda match: f'"{json.loads(match.group(), strict=False)}"', line)
    except ValueError:  # not JSON, which another check reports
        return line


def _parquet_texts(file: Path) -> Iterator[tuple[str, str]]:
    """Yields the schema's texts and those of all rows, nested ones too; token ids are numbers."""
    table = pq.ParquetFile(file)
    for name, value in (table.schema_arrow.metadata or {}).items():
        yield f"schema, {name.decode()}", _without_escapes(value.decode("utf-8", errors="replace"))
    leaves = [table.schema.column(number) for number in range(len(table.schema))]
    names = [leaf.path for leaf in leaves if leaf.logical_type.type == "STRING"]
    first = 0
    for batch in table.iter_batches(columns=names) if names else ():
        for column in batch.schema.names:
            for row, value in enumerate(batch[column].to_pylist(), start=first):
                yield from ((f"row {row}, {column}", text) for text in _strings(value))
        first += batch.num_rows


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _strings(entry)
