"""The manifest of a folder: size and SHA-256 of every file that this program wrote into it, written last.

One idea: what a folder should hold is known without trusting the folder. A file that the manifest doesn't name belongs
to the user and is never deleted; a file that isn't what the manifest says is damaged and never used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from imagelm.utils.artifacts import MANIFEST_FILE
from imagelm.utils.atomic_io import sync_folder, write_json, write_text


def write_manifest(folder: Path) -> None:
    """Writes the manifest of all files in a folder, and flushes everything to the disk."""
    sync_folder(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    _write(folder, {file.relative_to(folder).as_posix(): _entry(file) for file in files})


def add_json(folder: Path, contents: dict[str, object]) -> None:
    """Writes JSON files into a folder that is complete already, and adds them to its manifest.

    Args:
        folder: The folder.
        contents: File name → content.
    """
    for name, content in contents.items():
        write_json(folder / name, content)
    if (files := read_manifest(folder)) is not None:  # earlier versions wrote none
        _write(folder, files | {name: _entry(folder / name) for name in contents})


def read_manifest(folder: Path) -> dict[str, dict] | None:
    """The files that the manifest names; None if it is missing or not as it was written."""
    try:
        text = (folder / MANIFEST_FILE).read_text(encoding="utf-8")
        line, digest, rest = text.split("\n")
        intact = not rest and digest == hashlib.sha256(line.encode()).hexdigest()
        files = json.loads(line)["files"] if intact else None
    except (OSError, ValueError, KeyError):
        return None
    # This program never writes a manifest that leads out of its folder.
    inside = files is not None and not any(Path(name).is_absolute() or ".." in Path(name).parts for name in files)
    return files if inside else None


def is_changed(folder: Path, name: str, entry: dict) -> bool:
    """Whether a file that the folder's manifest names isn't the one that was written; only newer ones are read."""
    file, manifest = (folder / name).stat(), (folder / MANIFEST_FILE).stat()
    if file.st_size != entry["bytes"]:
        return True
    return file.st_mtime_ns > manifest.st_mtime_ns and _sha256(folder / name) != entry["sha256"]


def damaged_files(folder: Path, files: dict[str, dict]) -> Iterator[tuple[str, str]]:
    """Yields each file of a manifest that isn't as it was written, with the reason."""
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            yield name, "is missing"
        elif (size := file.stat().st_size) != expected["bytes"]:
            yield name, f"has {size:,} bytes instead of {expected['bytes']:,}"
        elif _sha256(file) != expected["sha256"]:
            yield name, "isn't what was written (its SHA-256 differs)"


def damage(folder: Path, starts: tuple[str, ...] = ("",)) -> str | None:
    """Which files of a folder aren't as they were written; None if all are, or if it has no manifest.

    Only files whose names begin with one of `starts` are read.
    """
    if not (folder / MANIFEST_FILE).exists():
        return None
    files = read_manifest(folder)
    if files is None:
        return f"{MANIFEST_FILE} is damaged"
    read = {name: entry for name, entry in files.items() if name.startswith(starts)}
    return "; ".join(f"{name} {reason}" for name, reason in damaged_files(folder, read)) or None


def _write(folder: Path, files: dict[str, dict]) -> None:
    """One line of JSON and the line's own SHA-256, so that a change to either is noticed."""
    line = json.dumps({"files": files})
    write_text(folder / MANIFEST_FILE, f"{line}\n{hashlib.sha256(line.encode()).hexdigest()}\n")


def _entry(file: Path) -> dict:
    return {"bytes": file.stat().st_size, "sha256": _sha256(file)}


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
