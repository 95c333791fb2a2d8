"""Where a snapshot's chunks lie: the chunk table of a manifest."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import blake3
import zstandard

from crmbackup.core.errors import ObjectDamaged

CHUNK_ID_SIZE = 32
#: chunk id | pack (index in the header's list) u32 | frame u32 | offset in the pack u64 | stored u32 | raw u32
_ROW = struct.Struct("<32sIIQII")


@dataclass(frozen=True, slots=True)
class PackInfo:
    """One pack in storage: its name (BLAKE3 of its bytes, hex) and size in bytes."""

    pack_id: str
    size: int


@dataclass(frozen=True, slots=True)
class ChunkRef:
    """One chunk in its pack. Sizes and offset in bytes; `stored` counts the authentication tag."""

    chunk_id: bytes
    pack_id: str
    frame: int
    offset: int
    stored: int
    raw: int


def chunk_id(data: bytes | bytearray | memoryview, chunk_key: bytes) -> bytes:
    """BLAKE3 of the chunk, keyed, so that storage cannot test for known content."""
    return blake3.blake3(data, key=chunk_key).digest()


def pack_key(pack_id: str) -> str:
    """The storage key of a pack."""
    return f"packs/{pack_id[:2]}/{pack_id}"


def encode_chunks(chunks: Iterable[ChunkRef], packs: Sequence[PackInfo]) -> str:
    """The chunk table as base64 text; packs are written as indexes into `packs`."""
    index = {pack.pack_id: number for number, pack in enumerate(packs)}
    rows = [_ROW.pack(c.chunk_id, index[c.pack_id], c.frame, c.offset, c.stored, c.raw) for c in chunks]
    return base64.b64encode(b"".join(rows)).decode("ascii")


def decode_chunks(text: str, packs: Sequence[PackInfo]) -> list[ChunkRef]:
    """The inverse of `encode_chunks`. Raises ObjectDamaged."""
    try:
        rows = _ROW.iter_unpack(base64.b64decode(text, validate=True))
        return [ChunkRef(row[0], packs[row[1]].pack_id, *row[2:]) for row in rows]
    except (ValueError, IndexError, struct.error) as error:
        raise ObjectDamaged("the chunk table of a manifest cannot be read", why=str(error)) from error


@lru_cache(maxsize=4)
def compressor(level: int) -> zstandard.ZstdCompressor:
    """A Zstandard compressor, made once a process: its tables take longer to make than a chunk to compress."""
    return zstandard.ZstdCompressor(level=level)


@lru_cache(maxsize=1)
def decompressor() -> zstandard.ZstdDecompressor:
    """A Zstandard decompressor, made once a process."""
    return zstandard.ZstdDecompressor()


def decompress(data: bytes, raw: int) -> bytes:
    """Exactly `raw` bytes from one Zstandard frame. Raises ObjectDamaged."""
    try:
        content = decompressor().decompress(data, max_output_size=raw, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ObjectDamaged("a chunk does not decompress", why=str(error)) from error
    if len(content) != raw:
        raise ObjectDamaged("a chunk has another length than its table says", why=f"{len(content)} instead of {raw}")
    return content
