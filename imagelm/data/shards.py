"""Shards of an input, which independent processes prepare, and the checks before they are joined.

One idea: reading, checking, encoding and hashing a row needs no other row, and a shard does that for its share of the
input. Duplicates, splits and statistics need a few bytes of every row, which each shard keeps; the merge makes them.
"""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from imagelm.data.arguments import PrepareArguments
from imagelm.data.integrity import digest
from imagelm.data.rows import RowCounts, sum_counts
from imagelm.utils.artifacts import MANIFEST_FILE, PLAN_FILE, SHARD_FILE
from imagelm.utils.atomic_io import read_json, write_json
from imagelm.utils.errors import InputError
from imagelm.utils.manifest import damage, read_manifest
from imagelm.utils.text import join_first, printable

LIBRARIES = ("datasets", "numpy", "pillow", "pyarrow", "scikit-learn", "torch", "xxhash")  # which may change a row
# Options that shards needn't share.
PLACES, SHARE = ("output_dir", "overwrite"), ("num_shards", "shard_index")


def write_shard_record(
    arguments: PrepareArguments,
    identity: dict[str, object],
    counts: RowCounts | None,
    plan: SavedPlan | None,
    folder: Path,
) -> dict:
    """Writes what the merge needs to know of a shard into its folder, and returns it.

    `identity` is that of the input. Images that were read for their plan have no counts.
    """
    index, num_shards = arguments.share
    record = {
        "shard_index": index,
        "num_shards": num_shards,
        "plan": None if plan is None else str(plan.folder),
        "options": arguments.record(),
        "input": identity,
        "versions": {
            "imagelm": import_module("imagelm").__version__,  # by name: the root imports the rooms above, though late
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
        "counts": None if counts is None else counts.record(),
    }
    write_json(folder / SHARD_FILE, record)
    return record


@dataclass(frozen=True)
class SavedPlan:
    """The folder of a plan of images, the content of its `PLAN_FILE`, and a digest of all its files."""

    folder: Path
    record: dict
    digest: str

    def arguments(self, own: PrepareArguments) -> PrepareArguments:
        """The options of the plan, with the output and the share of others."""
        return PrepareArguments(**self.record["options"] | {name: getattr(own, name) for name in (*PLACES, *SHARE)})


def open_plan(folder: str | Path) -> SavedPlan:
    """The plan in a folder.

    Raises:
        InputError: There is none, or it is damaged.
    """
    home = Path(folder)
    if not (home / PLAN_FILE).is_file():
        raise InputError(
            f"--plan {folder} holds no {PLAN_FILE}; prepare shards of the images without --plan first, and merge them"
        )
    files = read_manifest(home)
    if found := damage(home) if files else f"its {MANIFEST_FILE} is missing or damaged":
        raise InputError(f"--plan {folder} is damaged: {found}; merge the shards of images again")
    return SavedPlan(home, read_json(home / PLAN_FILE), digest(files))


@dataclass(frozen=True)
class Shards:
    """All shards of an input, in order.

    Attributes:
        folders: Their folders.
        records: What `write_shard_record` wrote into them.
    """

    folders: list[Path]
    records: list[dict]

    @property
    def are_rows(self) -> bool:
        """Whether they hold rows, and not what a plan needs of images."""
        return self.records[0]["counts"] is not None

    @property
    def counts(self) -> RowCounts:
        """What was counted in all of them."""
        return sum_counts([record["counts"] for record in self.records])

    @property
    def plan(self) -> SavedPlan | None:
        """The plan that they were prepared with."""
        return open_plan(self.records[0]["plan"]) if self.records[0]["plan"] else None

    def arguments(self, merge: PrepareArguments) -> PrepareArguments:
        """The options that the shards share, with the output of a merge."""
        return PrepareArguments(**self.records[0]["options"] | {name: getattr(merge, name) for name in PLACES})

    def check_source(self, identity: dict[str, object]) -> None:
        """Raises an InputError if the input has changed since the shards were prepared."""
        check_input(self.records[0]["input"], identity, self.folders[0])

    def check_files(self) -> list[tuple[int, int]]:
        """Compares all files with their manifests; returns what changes when another process replaces a shard.

        Raises:
            InputError: A file is damaged.
        """
        states = self.states()
        for folder in self.folders:
            _check_intact(folder, ("",))
        return states

    def states(self) -> list[tuple[int, int]]:
        """What changes when another process replaces a shard."""
        found = [(folder / MANIFEST_FILE).stat() for folder in self.folders]
        return [(status.st_ino, status.st_mtime_ns) for status in found]


def open_shards(folder: str) -> Shards:
    """The shards in the subfolders of a folder, all of one input.

    Raises:
        InputError: One is missing, there twice, or of other options, another input or other versions.
    """
    home = Path(folder)
    if not home.is_dir():
        raise InputError(f"--merge_shards {folder}: no such folder; name the one that holds a folder for each shard")
    found = sorted(path.parent for path in home.glob(f"*/{SHARD_FILE}") if not path.parent.name.startswith("."))
    if not found:
        raise InputError(
            f"--merge_shards {folder} holds no shard; write each one into a subfolder: imagelm prepare … --num_shards "
            f"N --shard_index I --output_dir {home / 'I'}"
        )
    for path in found:
        _check_intact(path, (SHARD_FILE,))
    records = [read_json(path / SHARD_FILE) for path in found]
    _check_alike(found, records)
    _check_complete(folder, found, records)
    order = sorted(range(len(found)), key=lambda i: records[i]["shard_index"])
    return Shards([found[i] for i in order], [records[i] for i in order])


def check_input(recorded: dict[str, object], found: dict[str, object], where: Path) -> None:
    """Raises an InputError if the input has changed since the shard or plan in the folder `where` was prepared."""
    if changed := _difference(recorded, found):
        raise InputError(f"the input changed since {where} was prepared: {changed}; prepare all shards again")


def _check_intact(folder: Path, starts: tuple[str, ...]) -> None:
    damaged = damage(folder, starts) if read_manifest(folder) else f"its {MANIFEST_FILE} is missing or damaged"
    if damaged:
        raise InputError(f"--merge_shards: {folder} is damaged: {damaged}; prepare this shard again")


def _check_alike(folders: list[Path], records: list[dict]) -> None:
    """Compares each shard with most of the others."""

    def key(record: dict) -> str:
        options = {name: value for name, value in record["options"].items() if name not in PLACES}
        kind = record["counts"] is None
        return repr([kind, record["num_shards"], record["versions"], options, record["input"]])

    usual = Counter(map(key, records)).most_common(1)[0][0]
    first = next(i for i, record in enumerate(records) if key(record) == usual)
    for folder, record in zip(folders, records, strict=True):
        if key(record) == usual:
            continue
        own, other = record, records[first]
        kinds = [{"kind": "rows" if r["counts"] else "images without a plan"} for r in (other, own)]
        parts = [
            _difference(*kinds),
            _difference({"--num_shards": other["num_shards"]}, {"--num_shards": own["num_shards"]}),
            _difference(other["versions"], own["versions"]),
            _difference(*({f"--{n}": v for n, v in r["options"].items() if n not in PLACES} for r in (other, own))),
            _difference(other["input"], own["input"]),
        ]
        raise InputError(
            f"--merge_shards: {folder} doesn't belong to {folders[first]}: {'; '.join(filter(None, parts))}; prepare "
            "it again with the same options, input and versions"
        )


def _check_complete(home: str, folders: list[Path], records: list[dict]) -> None:
    """All indices, each once."""
    by_index: dict[int, Path] = {}
    for folder, record in zip(folders, records, strict=True):
        other = by_index.setdefault(record["shard_index"], folder)
        if other != folder:
            raise InputError(
                f"--merge_shards: {other} and {folder} are the same shard, {record['shard_index']} of "
                f"{record['num_shards']}; remove one of them"
            )
    num_shards = records[0]["num_shards"]
    if missing := [str(index) for index in range(num_shards) if index not in by_index]:
        raise InputError(
            f"--merge_shards {home} lacks {len(missing)} of {num_shards} shards: {join_first(missing)}; prepare each "
            f"with --num_shards {num_shards} and its --shard_index, or wait for the processes that prepare them"
        )


def _difference(usual: dict, found: dict) -> str:
    """Which values differ, in words."""
    names = [name for name in {**usual, **found} if usual.get(name) != found.get(name)]
    return ", ".join(printable(f"{name} is {found.get(name)}, not {usual.get(name)}") for name in names)
