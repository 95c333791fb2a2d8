"""Rows as lines, in pieces of bounded size, counted and summed.

Checksum "mysql-xxh3-sum-1": the number of rows and the sum of `sums.py` over each row's line as `columns.py` says, its
line feed included.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple, cast

from crmbackup.engines.mysql.columns import Column, escaped, fields_sql, line_sql
from crmbackup.engines.mysql.connection import Connection, execute
from crmbackup.engines.mysql.protocol import ColumnQuery, Lines, Sent, all_columns, read_packets
from crmbackup.engines.sums import sum_lines

ALGORITHM = "mysql-xxh3-sum-1"
#: Bytes of lines in one piece, or a little more; unless rows are long.
PIECE_BYTES = 1024 * 1024


class Piece(NamedTuple):
    """Whole rows. checksum: their sum, below 2^128. last: the last row's line. sent: how the server sends just these rows,
    None if that is not known.
    """

    payload: bytes
    rows: int
    checksum: int
    last: bytes
    sent: Sent | None = None


class LineTooLongError(Exception):
    """The server could not write a line, since it is longer than its max_allowed_packet."""


def read_rows(
    connection: Connection,
    table: str,
    columns: tuple[Column, ...],
    rest: str,
    *,
    piece: int = PIECE_BYTES,
    key: bytes | None = None,
) -> Iterator[Piece]:
    """The rows of a quoted table; rest: what follows its name in a SELECT. No piece when there are none. key: of the
    digests of what is sent, none without.

    Raises pymysql.Error. Within one transaction: where a row is too long to be written as a line by the server, all
    rows are read again from the piece on that it would be in.
    """
    query = ColumnQuery(connection, f"SELECT {line_sql(columns)} FROM {table}{rest}", key)
    return _pieces(query, connection, table, columns, rest, piece)


def read_changed(
    connection: Connection,
    table: str,
    columns: tuple[Column, ...],
    rest: str,
    *,
    piece: int,
    key: bytes,
    sent: Sent,
    room: bytearray,
) -> Iterator[Piece] | None:
    """As `read_rows`; None, at a fraction of the cost, if the server sends what it sent before: all rows are as they were.

    A digest of the bytes alone is made: no row is cut out of them, and no sum taken. room: as in `ColumnQuery`.
    """
    query = ColumnQuery(connection, f"SELECT {line_sql(columns)} FROM {table}{rest}", key)
    return None if query.is_still(sent, room) else _pieces(query, connection, table, columns, rest, piece)


def _pieces(
    query: ColumnQuery, connection: Connection, table: str, columns: tuple[Column, ...], rest: str, piece: int
) -> Iterator[Piece]:
    done = 0
    try:
        for lines in _lines(query, piece):
            rows = cast("list[bytes]", lines.rows)
            yield _piece(rows, lines.sent)
            done += len(rows)
    except LineTooLongError:
        long = _long_lines(connection, f"SELECT {fields_sql(columns)} FROM {table}{rest}", done)
        yield from map(_piece, _grouped(long, piece))


def _piece(lines: list[bytes], sent: Sent | None = None) -> Piece:
    return Piece(b"".join(lines), len(lines), sum_lines(lines), lines[-1], sent)


def _lines(query: ColumnQuery, limit: int) -> Iterator[Lines]:
    """Lists of about `limit` bytes, up to the first with a line that is too long."""
    too_long = False
    for lines in query.lines(limit):
        too_long = too_long or None in lines.rows
        if not too_long:
            yield lines
    if too_long:
        raise LineTooLongError


def _grouped(lines: Iterator[bytes], limit: int) -> Iterator[list[bytes]]:
    """Lines in lists of `limit` bytes."""
    taken: list[bytes] = []
    size = 0
    for line in lines:
        taken.append(line)
        size += len(line)
        if size >= limit:
            yield taken
            taken, size = [], 0
    if taken:
        yield taken


def _line(row: bytes | bytearray) -> bytes:
    """The line of a row, which is used up: of a value of 64 MiB no more than two are held at any time."""
    values = all_columns(row)
    if isinstance(row, bytearray):
        row.clear()
    parts: list[bytes] = []
    while values:
        parts += (escaped(values.pop(0)), b"\t")
    parts[-1] = b"\n"
    return b"".join(parts)


def _long_lines(connection: Connection, sql: str, skip: int) -> Iterator[bytes]:
    """Lines made here, for rows that the server cannot write as lines: few, since they are long."""
    execute(connection, "SET character_set_results = NULL")  # as they are stored
    yield from map(_line, islice(read_packets(connection, sql), skip, None))
    execute(connection, "SET character_set_results = utf8mb4")
