"""Text files, plain or compressed → their lines, in bounded memory.

One idea: a file is read in pieces of one size, and a line may not be longer than `MAX_LINE_BYTES`; so neither an
endless line nor an archive that unpacks to a thousand times its size fills the memory.
"""

from __future__ import annotations

import glob
import gzip
import io
import itertools
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import zstandard
from tqdm import tqdm

from imagelm.utils.errors import InputError

CHUNK_BYTES = 2 << 20
MAX_LINE_BYTES = 64 << 20  # 8 million tokens; the rest of a longer line is dropped
ZSTD_INPUT_BYTES = 4096  # its densest blocks unpack to 128 KiB from 4 bytes: at most 128 MiB at once
COMPRESSED = (".gz", ".zst")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def expand_files(patterns: list[str]) -> list[Path]:
    """The files behind names and glob patterns, each once, in the order given (those of a pattern sorted).

    Raises:
        InputError: A name or pattern matches no file, or something that isn't an ordinary file.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        if not pattern:
            raise InputError("--data_files holds an empty name; is a variable unset?")
        if "\0" in pattern:
            raise InputError(f"--data_files {pattern!r}: a name can't hold a NUL")
        found = [pattern] if os.path.lexists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise InputError(f"--data_files {pattern}: no such file")
        for name in found:
            _check_ordinary(name)
            files[Path(name)] = None
    return list(files)


def share_of_files(files: list[Path], share: tuple[int, int]) -> Iterator[tuple[Path, int, int | None]]:
    """The files of one of several shares of about the same size, each with its first piece and that after its last one.

    A piece is the lines that end in `CHUNK_BYTES` of the file. A compressed file isn't cut, and goes to the share that
    it starts in. The last piece of a file is open (None).

    Args:
        files: All files.
        share: Which share, from 0, and of how many.
    """
    num_pieces = [max(1, -(-file.stat().st_size // CHUNK_BYTES)) for file in files]
    low, high = (sum(num_pieces) * i // share[1] for i in (share[0], share[0] + 1))
    start = 0
    for file, count in zip(files, num_pieces, strict=True):
        if file.suffix in COMPRESSED:
            first, stop = (0, count) if low <= start < high else (0, 0)
        else:
            first, stop = max(low - start, 0), min(high - start, count)
        if first < stop:
            yield file, first, stop if stop < count else None
        start += count


def line_chunks(
    file: Path, progress: tqdm, first: int = 0, stop: int | None = None
) -> Iterator[tuple[int, list[bytes]]]:
    """Lists of lines of about `CHUNK_BYTES`, each with the number of its first line.

    A line keeps its line end; a line longer than `MAX_LINE_BYTES` is cut to `MAX_LINE_BYTES` + 1 bytes. Of a part of
    a file, from piece `first` to before `stop`, the pieces before it are read too, to count their lines.

    Raises:
        InputError: The file can't be read or unpacked, or changes while it is read.
    """
    number, rest, inside_long_line = 1, b"", False
    with _open(file) as (stream, raw):
        before, done = os.fstat(raw.fileno()), 0
        for i in itertools.count():
            if i == stop:
                rest = b""  # its line ends in the next piece
                break
            try:
                piece = stream.read(CHUNK_BYTES)
            except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
                raise InputError(f"{file}: can't be read after line {number - 1}: {error}") from error
            progress.update(raw.tell() - done)
            done = raw.tell()
            if not piece:
                break
            if inside_long_line:
                _, newline, piece = piece.partition(b"\n")
                if not newline:
                    continue
                inside_long_line = False
            lines = io.BytesIO(rest + piece).readlines()
            rest = b"" if not lines or lines[-1].endswith(b"\n") else lines.pop()
            if len(rest) > MAX_LINE_BYTES:
                lines.append(rest)
                rest, inside_long_line = b"", True
            if lines and i >= first:
                yield number, _tidy(lines, number)
            number += len(lines)
        after = os.fstat(raw.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise InputError(
                f"{file} changed while it was read (from {before.st_size:,} to {after.st_size:,} bytes), so rows may "
                "be cut or missing; wait until it is complete, then try again"
            )
        if rest:
            yield number, _tidy([rest], number)


def _tidy(lines: list[bytes], number: int) -> list[bytes]:
    if number == 1:
        lines[0] = lines[0].removeprefix(BYTE_ORDER_MARK)  # as some editors write it
    return [line if len(line) <= MAX_LINE_BYTES else line[: MAX_LINE_BYTES + 1] for line in lines]


def _check_ordinary(name: str) -> None:
    try:
        mode = os.stat(name).st_mode
    except OSError as error:  # such as a link that leads nowhere
        raise InputError(f"--data_files {name}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"--data_files {name} is a folder; name its files, such as '{name}/*.jsonl'")
    if not stat.S_ISREG(mode):
        raise InputError(f"--data_files {name} is a pipe or a device, which may never end; write it to a file first")


@contextmanager
def _open(file: Path) -> Iterator[tuple[io.BufferedIOBase, BinaryIO]]:
    try:
        raw = open(file, "rb")  # noqa: SIM115 (closed by the with below)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from error
    with raw:
        if file.suffix == ".gz":
            yield gzip.GzipFile(fileobj=raw), raw
        elif file.suffix == ".zst":
            yield io.BufferedReader(ZstdFile(raw), buffer_size=1 << 20), raw
        else:
            yield raw, raw


class ZstdFile(io.RawIOBase):
    """Decompressed bytes of a .zst file; the library's reader doesn't report a file that is cut off."""

    def __init__(self, raw: BinaryIO) -> None:
        self.raw, self.pending = raw, memoryview(b"")
        self.frame: zstandard.ZstdDecompressionObj | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.pending:
            data = self.frame.unused_data if self.frame is not None and self.frame.eof else b""
            data = data or self.raw.read(ZSTD_INPUT_BYTES)
            if not data:
                if self.frame is not None and not self.frame.eof:
                    raise EOFError("the archive is cut off")
                return 0
            if self.frame is None or self.frame.eof:
                self.frame = zstandard.ZstdDecompressor().decompressobj()
            self.pending = memoryview(self.frame.decompress(data))
        count = min(len(buffer), len(self.pending))
        buffer[:count], self.pending = self.pending[:count], self.pending[count:]
        return count
