"""What must never leave this machine: secrets, and paths that tell of it.

One idea: paths in texts that we write ourselves are shortened; whatever still looks like a secret or a path in a file
that would go out is a reason to send nothing at all.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

SECRETS = {
    "a Hugging Face token": re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{30,}"),
    "a GitHub token": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})"),
    "an API key": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "an AWS access key": re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a Google API key": re.compile(r"\bAIza[0-9A-Za-z_-]{35}"),
    "a Slack token": re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}"),
    "a private key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
}
# Folders at the root of a file system, where people's files lie; and the forms of other systems.
ROOTS = "bin|content|data|dev|etc|export|home|kaggle|media|mnt|opt|private|proc|root|run|scratch|srv|sys|tmp|usr|var"
ROOTS += "|Users|Volumes|work|workspace|workspaces"
POSIX_PATH = re.compile(rf"(?<![\w.<>/:~-])(?:file://)?/(?:{ROOTS})/[^\s\"'`<>|,;)\]]+")
OTHER_PATH = re.compile(
    r"(?<![\w.<>/:-])(?:~/[^\s\"'`<>|,;)\]]+|[A-Za-z]:\\{1,2}[^\s\"'`<>|,;)\]]+|\\\\\w[^\s\"'`<>|,;)\]]+)"
)
TEXT_ENDINGS = {".json", ".md", ".txt", ".py", ".yaml", ".yml", ".jsonl", ".csv", ".toml", ".cfg", ".html", ""}


def without_paths(content: object) -> tuple[object, int]:
    """A text, or whatever JSON holds, with paths of this machine shortened to their last part.

    Returns:
        The content, and how many paths were shortened.
    """
    if isinstance(content, str):
        count = 0
        for pattern in (POSIX_PATH, OTHER_PATH):
            content, found = pattern.subn(lambda match: _last_part(match.group()), content)
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
    """What in a file must not go out, a line each: where it stands and what it is, without showing a secret.

    Args:
        name: Path in the repository.
        file: The file.
        own_token: The token in use, which may have any form.
    """
    if file.suffix == ".parquet":
        texts = _parquet_texts(file)
    elif file.suffix == ".safetensors":
        texts = iter([("header", _safetensors_header(file))])
    else:
        content = file.read_bytes().decode("utf-8" if file.suffix in TEXT_ENDINGS else "latin-1", errors="replace")
        texts = ((str(number), line) for number, line in enumerate(content.splitlines(), start=1))
    is_text = file.suffix in (*TEXT_ENDINGS, ".parquet", ".safetensors")
    for place, text in texts:
        for what, pattern in SECRETS.items():
            if pattern.search(text):
                yield f"{name}:{place}: {what}"
        if own_token and own_token in text:
            yield f"{name}:{place}: the Hub token in use"
        for pattern in (POSIX_PATH, OTHER_PATH) if is_text else ():
            if match := pattern.search(text):
                yield f"{name}:{place}: a path of a machine, {match.group()!r}"


def _last_part(path: str) -> str:
    return re.split(r"[/\\]+", path.rstrip("/\\"))[-1]


def _parquet_texts(file: Path) -> Iterator[tuple[str, str]]:
    """Row and value of all texts in a table; the ids of tokens are numbers."""
    table = pq.ParquetFile(file)
    names = [field.name for field in table.schema_arrow if str(field.type) in ("string", "large_string")]
    first = 0
    for batch in table.iter_batches(columns=names) if names else ():
        for name in names:
            for row, value in enumerate(batch[name].to_pylist(), start=first):
                yield f"row {row}, {name}", value or ""
        first += batch.num_rows


def _safetensors_header(file: Path) -> str:
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return stream.read(min(length, 1 << 24)).decode("utf-8", errors="replace")
