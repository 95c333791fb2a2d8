"""Which pages hold which rows: how an incremental knows what it need not read again.

A table's b-tree is cut into segments at the borders of its bottom interior pages, the parents of leaves. The pages of
a segment (leaves and their overflow chains) come from the dbstat virtual table, its borders from the interior pages
above (https://sqlite.org/fileformat.html, section 1.6). A segment whose borders and pages are the parent's, with no
page changed, holds the parent's rows, so its digest is carried.

An error here cannot hide a difference: a drill reads every row of the restored table and compares.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import apsw

from crmbackup.core.errors import SourceError
from crmbackup.engines.sqlite import reader
from crmbackup.engines.sqlite.connection import source_errors
from crmbackup.engines.sqlite.reader import Source

_INTERIOR_TABLE, _LEAF_TABLE = 0x05, 0x0D
_FILE_HEADER = 100
_MAX_DEPTH = 20
# "temp." finds SQLite's own table even when the database has one of that name.
_DBSTAT = "temp.dbstat('main', 0)"


@dataclass(frozen=True)
class Part:
    """Rows with low < rowid <= high, and the pages that hold them in the order of dbstat's walk."""

    low: int | None
    high: int | None
    pages: array[int]


@dataclass(frozen=True)
class Structure:
    """The b-tree of a table: its interior pages above the segments, and its segments in order.

    longest: bytes of the longest row.
    """

    interior: array[int]
    parts: tuple[Part, ...]
    longest: int

    def page_total(self) -> int:
        """How many pages the table has."""
        return len(self.interior) + sum(len(part.pages) for part in self.parts)


class Tree(NamedTuple):
    """A table's b-tree. Not segmented: one part, as for WITHOUT ROWID tables."""

    table: str
    root: int
    segmented: bool


def read_structures(source: Source, trees: Sequence[Tree], page_size: int) -> list[Structure | SourceError]:
    """Structures of tables in the worker's transaction. One that cannot be read is an error in the list."""
    connection = reader.connection()
    page_count = connection.pragma("page_count")

    def page(number: int) -> bytes | bytearray:
        if not 0 < number <= page_count:
            raise apsw.CorruptError(f"the b-tree names page {number} of {page_count}")
        return reader.read_pages(source, number, 1, page_size)

    result: list[Structure | SourceError] = []
    for tree in trees:
        try:
            with source_errors(source.path, tree.table):
                borders, depth = _borders(tree.root, page, page_count) if tree.segmented else ([], 0)
                result.append(_with_pages(connection, tree.table, borders, depth))
        except SourceError as error:
            result.append(error)
    return result


def longest_rows(path: Path, tables: Sequence[str]) -> list[int]:
    """Bytes of the longest row of each table, in the worker's transaction."""
    with source_errors(path):
        query = f"SELECT max(mx_payload) FROM {_DBSTAT} WHERE name = ?"  # noqa: S608 - constants
        return [int(reader.connection().execute(query, (table,)).fetchall()[0][0] or 0) for table in tables]


def _borders(root: int, page: Callable[[int], bytes | bytearray], page_count: int) -> tuple[list[int], int]:
    """The keys between the bottom interior pages, and how many levels below the root those are."""
    level, depth = [root], 0
    borders: list[int] = []
    while depth < _MAX_DEPTH:
        first_children, _ = _interior_cells(page(level[0]), level[0])
        if not first_children:
            return [], 0  # the root is a leaf
        if page(first_children[0])[0] == _LEAF_TABLE:
            return borders, depth
        children: list[int] = []
        keys: list[int] = []
        for number, border in zip(level, [*borders, None], strict=True):
            found, own_keys = _interior_cells(page(number), number)
            if not found:
                raise apsw.CorruptError(f"page {number} is no interior page of the b-tree")
            children += found
            keys += own_keys if border is None else [*own_keys, border]
        if len(children) > page_count:
            break  # a damaged tree that leads back to itself
        level, borders, depth = children, keys, depth + 1
    raise apsw.CorruptError("the b-tree has no leaves")


def _interior_cells(data: bytes | bytearray, number: int) -> tuple[list[int], list[int]]:
    """Children and the keys between them; nothing for a leaf."""
    start = _FILE_HEADER if number == 1 else 0
    if data[start] != _INTERIOR_TABLE:
        return [], []
    children, keys = [], []
    try:
        (count,) = struct.unpack_from(">H", data, start + 3)
        (last,) = struct.unpack_from(">I", data, start + 8)
        for offset in struct.unpack_from(f">{count}H", data, start + 12):
            children.append(struct.unpack_from(">I", data, offset)[0])
            keys.append(_varint(data, offset + 4))
    except (struct.error, IndexError) as error:
        raise apsw.CorruptError(f"page {number} of the b-tree is not whole") from error
    return [*children, last], keys


def _varint(data: bytes | bytearray, offset: int) -> int:
    value = 0
    for index in range(8):
        byte = data[offset + index]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value
    value = value << 8 | data[offset + 8]
    return value - (1 << 64) if value >> 63 else value


def _with_pages(connection: apsw.Connection, table: str, borders: list[int], depth: int) -> Structure:
    query = f"SELECT path, pageno, mx_payload FROM {_DBSTAT} WHERE name = ?"  # noqa: S608 - constants
    interior, groups, longest = array("I"), [], 0
    # A path is "/" and three or more hex digits a level; the first `depth` of them name the bottom interior page.
    for prefix, members in groupby(connection.execute(query, (table,)), lambda row: row[0].split("/")[1 : depth + 1]):
        _, pages, payloads = zip(*members, strict=True)
        longest = max(longest, *payloads)
        if depth and (len(prefix) < depth or "" in prefix):
            interior.extend(pages)
        else:
            groups.append(array("I", pages))
    if len(groups) != len(borders) + 1 or any(low >= high for low, high in pairwise(borders)):
        # Not a shape that we understand: one part is always right, only slower.
        return Structure(interior, (Part(None, None, sum(groups, array("I"))),), longest)
    edges = [None, *borders, None]
    parts = tuple(Part(edges[i], edges[i + 1], pages) for i, pages in enumerate(groups))
    return Structure(interior, parts, longest)
