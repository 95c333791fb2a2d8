"""The layout of a page image: which run of pages lies where in which chunk.

Pure functions. An extent says that pages `first` .. `first + length - 1` (numbered from 1, as SQLite does) are the
`length` pages that begin at page `start` of chunk `chunk`. Extents of an image are sorted, do not overlap and leave no
gap.
"""

from __future__ import annotations

import base64
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import starmap
from operator import eq
from typing import Any, NamedTuple, overload

import blake3

from crmbackup.core.errors import ObjectDamaged

BLOCK_SIZE = 64 * 1024  # a multiple of every SQLite page size
BLOCK_HASH_SIZE = 32
PAGE_HASH_SIZE = 16
_ROW = struct.Struct("<IIII")


class Extent(NamedTuple):
    """A run of `length` pages from page `first`, which begin at page `start` of chunk `chunk`."""

    first: int
    length: int
    chunk: int
    start: int


class Extents(Sequence[Extent]):
    """Extents in 16 bytes each, as in a manifest: scattered changes make hundreds of thousands."""

    def __init__(self, rows: bytes | bytearray) -> None:
        """rows: whole rows, one behind the other."""
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows) // _ROW.size

    @overload
    def __getitem__(self, number: int) -> Extent: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Extent]: ...
    def __getitem__(self, number: int | slice) -> Extent | Sequence[Extent]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        return Extent(*_ROW.unpack_from(self._rows, range(len(self))[number] * _ROW.size))

    def __iter__(self) -> Iterator[Extent]:
        return starmap(Extent, _ROW.iter_unpack(self._rows))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(eq, self, other))

    __hash__ = None  # type: ignore[assignment]  # equal to lists

    def chunk(self, number: int) -> int:
        """The chunk of one of them."""
        return self[number].chunk

    def encode(self) -> str:
        """As base64 text."""
        return base64.b64encode(self._rows).decode("ascii")


def runs(pages: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Ascending page numbers as (first, count) runs."""
    first = last = 0
    for page in pages:
        if first and page == last + 1:
            last = page
            continue
        if first:
            yield first, last - first + 1
        first = last = page
    if first:
        yield first, last - first + 1


def replace(old: Iterable[Extent], new: Iterable[Extent], page_count: int) -> Iterator[Extent]:
    """The image that has the new extents, and the old ones wherever the new say nothing, cut to page_count pages.

    Both are sorted and without overlap. Raises ValueError when the result has a gap.
    """
    cursor = _Cursor(old)
    position = 1
    for upcoming in new:
        yield from cursor.between(position, min(upcoming.first, page_count + 1))
        if upcoming.first < position or upcoming.first > page_count:
            raise ValueError(f"page {upcoming.first} is given twice or lies behind the end")
        yield upcoming
        position = upcoming.first + upcoming.length
    yield from cursor.between(position, page_count + 1)
    if position > page_count + 1:
        raise ValueError("the new pages reach behind the end")


class _Cursor:
    """Walks sorted extents forward."""

    def __init__(self, extents: Iterable[Extent]) -> None:
        self._following = iter(extents)
        self._extent = next(self._following, None)

    def between(self, position: int, until: int) -> Iterator[Extent]:
        """What has the pages from `position` on, up to the one before `until`. Raises ValueError for a gap."""
        while position < until:
            extent = self._extent
            if extent is None or position < extent.first:
                raise ValueError(f"page {position} is in no chunk")
            skip = position - extent.first
            if skip >= extent.length:
                self._extent = next(self._following, None)
                continue
            count = min(extent.length - skip, until - position)
            yield Extent(position, count, extent.chunk, extent.start + skip)
            position += count


def renumber(extents: Iterable[Extent]) -> tuple[Extents, array[int]]:
    """The same image over only the chunks that it uses, numbered from 0 by first use; and their former numbers."""
    numbers: dict[int, int] = {}
    rows = bytearray()
    for first, length, chunk, start in extents:
        rows += _ROW.pack(first, length, numbers.setdefault(chunk, len(numbers)), start)
    return Extents(rows), array("I", numbers)


def encode_layout(extents: Extents, page_size: int, page_count: int) -> dict[str, object]:
    """The layout as it stands in a manifest."""
    return {"type": "pages", "page_size": page_size, "page_count": page_count, "extents": extents.encode()}


def decode_layout(layout: Mapping[str, Any]) -> tuple[Extents, int, int]:
    """Extents, page size in bytes, number of pages. Raises ObjectDamaged unless they cover every page once."""
    try:
        if layout["type"] != "pages":
            raise ValueError(f"a layout of type {layout['type']!r}")
        page_size, page_count = int(layout["page_size"]), int(layout["page_count"])
        extents = Extents(base64.b64decode(layout["extents"], validate=True))
        if page_size <= 0 or BLOCK_SIZE % page_size:
            raise ValueError(f"a page size of {page_size}")
        position = 1
        for extent in extents:
            if extent.first != position or extent.length < 1:
                raise ValueError(f"page {position} is missing")
            position += extent.length
        if position != page_count + 1:
            raise ValueError("pages are missing at the end")
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise ObjectDamaged("the layout of a snapshot cannot be read", why=str(error)) from error
    return extents, page_size, page_count


def block_hashes(data: memoryview) -> bytes:
    """The BLAKE3 of each block of BLOCK_SIZE bytes (the last may be shorter), one behind the other."""
    hasher = blake3.blake3
    return b"".join(hasher(data[i : i + BLOCK_SIZE]).digest() for i in range(0, len(data), BLOCK_SIZE))


def page_hashes(data: memoryview, page_size: int, key: bytes) -> bytes:
    """The keyed 16-byte BLAKE3 of each page, one behind the other."""
    hasher = blake3.blake3(key=key)
    found = []
    for start in range(0, len(data), page_size):
        hasher.reset()  # a new one for each page would take a third longer
        found.append(hasher.update(data[start : start + page_size]).digest(length=PAGE_HASH_SIZE))
    return b"".join(found)


def image_digest(parts: Iterable[bytes]) -> str:
    """The digest of a whole image: BLAKE3 over its block hashes, in hex. parts: those of its parts, in order."""
    hasher = blake3.blake3()
    for blocks in parts:
        hasher.update(blocks)
    return hasher.hexdigest()
