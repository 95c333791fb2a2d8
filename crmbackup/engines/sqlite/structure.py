"""Which pages hold which rows: how an incremental knows what it need not read again.

A table's b-tree is cut into segments at the borders of its bottom interior pages, the parents of leaves. The pages of
a segment (leaves and their overflow chains) come from the dbstat virtual table, its borders from the interior pages
above. A segment whose borders and pages are the parent's, with no page changed, holds the parent's rows, so its digest
is carried. While no page above the bottom interior ones changes, all borders stay: then the pages below those that did
change are walked, and no others.

An error here cannot hide a difference: a drill reads every row of the restored table and compares.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import apsw

from crmbackup.core.errors import SourceError
from crmbackup.engines.sqlite import reader
from crmbackup.engines.sqlite.btree import LEAF_TABLE, GetPage, interior_cells, walk_bottom
from crmbackup.engines.sqlite.connection import source_errors
from crmbackup.engines.sqlite.pagelists import PageList, PageListWriter
from crmbackup.engines.sqlite.reader import Source

_MAX_DEPTH = 20
#: The byte of the file's header that says how many bytes at the end of each page are not used.
_RESERVED = 20
_PAGES_AT_A_TIME = 4096
# "temp." finds SQLite's own table even when the database has one of that name.
_DBSTAT = "temp.dbstat('main', 0)"


@dataclass(frozen=True, slots=True)
class Part:
    """Rows with low < rowid <= high, and the pages that hold them in the order of dbstat's walk."""

    low: int | None
    high: int | None
    pages: PageList


@dataclass(frozen=True)
class Structure:
    """The b-tree of a table: its interior pages above the segments, and its segments in order.

    longest: bytes of the longest row. average: bytes of pages for a row, when all pages were last walked.
    """

    interior: PageList
    parts: tuple[Part, ...]
    longest: int
    average: int


class Tree(NamedTuple):
    """A table's b-tree. Not segmented: one part, as for WITHOUT ROWID tables.

    stale: the bottom interior pages of the parts that changed, where nothing above them did; empty to walk everything.
    """

    table: str
    root: int
    segmented: bool
    stale: tuple[int, ...] = ()


class Rewalked(NamedTuple):
    """The pages of the parts that were stale, in order; bytes of the longest row in them."""

    pages: tuple[PageList, ...]
    longest: int


def read_structures(
    source: Source, trees: Sequence[Tree], page_size: int, pages: Path
) -> list[Structure | Rewalked | SourceError]:
    """Structures of tables in the worker's transaction. One that cannot be read is an error in the list.

    pages: the new file for the lists of their pages. Raises LocalError when that cannot be written.
    """
    connection = reader.connection()
    page_count = connection.pragma("page_count")
    usable = page_size - reader.read_pages(source, 1, 1, page_size)[_RESERVED]

    def page(number: int) -> bytes | bytearray:
        if not 0 < number <= page_count:
            raise apsw.CorruptError(f"the b-tree names page {number} of {page_count}")
        return reader.read_pages(source, number, 1, page_size)

    result: list[Structure | Rewalked | SourceError] = []
    with PageListWriter(pages) as writer:
        for tree in trees:
            try:
                with source_errors(source.path, tree.table):
                    rewalked = _rewalked(tree, page, usable, writer) if tree.stale else None
                    if rewalked:
                        result.append(rewalked)
                        continue
                    borders, depth = _borders(tree.root, page, page_count) if tree.segmented else ([], 0)
                    result.append(_with_pages(connection, tree.table, page_size, borders, depth, writer))
            except SourceError as error:
                result.append(error)
    return result


def longest_rows(path: Path, tables: Sequence[str]) -> list[int]:
    """Bytes of the longest row of each table, in the worker's transaction."""
    with source_errors(path):
        query = f"SELECT max(mx_payload) FROM {_DBSTAT} WHERE name = ?"  # noqa: S608 - constants
        return [int(reader.connection().execute(query, (table,)).fetchall()[0][0] or 0) for table in tables]


def _borders(root: int, page: GetPage, page_count: int) -> tuple[list[int], int]:
    """The keys between the bottom interior pages, and how many levels below the root those are."""
    level, depth = [root], 0
    borders: list[int] = []
    while depth < _MAX_DEPTH:
        first_children, _ = interior_cells(page(level[0]), level[0])
        if not first_children:
            return [], 0  # the root is a leaf
        if page(first_children[0])[0] == LEAF_TABLE:
            return borders, depth
        children: list[int] = []
        keys: list[int] = []
        for number, border in zip(level, [*borders, None], strict=True):
            found, own_keys = interior_cells(page(number), number)
            if not found:
                raise apsw.CorruptError(f"page {number} is no interior page of the b-tree")
            children += found
            keys += own_keys if border is None else [*own_keys, border]
        if len(children) > page_count:
            break  # a damaged tree that leads back to itself
        level, borders, depth = children, keys, depth + 1
    raise apsw.CorruptError("the b-tree has no leaves")


def _rewalked(tree: Tree, page: GetPage, usable: int, writer: PageListWriter) -> Rewalked | None:
    """None when the tree has another shape than it had."""
    found, longest = [], 0
    for root in tree.stale:
        start = writer.count
        row = walk_bottom(page, root, usable, writer.add)
        if row is None:
            return None
        found.append(writer.since(start))
        longest = max(longest, row)
    return Rewalked(tuple(found), longest)


def _with_pages(
    connection: apsw.Connection, table: str, page_size: int, borders: list[int], depth: int, writer: PageListWriter
) -> Structure:
    query = f"SELECT path, pageno, mx_payload, ncell FROM {_DBSTAT} WHERE name = ?"  # noqa: S608 - constants
    interior, starts, longest, cells, first = array("I"), [], 0, 0, writer.count
    before: list[str] | None = None
    pages = array("I")
    # A path is "/" and three or more hex digits a level; the first `depth` of them name the bottom interior page.
    for path, page, payload, held in connection.execute(query, (table,)):
        longest = max(longest, payload)
        cells += held
        prefix = path.split("/")[1 : depth + 1]
        above = depth and (len(prefix) < depth or "" in prefix)
        if above:
            interior.append(page)
        elif prefix != before or len(pages) == _PAGES_AT_A_TIME:
            writer.add(pages)
            pages = array("I", (page,))
            if prefix != before:
                starts.append(writer.count)
        else:
            pages.append(page)
        before = prefix
    writer.add(pages)
    if len(starts) != len(borders) + 1 or any(low >= high for low, high in pairwise(borders)):
        # Not a shape that we understand: one part is always right, only slower.
        borders, starts = [], [first]
    edges = [None, *borders, None]
    ends = [*starts[1:], writer.count]
    parts = tuple(
        Part(edges[i], edges[i + 1], PageList(writer.path, start, end - start))
        for i, (start, end) in enumerate(zip(starts, ends, strict=True))
    )
    start = writer.count
    writer.add(interior)
    # Cells of interior pages, which are no rows, are a few in a hundred.
    return Structure(writer.since(start), parts, longest, (start - first) * page_size // max(1, cells))
