"""Which tables lie in damaged parts of an image: the rest of it is put together in memory and its b-trees are walked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import apsw

from crmbackup.engines.sqlite.pages import decode_layout

#: Bytes of the largest image that is put together; of larger ones only the pages are told.
LARGEST = 128 * 1024 * 1024
_VERSIONS = slice(18, 20)  # of the file format: 2 asks for a write-ahead log, which an image in memory cannot have


def touched(layout: Mapping[str, Any], damaged: Collection[int], read: Callable[[int], bytes | None]) -> Sequence[str]:
    """See `engines.base.TargetEngine`."""
    extents, page_size, page_count = decode_layout(layout)
    lost = [range(e.first, e.first + e.length) for e in extents if e.chunk in damaged]
    if not lost:
        return []
    count = sum(len(run) for run in lost)
    pages = [f"{count} of the file's {page_count} pages, from {lost[0].start} to {lost[-1].stop - 1}"]
    if page_size * page_count > LARGEST:
        return pages
    image = bytearray(page_size * page_count)
    chunks: dict[int, bytes] = {}
    for extent in extents:
        if extent.chunk not in damaged:
            chunk = chunks.get(extent.chunk)
            if chunk is None:
                found = read(extent.chunk)
                if found is None:
                    lost.append(range(extent.first, extent.first + extent.length))
                    continue
                chunk = chunks[extent.chunk] = found
            begin = extent.start * page_size
            image[(extent.first - 1) * page_size : (extent.first - 1 + extent.length) * page_size] = chunk[
                begin : begin + extent.length * page_size
            ]
    image[_VERSIONS] = b"\x01\x01"
    names = _tables(bytes(image), {page for run in lost for page in run})
    return pages if names is None else names or ["no table: free pages"]


def _tables(image: bytes, lost: Collection[int]) -> list[str] | None:
    """The tables that have a lost page themselves or in an index; None when not even their names can be read."""
    connection = apsw.Connection(":memory:")
    try:
        connection.deserialize("main", image)
        entries = list(connection.execute("SELECT name, tbl_name FROM sqlite_schema WHERE rootpage > 0"))
        if 1 in lost or _walk_meets(connection, "sqlite_schema", lost):
            return None
        return list(dict.fromkeys(table for name, table in entries if _walk_meets(connection, name, lost)))
    except apsw.Error:
        return None
    finally:
        connection.close()


def _walk_meets(connection: apsw.Connection, tree: str, lost: Collection[int]) -> bool:
    """Whether a b-tree has a lost page, or cannot be walked, which a lost page in it is the cause of."""
    try:
        return any(page in lost for (page,) in connection.execute("SELECT pageno FROM dbstat WHERE name = ?", (tree,)))
    except apsw.Error:
        return True
