"""The two binary formats of the Xet protocol: xorbs (compressed chunks) and shards (which chunks make a file).

Source: the protocol's specification, https://huggingface.co/docs/xet, and xet-core's `xet_core_structures`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import lz4.frame
import numpy as np

SHARD_TAG = b"HFRepoMetaData\0" + bytes(
    [85, 105, 103, 69, 106, 123, 129, 87, 131, 165, 189, 217, 92, 205, 209, 74, 169]
)
ENTRY = struct.Struct("<32s4I")  # every record of a shard has a hash and 16 bytes
WITH_VERIFICATION, WITH_METADATA, DEDUPLICATE = 1 << 31, 1 << 30, 1 << 31
BOOKEND = b"\xff" * 32


@dataclass(frozen=True)
class Chunk:
    """A chunk's bytes in a xorb, `start` to `end`, and its uncompressed length."""

    start: int
    end: int
    scheme: int
    length: int


@dataclass(frozen=True)
class Term:
    """Chunks `start` to `end` of a xorb: so many bytes of a file."""

    xorb: str
    length: int
    start: int
    end: int


@dataclass(frozen=True)
class ShardFile:
    hash: str
    terms: list[Term]
    sha256: str | None


@dataclass(frozen=True)
class ShardXorb:
    """A shard's entry of a xorb: its bytes, and the chunks by which clients can find it."""

    hash: str
    record: bytes
    findable: list[str]


def hash_name(raw: bytes) -> str:
    """A hash as text: four little-endian 64-bit numbers in hexadecimal."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))


def xorb_chunks(xorb: bytes) -> list[Chunk]:
    """The chunks of a xorb, without the optional footer; ValueError if it isn't whole."""
    chunks, at = [], 0
    while at < len(xorb) and xorb[at : at + 7] != b"XETBLOB":
        header = xorb[at : at + 8]
        if len(header) < 8 or header[0] != 0 or header[4] > 2:
            raise ValueError(f"no chunk header at byte {at}")
        start = at + 8
        at = start + int.from_bytes(header[1:4], "little")
        chunks.append(Chunk(start - 8, at, header[4], int.from_bytes(header[5:8], "little")))
    if not chunks or at > len(xorb):
        raise ValueError("the last chunk is cut off")
    return chunks


def chunk_content(xorb: bytes, chunk: Chunk) -> bytes:
    """Uncompressed; ValueError if that fails or has another length than announced."""
    data = xorb[chunk.start + 8 : chunk.end]
    if chunk.scheme:
        try:
            data = lz4.frame.decompress(data)
        except RuntimeError as error:
            raise ValueError(f"chunk at byte {chunk.start}: {error}") from error
    if len(data) != chunk.length:
        raise ValueError(f"chunk at byte {chunk.start} has {len(data)} bytes, announced were {chunk.length}")
    return _ungroup(data) if chunk.scheme == 2 else data


def _ungroup(data: bytes) -> bytes:
    """Bytes 0, 4, 8, … come first in the compressed order, then 1, 5, 9, … and so on."""
    grouped, plain = np.frombuffer(data, np.uint8), np.empty(len(data), np.uint8)
    at = 0
    for offset in range(4):
        lane = plain[offset::4]
        lane[:] = grouped[at : at + len(lane)]
        at += len(lane)
    return plain.tobytes()


def parse_shard(shard: bytes) -> tuple[list[ShardFile], list[ShardXorb]]:
    """The files and xorbs of an uploaded shard; ValueError if it is malformed."""
    if shard[:32] != SHARD_TAG:
        raise ValueError("no shard: it has another tag")
    try:
        files, at = _shard_files(shard, 48)
        return files, _shard_xorbs(shard, at)
    except struct.error as error:
        raise ValueError(f"the shard is cut off: {error}") from error


def _shard_files(shard: bytes, at: int) -> tuple[list[ShardFile], int]:
    files = []
    while (head := ENTRY.unpack_from(shard, at))[0] != BOOKEND:
        raw, flags, num_terms, _, _ = head
        at += ENTRY.size
        terms = []
        for _ in range(num_terms):
            xorb, _, length, start, end = ENTRY.unpack_from(shard, at)
            terms.append(Term(hash_name(xorb), length, start, end))
            at += ENTRY.size
        at += ENTRY.size * num_terms if flags & WITH_VERIFICATION else 0
        sha256 = None
        if flags & WITH_METADATA:
            sha256 = hash_name(ENTRY.unpack_from(shard, at)[0])
            at += ENTRY.size
        files.append(ShardFile(hash_name(raw), terms, sha256))
    return files, at + ENTRY.size


def _shard_xorbs(shard: bytes, at: int) -> list[ShardXorb]:
    xorbs = []
    while (head := ENTRY.unpack_from(shard, at))[0] != BOOKEND:
        start, num_chunks = at, head[2]
        at += ENTRY.size * (1 + num_chunks)
        entries = [ENTRY.unpack_from(shard, start + ENTRY.size * (1 + index)) for index in range(num_chunks)]
        findable = [
            hash_name(raw)
            for raw, _, _, flags, _ in entries
            if flags & DEDUPLICATE or struct.unpack("<4Q", raw)[3] % 1024 == 0
        ]
        xorbs.append(ShardXorb(hash_name(head[0]), shard[start:at], findable))
    return xorbs


def deduplication_shard(record: bytes) -> bytes:
    """A shard with one xorb and no file: the answer to "do you have this chunk?"."""
    bookend = BOOKEND + bytes(16)
    body = bookend + record + bookend
    xorbs_at, footer_at = 48 + 48, 48 + len(body)
    footer = struct.pack(
        "<9Q32sQQ6Q4Q", 1, 48, xorbs_at, *[footer_at, 0] * 3, bytes(32), 0, 2**64 - 1, *[0] * 9, footer_at
    )
    return SHARD_TAG + struct.pack("<2Q", 2, len(footer)) + body + footer
