"""The layout of a page image: which run of pages lies where in which chunk.

Pure functions. An extent says that pages `first` .. `first + length - 1` (numbered from 1, as SQLite does) are the
`length` pages that begin at page `start` of chunk `chunk`. Extents of an image are sorted, do not overlap and leave no
gap.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

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


def replace(old: Sequence[Extent], new: Sequence[Extent], page_count: int) -> list[Extent]:
    """The image that has the new extents, and the old ones wherever the new say nothing, cut to page_count pages.

    Both are sorted and without overlap. Raises ValueError when the result has a gap.
    """
    result: list[Extent] = []
    pending = iter(new)
    upcoming = next(pending, None)
    position = 1

    def take_old(until: int) -> None:
        nonlocal position
        while position < until:
            extent = cursor.at(position)
            if extent is None:
                raise ValueError(f"page {position} is in no chunk")
            skip = position - extent.first
            count = min(extent.length - skip, until - position)
            result.append(Extent(position, count, extent.chunk, extent.start + skip))
            position += count

    cursor = _Cursor(old)
    while upcoming is not None:
        take_old(min(upcoming.first, page_count + 1))
        if upcoming.first != position:
            raise ValueError(f"page {upcoming.first} is given twice or lies behind the end")
        result.append(upcoming)
        position += upcoming.length
        upcoming = next(pending, None)
    take_old(page_count + 1)
    if position != page_count + 1:
        raise ValueError("the new pages reach behind the end")
    return result


class _Cursor:
    """Walks sorted extents forward."""

    def __init__(self, extents: Sequence[Extent]) -> None:
        self._extents = extents
        self._index = 0

    def at(self, page: int) -> Extent | None:
        while self._index < len(self._extents):
            extent = self._extents[self._index]
            if page < extent.first:
                return None
            if page < extent.first + extent.length:
                return extent
            self._index += 1
        return None


def renumber(extents: Iterable[Extent]) -> tuple[list[Extent], list[int]]:
    """The same image over only the chunks that it uses, numbered from 0 by first use; and their former numbers."""
    numbers: dict[int, int] = {}
    result = [extent._replace(chunk=numbers.setdefault(extent.chunk, len(numbers))) for extent in extents]
    return result, list(numbers)


def encode_layout(extents: Iterable[Extent], page_size: int, page_count: int) -> dict[str, object]:
    """The layout as it stands in a manifest."""
    rows = b"".join(_ROW.pack(*extent) for extent in extents)
    return {
        "type": "pages",
        "page_size": page_size,
        "page_count": page_count,
        "extents": base64.b64encode(rows).decode("ascii"),
    }


def decode_layout(layout: Mapping[str, Any]) -> tuple[list[Extent], int, int]:
    """Extents, page size in bytes, number of pages. Raises ObjectDamaged unless they cover every page once."""
    try:
        if layout["type"] != "pages":
            raise ValueError(f"a layout of type {layout['type']!r}")
        page_size, page_count = int(layout["page_size"]), int(layout["page_count"])
        extents = [Extent(*row) for row in _ROW.iter_unpack(base64.b64decode(layout["extents"], validate=True))]
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
    hasher = blake3.blake3
    return b"".join(
        hasher(data[i : i + page_size], key=key).digest(length=PAGE_HASH_SIZE) for i in range(0, len(data), page_size)
    )


def image_digest(blocks: bytes) -> str:
    """The digest of a whole image: BLAKE3 over its block hashes, in hex."""
    return blake3.blake3(blocks).hexdigest()
