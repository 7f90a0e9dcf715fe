"""Output folders that are either whole or absent, and in which nothing of the user's is ever deleted.

One idea: write into a hidden folder next to the final one, list its files in a manifest, flush it to the disk, then
rename. An earlier folder is exchanged in one step and removed file by file: what its manifest doesn't name is moved
into the new folder.
"""

from __future__ import annotations

import errno
import glob
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from imagelm.utils.artifacts import MANIFEST_FILE
from imagelm.utils.atomic_io import sync
from imagelm.utils.errors import InputError
from imagelm.utils.folder_lock import is_held, locked
from imagelm.utils.manifest import is_changed, read_manifest, write_manifest
from imagelm.utils.renames import exchange, move
from imagelm.utils.text import list_first

logger = logging.getLogger(__name__)

TEXTS = (".md",)  # files for people, who may edit them: kept where they differ from what was written
# The names that `atomic_folder` and `atomic_file` write to, and that a killed process may leave behind.
LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>partial|old)-([a-z0-9_]{8}|\d+|save|resume)")


def check_replaceable(path: Path, marker: str, overwrite: bool) -> None:
    """Refuses an output folder that exists, unless it may be overwritten and this program wrote it.

    Args:
        path: The folder to be written.
        marker: A file that only a folder of this kind holds. `--overwrite` replaces nothing else, so that a mistake
            such as `--output_dir ~ --overwrite` can't touch a home folder.
        overwrite: Whether the user asked to replace what is there.

    Raises:
        InputError: The folder holds something and may not be replaced.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; choose another folder")
    if not path.exists() or not any(path.iterdir()):
        return
    if not (path / marker).exists():
        raise InputError(
            f"{path} holds no {marker}, so it wasn't written by this program, and isn't replaced. Choose another folder"
        )
    if read_manifest(path) is None:
        raise InputError(
            f"{path} holds no valid {MANIFEST_FILE}, the list of the files that this program wrote there (versions "
            "before 0.2 wrote none), and isn't replaced. Delete it yourself, or choose another folder"
        )
    if not overwrite:
        raise InputError(f"{path} exists and is not empty; add --overwrite to replace it, or choose another folder")


def check_outside(output: str | Path, option: str, source: str | Path) -> None:
    """Refuses an output folder that holds what the output is made from.

    Args:
        output: The folder to be written.
        option: The option that names the source, for the message.
        source: A file, a folder or a glob pattern; anything else, such as a Hub id, is no path.

    Raises:
        InputError: The source is the output folder, or is in it.
    """
    is_path = Path(source).exists() or glob.has_magic(str(source))
    if is_path and Path(source).resolve().is_relative_to(Path(output).resolve()):
        raise InputError(f"{option} {source} is inside the output folder {output}; choose another output folder")


@contextmanager
def atomic_folder(path: Path, check: Callable[[Path], None] = lambda folder: None) -> Iterator[Path]:
    """Yields a staging folder next to `path`; on success it gets a manifest and replaces `path`.

    On any error it is removed. What killed processes left beside `path` is removed first. Files in `path` that its
    manifest doesn't name are moved into the new folder.

    Args:
        path: The folder to be written.
        check: Raises an `InputError` if a folder must not be replaced. It is called at once and again at the moment of
            the rename, because the user may put something there meanwhile.

    Raises:
        InputError: `check` refuses what is there, or another process is writing the folder.
    """
    path = Path(path).resolve()
    check(path)
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with _new_staging(path) as staging:
        number = staging.stat().st_ino
        try:
            yield staging
            _set_permissions(staging)
            write_manifest(staging)
            place_folder(staging, path, check)
        except BaseException:
            # After an exchange the earlier folder has this name, and may hold the user's files.
            if staging.exists() and staging.stat().st_ino == number:
                shutil.rmtree(staging, ignore_errors=True)
            for folder in made:
                with suppress(OSError):  # not empty
                    folder.rmdir()
            raise


def place_folder(staging: Path, path: Path, check: Callable[[Path], None] = lambda folder: None) -> None:
    """Moves a finished folder, whose manifest is written, to `path`; of an earlier one, the user's own files are kept.

    Raises:
        InputError: `check` refuses the folder that is there, or another process is using it.
    """
    try:
        os.rename(staging, path)  # also over an empty folder
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        check(path)
        if error.errno == errno.ENOTDIR:
            raise
        with locked(path) as ours:  # after the exchange it has the name of a leftover, which others must not touch
            if not ours:
                raise InputError(f"{path}: another process is using this folder; wait for it, or stop it") from None
            exchange(staging, path)
            try:
                check(staging)  # what was there until this moment
            except InputError:
                exchange(staging, path)
                raise
            _empty_into(staging, path)
    sync(path.parent)


def remove_folder(folder: Path, known: re.Pattern[str] | None = None) -> None:
    """Removes the files that a folder's manifest names, and the folder itself if nothing else is in it.

    Args:
        folder: The folder.
        known: Without a valid manifest, the names of the files to remove.
    """
    manifest = read_manifest(folder)
    written: Iterable[str] = manifest or ()
    if manifest is None:
        written = [file.name for file in folder.iterdir() if known and known.fullmatch(file.name)]
    else:
        texts = [name for name in manifest if name.endswith(TEXTS) and _is_edited(folder, name, manifest[name])]
        _say_kept(folder, [_set_aside(folder, name) for name in texts])
    for name in [*written, MANIFEST_FILE]:
        (folder / name).unlink(missing_ok=True)
    parents = {parent for name in written for parent in Path(name).parents}
    for parent in sorted(parents | {Path()}, key=lambda path: len(path.parts), reverse=True):
        with suppress(OSError):  # not empty, or gone
            (folder / parent).rmdir()


def remove_leftovers(folder: Path, names: re.Pattern[str]) -> bool:
    """Removes what killed writers left behind, and restores a folder that was moved aside.

    Args:
        folder: The folder that holds the final paths.
        names: The names of the final paths.

    Returns:
        Whether a living process is writing to one of the paths; what it writes stays.
    """
    living = False
    for entry in list(folder.iterdir()):
        match = LEFTOVER.fullmatch(entry.name)
        if not match or not names.fullmatch(match["name"]):
            continue
        if not entry.is_dir():
            entry.unlink(missing_ok=True)
            continue
        with suppress(FileNotFoundError), locked(entry) as ours:  # it is gone when its writer ends at this moment
            if not ours:
                living = True
                continue
            final = folder / match["name"]
            moved = entry / final.name if match["kind"] == "old" else entry  # a whole folder, or an unfinished one
            if moved != entry and moved.exists() and not final.exists():
                os.rename(moved, final)
            elif read_manifest(moved) is not None and final.is_dir():
                _empty_into(moved, final)  # the earlier folder, after an exchange
            elif read_manifest(moved) is not None:
                remove_folder(moved)
            else:
                shutil.rmtree(moved, ignore_errors=True)  # which only this program knows
            with suppress(OSError):
                entry.rmdir()
    return living


@contextmanager
def _new_staging(path: Path) -> Iterator[Path]:
    """A locked hidden folder beside `path`; refuses if another process has one for the same path."""
    with ExitStack() as stack:
        with ExitStack() as turn:
            # One process at a time looks for others. A run that holds the lock of its whole folder needs no turn.
            if not is_held(path.parent):
                turn.enter_context(locked(path.parent, patience=2))
            if remove_leftovers(path.parent, re.compile(re.escape(path.name))):
                raise InputError(f"{path}: another process is writing this folder; wait for it, or stop it")
            staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
            stack.enter_context(locked(staging))
        yield staging


def _empty_into(old: Path, new: Path) -> None:
    """Deletes what this program wrote into `old`, and moves everything else to the same place in `new`."""
    manifest = read_manifest(old)
    # Without one an earlier version wrote the folder: its files have the names of the new ones.
    written = (read_manifest(new) or {}) if manifest is None else manifest
    edited = [name for name, entry in (manifest or {}).items() if _is_edited(old, name, entry)]
    texts = [name for name in edited if name.endswith(TEXTS)]
    for name in edited:
        if name not in texts:
            logger.warning("%s was changed since it was written, and is replaced", new / name)
    folders = {parent.as_posix() for name in written for parent in Path(name).parents}
    kept: list[str] = []

    def empty(place: str) -> None:
        for entry in list(os.scandir(old / place)):
            name = (Path(place) / entry.name).as_posix()
            if name in folders and entry.is_dir(follow_symlinks=False):
                empty(name)
            elif name in written and name not in texts:
                os.unlink(entry.path)
            elif name != MANIFEST_FILE:
                target = _free_name(name, new, old) if name in texts else name
                if move(Path(entry.path), new / target):
                    kept.append(target)
        if place:
            with suppress(OSError):  # it holds what couldn't be moved
                os.rmdir(old / place)

    empty("")
    _say_kept(new, kept)
    # Under a name that `remove_leftovers` doesn't know, should something have come meanwhile.
    rest = old.with_name(f"{new.name}.kept{old.suffix.removeprefix('.partial')}")
    os.rename(old, rest)
    (rest / MANIFEST_FILE).unlink(missing_ok=True)
    try:
        rest.rmdir()
    except OSError:
        logger.warning("%s holds files that this program didn't write and couldn't move to %s", rest, new)


def _is_edited(folder: Path, name: str, entry: dict) -> bool:
    """Whether a file that this program wrote was changed since: it is the user's then."""
    return (folder / name).is_file() and not (folder / name).is_symlink() and is_changed(folder, name, entry)


def _free_name(name: str, *folders: Path) -> str:
    """The name to keep an edited file under: `README.md.kept`, or with a number if one of the folders has it."""
    names = (f"{name}.kept{number}" for number in ("", *map("-{}".format, range(2, 1000))))
    return next(name for name in names if not any(os.path.lexists(folder / name) for folder in folders))


def _set_aside(folder: Path, name: str) -> str:
    aside = _free_name(name, folder)
    os.rename(folder / name, folder / aside)
    return aside


def _say_kept(folder: Path, kept: list[str]) -> None:
    if kept:
        lines = [f"kept in {folder}, because this program didn't write it:", *list_first(sorted(kept))]
        logger.info("%s", "\n".join(lines))


def _set_permissions(folder: Path) -> None:
    """Those that the user's umask gives; some libraries write files that nobody else may read."""
    mask = _umask()
    for path in [folder, *folder.rglob("*")]:
        os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~mask)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
