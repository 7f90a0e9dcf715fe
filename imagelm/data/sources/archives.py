"""Packed folders: zip and tar archives, unpacked into a temporary folder that ends with its last user.

One idea: an archive comes from elsewhere. Every name is checked, only regular files are written, and the unpacked size
is limited before it is written; anything suspicious refuses the whole archive.
"""

from __future__ import annotations

import re
import shutil
import stat
import tarfile
import tempfile
import weakref
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from PIL import Image

from imagelm.data.sources.decode import ImageSource, LazyImages
from imagelm.utils.errors import InputError
from imagelm.utils.text import first_line, printable

# Images hardly shrink: an archive may unpack to 100 times its size, and hold a file for every 128 bytes of it; a small
# one to 1 GiB and 10,000 files.
MAX_GROWTH, MIN_PACKED_FILE, FREE_BYTES, FREE_FILES = 100, 128, 1 << 30, 10_000
NUM_SAMPLE_MEMBERS = 1000
_ANNOTATIONS = ("cls", "cls2", "index", "inx", "id", "json", "jsn", "txt")  # of WebDataset
_PACKED_FIELDS = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip")
_unpacked: weakref.WeakValueDictionary[tuple[str, int, int], Unpacked] = weakref.WeakValueDictionary()


class Unpacked:
    """The content of an archive in a temporary folder, which is deleted with this object.

    Attributes:
        archive: The archive, as the user named it.
        folder: Where its files are now.
    """

    def __init__(self, archive: str) -> None:
        self.archive, self.skipped = archive, list[str]()
        self._temporary = tempfile.TemporaryDirectory(prefix="imagelm-", ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name).resolve()
        with _archive_errors(archive):
            for name, _, stream in _files(Path(archive), self.skipped):
                target = self.folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "wb") as file:
                    shutil.copyfileobj(stream, file)

    def shown(self, text: str) -> str:
        """A message with the archive's name in the place of the temporary folder's."""
        return text.replace(str(self.folder), printable(self.archive))

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Errors about the temporary folder become errors about the archive."""
        try:
            yield
        except InputError as error:
            raise InputError(self.shown(str(error))) from error


class ArchiveSource(ImageSource):
    """The images of an unpacked archive."""

    def __init__(self, unpacked: Unpacked, source: ImageSource) -> None:
        super().__init__(unpacked.archive)
        self.unpacked, self.source = unpacked, source
        self.class_names, self.labels = source.class_names, source.labels
        self.notes, self.columns = list(map(unpacked.shown, source.notes)), list(map(unpacked.shown, source.columns))
        if skipped := unpacked.skipped:
            more = f" and {len(skipped) - 1} more" if skipped[1:] else ""
            self.notes.append(
                f"{self.origin}: not unpacked, because it is no regular file: {printable(skipped[0])}{more}"
            )

    def __len__(self) -> int:
        return len(self.source)

    def place(self, i: int) -> str:
        return self.unpacked.shown(self.source.place(i))

    def name(self, i: int) -> str:
        return self.source.name(i).replace(self.unpacked.folder.name, self.short_origin)

    def load(self, start: int, stop: int) -> LazyImages:
        return self.source.load(start, stop)

    def extra(self, name: str) -> np.ndarray | None:
        return self.source.extra(name)


def unpack(archive: str) -> Unpacked:
    """An archive's content; the same object while somebody uses it.

    Raises:
        InputError: It can't be read, is encrypted, is too large, or names files outside its folder.
    """
    state = Path(archive).stat()
    key = archive, state.st_mtime_ns, state.st_size
    if (found := _unpacked.get(key)) is None:
        found = _unpacked[key] = Unpacked(archive)
    return found


def cache_folder(name: str) -> str | None:
    """Where to keep what is made of a file in an unpacked archive, so that it goes with it; None for other files."""
    folders = (unpacked.folder for unpacked in _unpacked.values())
    return next((str(folder / ".cache") for folder in folders if Path(name).is_relative_to(folder)), None)


def is_webdataset(archive: str) -> bool:
    """Whether a tar archive holds samples, such as `0001.png` and `0001.cls`, and not folders of classes."""
    if Path(archive).suffix.lower() == ".zip":
        return False
    found: dict[str, set[str]] = {}
    with _archive_errors(archive):
        for name, _, _ in islice(_files(Path(archive), []), NUM_SAMPLE_MEMBERS):
            folder, _, file = name.rpartition("/")
            stem, _, field = file.partition(".")
            found.setdefault(f"{folder}/{stem}", set()).add(field.lower())
    endings = {suffix[1:] for suffix in Image.registered_extensions()}
    return any(fields & endings and fields & set(_ANNOTATIONS) for fields in found.values())


def check_webdataset(archive: str) -> None:
    """Raises an InputError if a WebDataset archive is too large, damaged, or holds compressed fields."""
    with _archive_errors(archive):
        for name, _, _ in _files(Path(archive), []):
            if name.lower().endswith(_PACKED_FIELDS):
                raise InputError(f"--images {archive}: {printable(name)} is compressed inside the archive; unpack it")


def _files(path: Path, skipped: list[str]) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, size and content of each regular file; the names of other members are added to `skipped`."""
    limits = _Limits(path)
    members = _zip_files(path, limits, skipped) if path.suffix.lower() == ".zip" else _tar_files(path, skipped)
    total = 0
    for number, (name, size, stream) in enumerate(members, start=1):
        limits.check(number, total := total + size)
        inside = PurePosixPath(name.replace("\\", "/"))
        if inside.is_absolute() or ".." in inside.parts or re.match("[A-Za-z]:", name) or "\0" in name:
            raise InputError(f"--images {path} names a file outside its folder ({name!r}), so nothing was unpacked")
        yield str(inside), size, stream


class _Limits:
    """How much an archive may unpack to."""

    def __init__(self, path: Path) -> None:
        self.path, self.packed = path, path.stat().st_size
        self.files, self.bytes = FREE_FILES + self.packed // MIN_PACKED_FILE, max(FREE_BYTES, MAX_GROWTH * self.packed)
        self.room = shutil.disk_usage(tempfile.gettempdir()).free

    def check(self, num_files: int, num_bytes: int) -> None:
        """Raises an InputError if there are more files or bytes, or more bytes than there is room for."""
        if num_files > self.files or num_bytes > self.bytes:
            raise InputError(
                f"--images {self.path} of {self.packed:,} bytes unpacks to more than {self.files:,} files or "
                f"{self.bytes:,} bytes; if you trust it, unpack it yourself, and name the folder"
            )
        if num_bytes > self.room:
            raise InputError(
                f"--images {self.path} unpacks to more than {self.room:,} bytes, for which {tempfile.gettempdir()} has "
                "no room; name another folder in TMPDIR, or unpack it yourself"
            )


def _zip_files(path: Path, limits: _Limits, skipped: list[str]) -> Iterator[tuple[str, int, IO[bytes]]]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        limits.check(len(members), sum(member.file_size for member in members))
        for member in members:
            if member.flag_bits & 1:
                raise InputError(f"--images {path} is encrypted; unpack it, and name the folder")
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                skipped.append(member.filename)
            elif not member.is_dir():
                with archive.open(member) as stream:
                    yield member.filename, member.file_size, stream


def _tar_files(path: Path, skipped: list[str]) -> Iterator[tuple[str, int, IO[bytes]]]:
    with tarfile.open(path) as archive:
        for member in archive:
            if member.isreg() and (stream := archive.extractfile(member)):
                yield member.name, member.size, stream
            elif not member.isdir():
                skipped.append(member.name)


@contextmanager
def _archive_errors(archive: str) -> Iterator[None]:
    """Reports whatever goes wrong while an archive is read as an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # those of zipfile, tarfile and each compression have no common class
        reason = first_line(error).rstrip(":") or type(error).__name__
        raise InputError(f"--images {archive} can't be unpacked: {reason}; it may be damaged or incomplete") from error
