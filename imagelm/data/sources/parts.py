"""A name → the source of its images: which split of it is read, and which class reads it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from imagelm.data.image_options import LIST_SUFFIXES, is_table
from imagelm.data.sources.archives import ArchiveSource, is_webdataset, unpack
from imagelm.data.sources.arrays import ArraySource, is_npy, neighbours
from imagelm.data.sources.decode import ImageSource
from imagelm.data.sources.joined import JoinedSource, check_class_names
from imagelm.data.sources.kinds import is_archive, is_image_name, not_read
from imagelm.data.sources.layouts import WHOLE, Part, Query, find_splits
from imagelm.data.sources.loading import is_saved_dataset, is_slice, may_be_hub_id, metadata_file
from imagelm.data.sources.local import FileSource, FolderSource
from imagelm.data.sources.names import find_split, kind_of
from imagelm.utils.errors import InputError
from imagelm.utils.text import join_first, printable


@contextmanager
def os_errors() -> Iterator[None]:
    """Errors of the file system as InputErrors, with the name of the file."""
    try:
        yield
    except OSError as error:
        raise InputError(f"--images: {error.strerror}: {error.filename}") from error


def open_part(part: Part, query: Query, default: str = "train") -> ImageSource:
    """Opens names that were expanded; of several splits that which was asked for, or that of the kind `default`."""
    names = part.names
    with os_errors():
        if part.unpacked or part.image_root:  # found already
            return _open_names(part, replace(query, image_root=query.image_root or part.image_root))
        chosen, note = _choose_part(part, query, default)
        if chosen.names == names:
            source = _open_names(chosen, query)
        else:
            source = open_part(chosen, replace(query, config_name=None), default)
    if note:
        source.notes.insert(0, note)
    return source


def _choose_part(part: Part, query: Query, default: str) -> tuple[Part, str | None]:
    """The split of a part, and a note on the others; the part itself if it holds no splits."""
    names, asked, where = part.names, part.split, join_first(part.names, 3)
    is_one = len(names) == 1 or all(map(is_npy, names))
    offered = find_splits(names, query) if asked or is_one else {}
    if not offered or (asked and list(offered) == [WHOLE]):
        if asked:
            inner = Path(names[0]) / asked
            remedy = f"give --images {inner}" if inner.is_dir() else "remove --split"
            raise InputError(f"--split {asked} has no effect on --images {where}, which has no splits; {remedy}")
        return part, None
    if asked and is_slice(asked) and not Path(names[0]).exists():
        return Part(names, asked), None
    if asked:
        kind = kind_of(asked)
        chosen = asked if asked in offered else kind and find_split(offered, kind, where)
        if not chosen:
            raise InputError(f"--images {where} has no split {asked!r}; it has {', '.join(map(printable, offered))}")
        return offered[chosen], None
    return _default_part(offered, where, default)


def _default_part(offered: dict[str, Part], where: str, default: str) -> tuple[Part, str | None]:
    if len(offered) == 1:
        return next(iter(offered.values())), None
    for kind in dict.fromkeys((default, "validation" if default == "test" else "train", "train")):
        found = [name for name in offered if kind_of(name) == kind]
        if len(found) == 1:
            others = ", ".join(printable(name) for name in offered if name != found[0])
            return offered[found[0]], f"{where}: split {printable(found[0])} is used; it also has {others}"
        if found:
            break
    shown, first = ", ".join(map(printable, offered)), next(iter(offered))
    raise InputError(f"--images {where} holds the splits {shown}; name one of them, such as --split {printable(first)}")


def _open_names(part: Part, query: Query) -> ImageSource:
    """Opens each name as it is, and joins them."""
    sources: list[ImageSource] = []
    for kind, group in groupby(part.names, _kind_of_file):
        names, paths = list(group), []
        if kind:
            paths = list(map(Path, names))
        if kind == "array":
            image_key = query.image_column or (paths[0].stem if len(paths) == 1 else None)
            files = neighbours(paths[0]) if len(paths) == 1 else paths
            sources.append(ArraySource(files, image_key, query.label_column, part.split))
        elif kind == "image":
            _check_no_columns(names[0], query)
            sources.append(FileSource(paths, Path(os.path.commonpath([path.parent for path in paths]))))
        else:
            sources += [_open(name, part.split, query) for name in names]
    for source in sources:
        check_class_names(source)
    if len(sources) == 1:
        return sources[0]
    joined = JoinedSource(sources)
    check_class_names(joined)
    return joined


def _kind_of_file(name: str) -> str | None:
    path = Path(name)
    if not path.is_file():
        return None
    return "array" if is_npy(path) else "image" if is_image_name(path) else None


def _open(name: str, split: str | None, query: Query) -> ImageSource:
    path = Path(name)
    columns = query.image_column, query.label_column
    if not name:
        raise InputError("--images holds an empty name; is a variable unset?")
    if path.suffix.lower() == ".npz" and path.is_file():
        return ArraySource([path], *columns, split)
    if is_archive(path) and path.is_file() and not is_webdataset(name):
        unpacked = unpack(name)
        with unpacked.errors():
            inside = Part([str(unpacked.folder)], split)
            return ArchiveSource(unpacked, open_part(inside, replace(query, nested=True)))
    is_list = path.is_file() and (is_archive(path) or path.suffix.lower() in LIST_SUFFIXES)
    if is_list or is_table(path) or is_saved_dataset(path) or metadata_file(path):
        return _dataset_source(name, *columns, split, query.image_root)
    if path.is_file() and (other := not_read(path)):
        raise InputError(f"--images {name} is {other}")
    if path.exists():
        _check_no_columns(name, query)
        return FolderSource(path, split) if path.is_dir() else FileSource([path], path.parent)
    if may_be_hub_id(name):
        return _dataset_source(name, *columns, split, None, query.config_name, query.revision)
    raise InputError(f"--images {name}: no such file or folder")


def _dataset_source(name: str, *options: str | None) -> ImageSource:
    from imagelm.data.sources.hf import DatasetSource  # late: plain images need no `datasets`

    return DatasetSource(name, *options)


def _check_no_columns(name: str, query: Query) -> None:
    if asked := query.image_column or query.label_column:
        raise InputError(f"--images {name} has no columns, so none is named {asked!r}; remove the option")


def check_effect(names: Sequence[str], query: Query) -> None:
    """Refuses options of datasets on the Hub with something else."""
    for name in names:
        if query.revision and Path(name).exists():
            raise InputError(f"--images {name} is no dataset on the Hub, and has no revision {query.revision!r}")
        if query.config_name and Path(name).is_file():
            raise InputError(f"--images {name} is a file, and has no configuration {query.config_name!r}; remove it")
