"""Where the splits of a dataset are: folders, files, archives and datasets as people keep them.

One idea: every layout becomes a table from the name of a split to the names that are opened for it.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from huggingface_hub import metadata_load

from imagelm.data.image_options import LIST_SUFFIXES, TABLE_SUFFIXES, is_table
from imagelm.data.sources.archives import Unpacked, is_webdataset, unpack
from imagelm.data.sources.arrays import array_names, split_arrays
from imagelm.data.sources.decode import natural_key
from imagelm.data.sources.kinds import is_archive, is_image_name
from imagelm.data.sources.loading import is_saved_dataset, load_dataset, load_errors, may_be_hub_id, metadata_file
from imagelm.data.sources.local import is_visible
from imagelm.data.sources.names import split_kind, split_word, without_split_word
from imagelm.utils.errors import InputError
from imagelm.utils.text import printable

WHOLE = "all"  # the name of what isn't split
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})")


@dataclass(frozen=True)
class Query:
    """What the user said about the images, as in `open_images`; `nested` is inside of an archive."""

    image_column: str | None = None
    label_column: str | None = None
    image_root: str | None = None
    config_name: str | None = None
    revision: str | None = None
    nested: bool = False


@dataclass(frozen=True)
class Part:
    """What is opened for a split: names, and the split in them if they hold several.

    `image_root` is the folder of listed images; `unpacked` keeps the archive's content.
    """

    names: list[str]
    split: str | None = None
    image_root: str | None = None
    unpacked: Unpacked | None = None


def expand_globs(names: Sequence[str]) -> list[str]:
    """The names, with the files that match in the place of a pattern such as `data/train-*.parquet`."""
    found: list[str] = []
    for name in names:
        if not glob.has_magic(name) or Path(name).exists():
            found.append(name)
        elif matches := sorted(glob.glob(name, recursive=True), key=natural_key):
            found += matches
        else:
            raise InputError(f"--images {name} matches no file; check the pattern, or put it in quotes")
    return found


def find_splits(names: Sequence[str], query: Query) -> dict[str, Part]:
    """The splits of what is named, by their names; empty if it has none.

    Raises:
        InputError: It can't be read, or holds several datasets.
    """
    if "" in names:  # else the working folder would be meant
        return {}
    name, path = names[0], Path(names[0])
    suffixes = {Path(name).suffix.lower() for name in names}
    if suffixes == {".npy"} or (len(names) == 1 and suffixes == {".npz"} and path.is_file()):
        if query.image_column or query.label_column:  # an array of one split
            return {}
        return {split: Part(list(names), split) for split in split_arrays(array_names(list(map(Path, names))))}
    if len(names) > 1:
        return _of_names([Path(name) for name in names])
    if path.is_dir():
        return _of_folder(path, query)
    if path.is_file():
        if not is_archive(path) or query.nested or is_webdataset(name):
            return {}
        unpacked = unpack(name)
        with unpacked.errors():
            inner = find_splits([str(unpacked.folder)], replace(query, nested=True))
        splits = {split: Part([name], split, unpacked=unpacked) for split in inner if split != WHOLE}
        return splits or {WHOLE: Part([name], unpacked=unpacked)}
    return _of_dataset(name, query) if may_be_hub_id(name) else {}


def _of_dataset(name: str, query: Query) -> dict[str, Part]:
    from datasets import DatasetDict

    found = load_dataset(name, query.config_name, query.revision)
    return {split: Part([name], split) for split in found} if isinstance(found, DatasetDict) else {}


def _of_names(paths: list[Path]) -> dict[str, Part]:
    """Files or folders whose names, or those of their folders, say their split: `train.csv`, `test.csv`; else empty."""
    words = {
        path: split_word(path.stem if path.is_file() else path.name) or split_word(path.parent.name) for path in paths
    }
    if len(set(map(split_kind, filter(None, words.values())))) < 2:
        return {}
    splits: dict[str, list[str]] = {}
    for path, word in words.items():
        splits.setdefault(word or path.stem, []).append(str(path))
    return {split: Part(names) for split, names in splits.items()}


def _of_folder(path: Path, query: Query) -> dict[str, Part]:
    if is_saved_dataset(path):
        return _of_dataset(str(path), Query())
    if metadata_file(path):
        return {}
    if configured := _of_readme(path, query):
        return configured
    folders = visible_folders(path)
    if not query.config_name:
        if len({split_kind(folder.name) for folder in folders} - {None}) > 1 or _is_family(folders):
            return {folder.name: Part([str(folder)]) for folder in folders}
        if len(folders) > 1 and (names := _splits_inside(folders)):
            return {name: Part([str(path)], name) for name in names}
    if files := _data_files(path, folders, query):
        return _of_files(path, files, query)
    if query.config_name:
        raise InputError(f"--config_name {query.config_name}: --images {path} has no such configuration; remove it")
    if len(folders) == 1 and not any(is_image_name(file) for file in [*path.iterdir(), *folders[0].iterdir()]):
        only = str(folders[0])  # such as the one folder in an archive
        return find_splits([only], query) or ({WHOLE: Part([only])} if len(visible_folders(folders[0])) > 1 else {})
    return {}


def _is_family(folders: Sequence[Path]) -> bool:
    """Whether folders are called as the splits of one dataset, such as `pets_train` and `pets_test`."""
    families: dict[str, set[str | None]] = {}
    for folder in folders:
        if word := split_word(folder.name):
            families.setdefault(without_split_word(folder.name), set()).add(split_kind(word))
    return any("train" in kinds and len(kinds) > 1 for kinds in families.values())


def _splits_inside(folders: Sequence[Path]) -> list[str]:
    """The splits in class folders that hold nothing else: `cat/train`, `cat/test`, `dog/train`, …; else empty."""
    names: set[str] = set()
    for folder in folders:
        inner = [entry.name for entry in visible_folders(folder)]
        if not inner or None in map(split_kind, inner):
            return []
        names.update(inner)
    return sorted(names) if len(set(map(split_kind, names))) > 1 else []


def _of_readme(path: Path, query: Query) -> dict[str, Part]:
    """The data files that the README of a Hub dataset's snapshot names, as `datasets` reads it; else empty."""
    readme = path / "README.md"
    with load_errors(str(path)):
        configs = (metadata_load(readme) or {}).get("configs") if readme.is_file() else None
        if not configs:
            return {}
        for text in _texts(configs):
            if "://" in text or Path(text).is_absolute() or ".." in Path(text).parts:
                raise InputError(f"--images {path}: its README.md names {text!r} outside the folder; nothing was read")
        from datasets import load_dataset_builder

        found = load_dataset_builder(str(path), query.config_name).config.data_files or {}
    files = {str(split): list(map(Path, parts)) for split, parts in found.items()}
    if not all(is_table(file) or is_archive(file) for parts in files.values() for file in parts):
        return {}  # such as images, which are read by their folders
    root = path.absolute()
    return {split: Part([str(path / file.relative_to(root)) for file in parts]) for split, parts in files.items()}


def _texts(value: object) -> Iterator[str]:
    """All texts in nested lists and dictionaries."""
    for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(entry)
    if isinstance(value, str):
        yield value


def _data_files(path: Path, folders: list[Path], query: Query) -> list[Path]:
    """The data files of one kind in a folder without class folders: at the top, or two folders below it."""
    loose = [entry for entry in path.iterdir() if entry.is_file() and is_visible(entry, path)]
    lists = [file for file in loose if file.suffix.lower() in LIST_SUFFIXES]
    files: list[Path] = []
    for file in chain(loose, _files_below(path, folders)):  # which ends at the first image, as there may be millions
        if is_image_name(file):  # there are class folders, or listed images
            return lists if len(folders) < 2 else []
        files.append(file)
    archives = [] if query.nested else [file for file in files if is_archive(file)]
    by_suffix = ([file for file in files if file.suffix.lower() == suffix] for suffix in (*TABLE_SUFFIXES, ".npz"))
    arrays = [file for file in loose if file.suffix.lower() == ".npy"]
    return next(filter(None, [*by_suffix, arrays, archives, lists]), [])


def _files_below(path: Path, folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        inner = [entry for entry in folder.iterdir() if is_visible(entry, path)]
        yield from (entry for entry in inner if entry.is_file())
        for deeper in (entry for entry in inner if entry.is_dir()):
            yield from (entry for entry in deeper.iterdir() if is_visible(entry, path) and entry.is_file())


def _of_files(path: Path, files: list[Path], query: Query) -> dict[str, Part]:
    """Data files by the split that a folder or their own name says: `data/train-00000-of-00002.parquet`."""
    files = _of_one_config(path, sorted(files, key=natural_key), query)
    if files[0].suffix.lower() == ".npy":
        names = list(map(str, files))
        return find_splits(names, query) or {WHOLE: Part(names)}
    if len(files) == 1 and (splits := find_splits([str(files[0])], query)):  # such as one NPZ file with all splits
        return splits
    root = str(path) if files[0].suffix.lower() in LIST_SUFFIXES else None
    _check_shards(path, files)
    words = {file: _word_of(file.relative_to(path)) for file in files}
    found: dict[str, list[str]] = {}
    for file, word in words.items():
        found.setdefault(word or (file.stem if any(words.values()) else WHOLE), []).append(str(file))
    return {split: Part(names, image_root=root) for split, names in found.items()}


def _word_of(file: Path) -> str | None:
    """The word that says the split of a file: of a folder first, as on the Hub."""
    return next(filter(None, [*map(split_word, file.parts[:-1]), split_word(file.stem)]), None)


def _of_one_config(path: Path, files: list[Path], query: Query) -> list[Path]:
    configs: dict[str, list[Path]] = {}
    for file in files:
        folders = [part for part in file.relative_to(path).parts[:-1] if part != "data" and not split_word(part)]
        configs.setdefault("/".join(folders), []).append(file)
    if query.config_name:
        if query.config_name not in configs:
            shown = ", ".join(map(printable, configs))
            raise InputError(
                f"--config_name {query.config_name}: --images {path} has {shown or 'none'}; name one of them"
            )
        return configs[query.config_name]
    if len(configs) > 1:
        shown = ", ".join(printable(name or "(the folder itself)") for name in configs)
        raise InputError(f"--images {path} holds several datasets: {shown}; name one of the folders, or --config_name")
    return files


def _check_shards(path: Path, files: list[Path]) -> None:
    """Refuses an incomplete download."""
    shards: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if found := _SHARD.match(str(file)):
            shards.setdefault((found[1], int(found[3])), set()).add(int(found[2]))
    for (stem, count), there in shards.items():
        if missing := sorted(set(range(count)) - there):
            raise InputError(
                f"--images {path} is incomplete: {printable(stem)}-{missing[0]:05}-of-{count:05} is missing "
                f"({len(missing)} of {count} files); download it again, or name the files that you have"
            )


def visible_folders(path: Path) -> list[Path]:
    """The folders inside a folder that aren't hidden or a program's, in natural order."""
    with os.scandir(path) as entries:  # which asks the disk once, not for each of perhaps a million files
        folders = [path / entry.name for entry in entries if entry.is_dir()]
    return sorted((folder for folder in folders if is_visible(folder, path)), key=natural_key)
