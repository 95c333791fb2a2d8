"""Rows as COPY text, in pieces of bounded size, counted and summed.

Checksum "copy-xxh3-sum-1": the number of rows and the sum modulo 2^128 of XXH3-128 (https://xxhash.com) over each
row's line as COPY writes it, its line end included. Sums add up: the order of rows and the borders of pieces do not
matter, and rows that occur twice count twice.
"""

from __future__ import annotations

import select
from collections.abc import Iterator
from io import BytesIO
from typing import NamedTuple

import psycopg
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGresult
from xxhash import xxh3_128_intdigest

from crmbackup.engines.sums import MODULUS

ALGORITHM = "copy-xxh3-sum-1"
#: Bytes of lines in one piece, unless a single row is longer.
PIECE_BYTES = 8 * 1024 * 1024


class Piece(NamedTuple):
    """Whole rows. checksum: their sum, below 2^128."""

    payload: bytes
    rows: int
    checksum: int


def copy_out(connection: psycopg.Connection[tuple[object, ...]], sql: str) -> Iterator[Piece]:
    """The rows that a COPY ... TO STDOUT gives, in the database's own encoding; no piece when there are none.

    Raises psycopg.Error.

    libpq's own calls instead of psycopg's Copy object: that one costs several Python calls for every row. A row's memory
    is given back before the next one: keeping the rows of a piece takes twice the time.
    """
    pgconn, encoding = connection.pgconn, connection.info.encoding
    own = connection.info.parameter_status("server_encoding")
    begun = pgconn.exec_(f"{sql} (ENCODING '{own}')".encode(encoding))
    if begun.status != ExecStatus.COPY_OUT:
        raise _failure(connection, begun)
    readable = select.poll()
    readable.register(pgconn.socket, select.POLLIN)
    take, lines = pgconn.get_copy_data, BytesIO()
    rows, size, checksum = 0, 0, 0
    while True:
        length, line = take(1)
        if length > 0:
            lines.write(line)
            checksum += xxh3_128_intdigest(line)
            rows += 1
            size += length
            if size >= PIECE_BYTES:
                yield Piece(lines.getvalue(), rows, checksum % MODULUS)
                lines = BytesIO()
                rows, size, checksum = 0, 0, 0
        elif length == 0:
            # A blocking call would hold the interpreter's lock, and this process could not notice its parent's death.
            readable.poll()
            pgconn.consume_input()
        else:
            break
    if rows:
        yield Piece(lines.getvalue(), rows, checksum % MODULUS)
    while ended := pgconn.get_result():
        if ended.status != ExecStatus.COMMAND_OK:
            raise _failure(connection, ended)


def _failure(connection: psycopg.Connection[tuple[object, ...]], result: PGresult) -> psycopg.Error:
    """A cut connection leaves a result without a code: it must be told from what the server says of a statement."""
    error = error_from_result(result, encoding=connection.info.encoding)
    if connection.pgconn.status == ConnStatus.BAD and not isinstance(error, psycopg.OperationalError):
        return psycopg.OperationalError(str(error))
    return error
