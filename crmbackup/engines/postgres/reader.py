"""What runs in the workers: joining a snapshot, and reading slices of it.

A worker process holds at most one open transaction, in a module variable, because tasks reach it as plain function
calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg

from crmbackup.core.errors import SourceUnreadable
from crmbackup.engines.base import SliceData
from crmbackup.engines.postgres.catalog import Table
from crmbackup.engines.postgres.connection import Server, connect, source_errors
from crmbackup.engines.postgres.horizon import new_since
from crmbackup.engines.postgres.rows import copy_out

Connection = psycopg.Connection[tuple[Any, ...]]

#: TID ranges are efficient since 14; before, a list of all possible TIDs of the blocks is.
_TID_RANGES = 140000
_RESTRICTION = 170000
#: What one piece of a large object is read as; at most 1 GB in PostgreSQL, small to keep lines short.
LARGE_OBJECT_PIECE = 256 * 1024
#: A query of its own for a table takes as long as reading about so many bytes of rows does.
_QUERY_BYTES = 64 * 1024

_connection: Connection | None = None
_server: Server | None = None


def join(server: Server, snapshot: str, locks: Sequence[str], lock_seconds: float) -> None:
    """Open a connection in this worker, adopt the snapshot, and lock all tables against changes of their shape."""
    global _connection, _server  # noqa: PLW0603 - see the module's docstring
    leave()
    _server = server
    with source_errors(server):
        connection = connect(server)
        _connection = connection
        begin(connection, lock_seconds)
        connection.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'".encode("ascii"))
        for lock in locks:
            connection.execute(lock.encode(connection.info.encoding))


def begin(connection: Connection, lock_seconds: float) -> None:
    """Begin a transaction that sees one moment. Raises psycopg.Error."""
    text = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"
    text += f"; SET LOCAL lock_timeout = {max(1, int(lock_seconds * 1000))}"
    if connection.info.server_version >= _RESTRICTION:
        # As pg_dump does: what comes in the place of a table runs no code of its owner's. Never in a session that
        # restores: checks and materialised views may read views.
        text += "; SET LOCAL restrict_nonsystem_relation_kind = 'view, foreign-table'"
    connection.execute(text.encode("ascii"))


def leave() -> None:
    """Close the connection of this worker, if it has one."""
    global _connection  # noqa: PLW0603 - see the module's docstring
    if _connection is not None:
        _connection.close()
    _connection = None


def current() -> Connection:
    """The connection of this worker, within its transaction."""
    if _connection is None:
        raise SourceUnreadable("this worker has not joined a snapshot")
    return _connection


class RowFacts(NamedTuple):
    """Of one chunk."""

    rows: int
    checksum: int


@dataclass(frozen=True)
class TableSlice:
    """Rows of a table: of blocks `first` to `last` without the latter, or all of them."""

    server: Server
    table: Table
    first: int | None
    last: int

    @property
    def size(self) -> int:
        """Bytes in the table's files, or what takes as long as a query does."""
        return max(_QUERY_BYTES, self.table.size if self.first is None else (self.last - self.first) * self.table.width)

    def read(self) -> Iterator[SliceData]:
        """The rows as COPY text; nothing without rows."""
        connection = current()
        with source_errors(self.server, f"table {self.table.label}"):
            where = "" if self.first is None else in_blocks(connection, self.first, self.last)
            for piece in copy_out(connection, self.table.copy_sql(where)):
                yield SliceData(piece.payload, RowFacts(piece.rows, piece.checksum))


def in_blocks(connection: Connection, first: int, last: int) -> str:
    """An SQL condition: the row lies in these blocks of its table's file."""
    if connection.info.server_version >= _TID_RANGES:
        return f"ctid >= '({first},0)'::tid AND ctid < '({last},0)'::tid"
    # MaxHeapTuplesPerPage: a page's header has 24 bytes, a line pointer 4, the smallest tuple 24.
    return (
        "ctid = ANY (ARRAY(SELECT pg_catalog.format('(%s,%s)', b, i)::tid"
        f" FROM pg_catalog.generate_series({first}, {last - 1}) b,"
        " pg_catalog.generate_series(1, (pg_catalog.current_setting('block_size')::int - 24) / 28) i))"
    )


class SliceCount(NamedTuple):
    """What a slice shows: its rows, and those at or above the parent's horizon."""

    rows: int
    new: int


def count_tables(tables: Sequence[Table], horizon: int) -> list[SliceCount]:
    """The counts of some small tables, each as a whole, in one statement. Runs in a worker; reads no TOAST."""
    counts = _counts(horizon)
    selects = (f"SELECT {number}, {counts} FROM ONLY {table.sql}" for number, table in enumerate(tables))
    what = f"one of the tables from {tables[0].label} to {tables[-1].label}"
    found = dict(_found(" UNION ALL ".join(selects), what))
    return [found[number] for number in range(len(tables))]


def count_slices(table: Table, first: int, last: int, step: int, horizon: int) -> list[SliceCount]:
    """The counts of each run of `step` blocks between two blocks. Runs in a worker; reads no TOAST.

    Before 14 this reads the whole table, whatever the blocks: ask for all of it at once.
    """
    connection = current()
    counts = _counts(horizon)
    if connection.info.server_version >= _TID_RANGES:
        sql = (
            f"SELECT s.b, t.* FROM pg_catalog.generate_series({first}, {last - 1}, {step}) s(b), LATERAL"
            f" (SELECT {counts} FROM ONLY {table.sql} WHERE ctid >= pg_catalog.format('(%s,0)', s.b)::tid"
            f" AND ctid < pg_catalog.format('(%s,0)', least(s.b + {step}, {last}))::tid) t"
        )
    else:
        block = "(ctid::text::point)[0]::bigint"
        sql = f"SELECT {block} / {step} * {step}, {counts} FROM ONLY {table.sql} GROUP BY 1"
    found = dict(_found(sql, f"table {table.label}"))
    return [found.get(block, SliceCount(0, 0)) for block in range(first, last, step)]


def _counts(horizon: int) -> str:
    return f"count(*), count(*) FILTER (WHERE {new_since(horizon)})"


def _found(sql: str, what: str) -> Iterator[tuple[int, SliceCount]]:
    assert _server is not None
    connection = current()
    with source_errors(_server, what):
        for number, *counts in connection.execute(sql.encode(connection.info.encoding)):
            yield number, SliceCount(*counts)


@dataclass(frozen=True)
class LargeObjectSlice:
    """Some large objects, as lines of oid, offset and bytes. One without bytes has one line."""

    server: Server
    oids: tuple[int, ...]

    @property
    def size(self) -> int:
        """A guess: their sizes are known only when they are read."""
        return len(self.oids) * LARGE_OBJECT_PIECE

    def read(self) -> Iterator[SliceData]:
        """Within the snapshot: large objects are read by their functions, which need no superuser."""
        piece = LARGE_OBJECT_PIECE
        oids = ",".join(map(str, self.oids))
        sql = (
            "COPY (WITH RECURSIVE p(loid, pos, data) AS ("
            f"SELECT o, 0::bigint, pg_catalog.lo_get(o, 0, {piece}) FROM pg_catalog.unnest('{{{oids}}}'::oid[]) o"
            f" UNION ALL SELECT loid, pos + {piece}, pg_catalog.lo_get(loid, pos + {piece}, {piece}) FROM p"
            f" WHERE pg_catalog.length(data) = {piece})"
            " SELECT loid, pos, data FROM p WHERE pos = 0 OR pg_catalog.length(data) > 0) TO STDOUT"
        )
        with source_errors(self.server, "large objects"):
            for found in copy_out(current(), sql):
                yield SliceData(found.payload, RowFacts(found.rows, found.checksum))
