"""Where a snapshot's chunks lie: the chunk table of a manifest."""

from __future__ import annotations

import base64
import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from operator import eq
from typing import overload

import blake3
import zstandard

from crmbackup.core.errors import ObjectDamaged

CHUNK_ID_SIZE = 32
PACKS = "packs/"
#: chunk id | pack (index in the header's list) u32 | frame u32 | offset in the pack u64 | stored u32 | raw u32
_ROW = struct.Struct("<32sIIQII")
_PACK = struct.Struct("<I")


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
    return f"{PACKS}{pack_id[:2]}/{pack_id}"


class ChunkTable(Sequence[ChunkRef]):
    """Chunks by number, in 56 bytes each: as objects, those of a large database would need hundreds of MiB."""

    def __init__(self, rows: bytes = b"", packs: Sequence[PackInfo] = ()) -> None:
        """rows: whole rows of a manifest's table; packs: those that its header lists. Raises ValueError."""
        self._rows = bytearray(rows)
        self._packs = [pack.pack_id for pack in packs]
        self._numbers = {pack_id: number for number, pack_id in enumerate(self._packs)}
        if len(rows) % _ROW.size:
            raise ValueError(f"{len(rows)} bytes are not whole rows")
        last = max((row[1] for row in _ROW.iter_unpack(rows)), default=-1)
        if last >= len(packs):
            raise ValueError(f"it names pack {last} of {len(packs)}")

    def __len__(self) -> int:
        return len(self._rows) // _ROW.size

    @overload
    def __getitem__(self, number: int) -> ChunkRef: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[ChunkRef]: ...
    def __getitem__(self, number: int | slice) -> ChunkRef | Sequence[ChunkRef]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        row = _ROW.unpack_from(self._rows, range(len(self))[number] * _ROW.size)
        return ChunkRef(row[0], self._packs[row[1]], *row[2:])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # it grows

    def append(self, chunk: ChunkRef) -> None:
        """Add one behind the others."""
        pack = self._numbers.setdefault(chunk.pack_id, len(self._packs))
        if pack == len(self._packs):
            self._packs.append(chunk.pack_id)
        self._rows += _ROW.pack(chunk.chunk_id, pack, chunk.frame, chunk.offset, chunk.stored, chunk.raw)

    def extend(self, chunks: Iterable[ChunkRef]) -> None:
        """Add several behind the others, in order."""
        for chunk in chunks:
            self.append(chunk)

    def by_pack(self, numbers: Iterable[int] | None = None) -> dict[str, array[int]]:
        """Which of the chunks, or of all of them, lie in each pack. Packs come in the order in which they are needed."""
        found: dict[str, array[int]] = {}
        for number in range(len(self)) if numbers is None else numbers:
            pack = _PACK.unpack_from(self._rows, number * _ROW.size + CHUNK_ID_SIZE)[0]
            found.setdefault(self._packs[pack], array("I")).append(number)
        return found

    def id_at(self, number: int) -> bytes:
        """The id of a chunk."""
        start = number * _ROW.size
        return bytes(self._rows[start : start + CHUNK_ID_SIZE])


class ChunkIndex(Mapping[bytes, ChunkRef]):
    """Chunks by their ids, in 60 bytes each. Of several with one id the last counts."""

    def __init__(self, table: ChunkTable) -> None:
        self._table = table
        numbers = sorted(range(len(table)), key=table.id_at)
        repeated = {a for a, b in pairwise(numbers) if table.id_at(a) == table.id_at(b)}
        self._order = array("I", (number for number in numbers if number not in repeated))

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[bytes]:
        return map(self._table.id_at, self._order)

    def __getitem__(self, identifier: bytes) -> ChunkRef:
        place = bisect_left(self._order, identifier, key=self._table.id_at)
        if place == len(self._order) or self._table.id_at(self._order[place]) != identifier:
            raise KeyError(identifier)
        return self._table[self._order[place]]


def encode_chunks(chunks: Iterable[ChunkRef], packs: Sequence[PackInfo]) -> str:
    """The chunk table as base64 text; packs are written as indexes into `packs`."""
    index = {pack.pack_id: number for number, pack in enumerate(packs)}
    rows = bytearray()
    for c in chunks:
        rows += _ROW.pack(c.chunk_id, index[c.pack_id], c.frame, c.offset, c.stored, c.raw)
    return base64.b64encode(rows).decode("ascii")


def decode_chunks(text: str, packs: Sequence[PackInfo]) -> ChunkTable:
    """The inverse of `encode_chunks`. Raises ObjectDamaged."""
    try:
        return ChunkTable(base64.b64decode(text, validate=True), packs)
    except ValueError as error:
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
