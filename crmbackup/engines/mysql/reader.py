"""What runs in the workers: opening a view, and reading slices from it.

A worker process holds at most one view, in a module variable, because tasks reach it as plain function calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from crmbackup.core.errors import SourceUnreadable
from crmbackup.engines.base import ParentChunk, SliceData
from crmbackup.engines.mysql.catalog import Table
from crmbackup.engines.mysql.connection import Connection, Server, connect, execute, source_errors
from crmbackup.engines.mysql.keys import Key, between, key_of, order_by
from crmbackup.engines.mysql.protocol import Sent
from crmbackup.engines.mysql.rows import PIECE_BYTES, Piece, read_changed, read_rows

#: Tables that one statement touches.
_BATCH = 50
#: A range that grew beyond so many pieces is cut again.
_GROWN = 4
#: Bytes that are held of what may be as it was.
_MOST_SENT = 8 * 1024 * 1024

#: What the server sent last.
_room = bytearray()
_connection: Connection | None = None
_server: Server | None = None


def connect_here(server: Server) -> None:
    """Connect this worker."""
    global _connection, _server  # noqa: PLW0603 - see the module's docstring
    leave()
    with source_errors(server):
        _connection = connect(server)
    _server = server


def open_view(lock_seconds: int) -> None:
    """Open this worker's view; all workers do, while commits are held."""
    connection, server = current()
    with source_errors(server):
        begin(connection, lock_seconds)


def begin(connection: Connection, lock_seconds: int) -> None:
    """Begin a view that sees one moment. Raises pymysql.Error."""
    execute(connection, f"SET SESSION lock_wait_timeout = {lock_seconds}")
    execute(connection, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    execute(connection, "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")


def touch_all(tables: Sequence[str]) -> None:
    """`touch` in this worker."""
    connection, server = current()
    with source_errors(server):
        touch(connection, tables)


def touch(connection: Connection, tables: Sequence[str]) -> None:
    """Read a row of each table: its definition is locked from then on. Raises pymysql.Error."""
    for start in range(0, len(tables), _BATCH):
        parts = [f"(SELECT 1 FROM {table} LIMIT 1)" for table in tables[start : start + _BATCH]]
        execute(connection, " UNION ALL ".join(parts))


def leave() -> None:
    """Close the connection of this worker, if it has one."""
    global _connection  # noqa: PLW0603 - see the module's docstring
    if _connection is not None and _connection.open:
        _connection.close()
    _connection = None


def current() -> tuple[Connection, Server]:
    """The connection of this worker, within its view."""
    if _connection is None or _server is None:
        raise SourceUnreadable("this worker has not joined a snapshot")
    return _connection, _server


class RowFacts(NamedTuple):
    """Of one chunk. size in bytes of its lines. place: which of the slice's ranges it is of. last: the key of its last
    row, empty for tables without a key. sent: how the server sends just these rows, None if that is not known.
    """

    rows: int
    checksum: int
    size: int
    place: int
    last: Key
    sent: Sent | None


class Unchanged(NamedTuple):
    """A range of which all is as the parent has it. place: as in `RowFacts`."""

    place: int


class Range(NamedTuple):
    """Rows with low < key <= high; an empty key is open-ended. whole: becomes one chunk unless it grew a lot. parent: the
    chunk that it was in the parent, if it was one alone; sent: how the server sent that.
    """

    low: Key
    high: Key
    whole: bool = False
    parent: ParentChunk | None = None
    sent: Sent | None = None


@dataclass(frozen=True)
class TableSlice:
    """Some ranges of a table, one after the other; size in bytes, by estimate. piece: bytes of a chunk. key: of digests of
    what is sent, None for none.
    """

    server: Server
    table: Table
    ranges: tuple[Range, ...]
    size: int
    piece: int = PIECE_BYTES
    key: bytes | None = None

    def read(self) -> Iterator[SliceData]:
        """The rows as lines; nothing without rows."""
        connection, _ = current()
        table = self.table
        with source_errors(self.server, f"table {table.name}"):
            for place, found in enumerate(self.ranges):
                pieces = self._pieces(connection, found)
                if pieces is None:
                    assert found.parent is not None
                    yield SliceData(found.parent, Unchanged(place))
                    continue
                for piece in pieces:
                    last = key_of(piece.last, table.columns, table.key)
                    facts = RowFacts(piece.rows, piece.checksum, len(piece.payload), place, last, piece.sent)
                    yield SliceData(piece.payload, facts)

    def _pieces(self, connection: Connection, found: Range) -> Iterator[Piece] | None:
        """Of one range; None if it is as it was."""
        table = self.table
        rest = between(table.key, found.low, found.high) + order_by(table.key)
        limit = _GROWN * self.piece if found.whole else self.piece
        if found.sent and found.sent.size <= _MOST_SENT and self.key:
            return read_changed(
                connection, table.source, table.columns, rest, piece=limit, key=self.key, sent=found.sent, room=_room
            )
        return read_rows(connection, table.source, table.columns, rest, piece=limit, key=self.key)


@dataclass(frozen=True)
class DefinitionsSlice:
    """The definitions, as they are shipped."""

    payload: bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.payload)

    def read(self) -> Iterator[SliceData]:
        """In pieces."""
        step = _GROWN * PIECE_BYTES
        for start in range(0, max(1, len(self.payload)), step):
            yield SliceData(self.payload[start : start + step], None)
