"""Reading the pages of a table's b-tree by hand. Source of the format: https://sqlite.org/fileformat.html, section 1.6."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterator

import apsw

INTERIOR_TABLE, LEAF_TABLE = 0x05, 0x0D
FILE_HEADER = 100
_INTERIOR_HEADER, _LEAF_HEADER = 12, 8
_OVERFLOW = struct.Struct(">I")
_LONGEST_ROW = 2**31
_PAGES_AT_A_TIME = 4096

#: Gives a page by its number. Raises apsw.CorruptError for one that is not there.
GetPage = Callable[[int], bytes | bytearray]


def interior_cells(data: bytes | bytearray, number: int) -> tuple[list[int], list[int]]:
    """Children and the keys between them; nothing for a leaf. Raises apsw.CorruptError."""
    start = _start(number)
    if data[start] != INTERIOR_TABLE:
        return [], []
    children, keys = [], []
    try:
        (count,) = struct.unpack_from(">H", data, start + 3)
        (last,) = struct.unpack_from(">I", data, start + 8)
        for offset in struct.unpack_from(f">{count}H", data, start + _INTERIOR_HEADER):
            children.append(struct.unpack_from(">I", data, offset)[0])
            key, _ = _varint(data, offset + 4)
            keys.append(key - (1 << 64) if key >> 63 else key)
    except (struct.error, IndexError) as error:
        raise _not_whole(number) from error
    return [*children, last], keys


def walk_bottom(page: GetPage, root: int, usable: int, add: Callable[[array[int]], None]) -> int | None:
    """Walk from a bottom interior page, or from a leaf that is a whole table, as dbstat does: each leaf, then the overflow
    pages of its rows. Gives the bytes of the longest row; None when the root is neither.

    usable: bytes of a page without what is reserved at its end. add: takes the pages, some at a time. Raises
    apsw.CorruptError.
    """
    children, _ = interior_cells(page(root), root)
    if children:
        add(array("I", [root]))
    longest = 0
    for leaf in children or [root]:
        data = page(leaf)
        if data[_start(leaf)] != LEAF_TABLE:
            return None
        pages = array("I", [leaf])
        for size, first in _leaf_cells(data, leaf, usable):
            longest = max(longest, size)
            for number in _overflow(page, first, size, usable):
                pages.append(number)
                if len(pages) == _PAGES_AT_A_TIME:
                    add(pages)
                    pages = array("I")
        add(pages)
    return longest


def _leaf_cells(data: bytes | bytearray, number: int, usable: int) -> list[tuple[int, int]]:
    """Of each row its bytes, and its first overflow page or 0."""
    start = _start(number)
    found = []
    try:
        (count,) = struct.unpack_from(">H", data, start + 3)
        for offset in struct.unpack_from(f">{count}H", data, start + _LEAF_HEADER):
            size, at = _varint(data, offset)
            if size > _LONGEST_ROW:
                raise _not_whole(number)
            first = 0
            if size > usable - 35:
                _, at = _varint(data, at)
                (first,) = _OVERFLOW.unpack_from(data, at + _local(size, usable))
            found.append((size, first))
    except (struct.error, IndexError) as error:
        raise _not_whole(number) from error
    return found


def _local(size: int, usable: int) -> int:
    """Bytes of a row that has overflow pages which lie on the leaf."""
    least = (usable - 12) * 32 // 255 - 23
    wanted = least + (size - least) % (usable - 4)
    return wanted if wanted <= usable - 35 else least


def _overflow(page: GetPage, number: int, size: int, usable: int) -> Iterator[int]:
    """The overflow pages of a row, if it has any."""
    if number:
        for _ in range(-(-(size - _local(size, usable)) // (usable - 4))):
            yield number
            (number,) = _OVERFLOW.unpack_from(page(number))


def _varint(data: bytes | bytearray, offset: int) -> tuple[int, int]:
    """An unsigned number and what is behind it."""
    value = 0
    for index in range(offset, offset + 8):
        byte = data[index]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, index + 1
    return value << 8 | data[offset + 8], offset + 9


def _start(number: int) -> int:
    return FILE_HEADER if number == 1 else 0


def _not_whole(number: int) -> apsw.CorruptError:
    return apsw.CorruptError(f"page {number} of the b-tree is not whole")
