"""What runs in the workers of a restore: writing the pieces of the definitions, loading rows, running statements.

A worker keeps one connection open, in a module variable, because tasks reach it as plain function calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pymysql
from pymysql.constants import ER

from crmbackup.core.errors import TargetError, VerificationFailed
from crmbackup.engines.mysql.columns import NUMBER, TEXT, load_sql
from crmbackup.engines.mysql.connection import (
    Connection,
    Server,
    code_of,
    connect,
    execute,
    quoted,
    target_errors,
    value,
    version_of,
)
from crmbackup.engines.mysql.dialect import (
    INSERT_HISTORY,
    optional_settings,
    session_settings,
)
from crmbackup.engines.mysql.protocol import load
from crmbackup.engines.mysql.restore_clean import join_mark
from crmbackup.engines.pieces import Piece, write_piece

#: Bytes of one INSERT, where rows cannot be loaded.
_INSERT_BYTES = 1024 * 1024
#: A chunk of more bytes has a row of several MiB. The server moves all of a value with every 4 KiB that it loads of it: a
#: value of 64 MiB takes a quarter of an hour, and a second as an INSERT.
_LONG_ROWS = 8 * 1024 * 1024


@dataclass(frozen=True)
class Session:
    """How a worker connects. alive: a file that exists as long as the restore goes on. local_infile: whether the server
    takes LOAD DATA LOCAL.
    """

    server: Server
    alive: Path
    local_infile: bool


@dataclass(frozen=True)
class Load:
    """One chunk of rows into one table. columns: as in the layout. history: rows that are no longer current too."""

    table: str
    columns: tuple[tuple[str, str], ...]
    rows: int
    history: bool


@dataclass(frozen=True)
class Loads:
    """What becomes of a chunk: equal tables can have it in common."""

    session: Session
    loads: tuple[Load, ...]


class Placed(NamedTuple):
    """What a table took from a chunk. warning: the first that the server had; the table must be read again then."""

    table: str
    rows: int
    warning: str


#: How often one chunk is sent when each time it ends in a deadlock.
_DEADLOCKS = 20

_session: Session | None = None
_connection: Connection | None = None
_packet = 0


def place(placement: object, data: bytes) -> tuple[Placed, ...]:
    """Write a chunk. Raises TargetError kinds, LocalError kinds, VerificationFailed."""
    if isinstance(placement, Piece):
        write_piece(placement, data)
        return ()
    assert isinstance(placement, Loads)
    return tuple(_load(placement.session, each, data) for each in placement.loads)


def _load(session: Session, wanted: Load, data: bytes) -> Placed:
    what = f"table {wanted.table}"
    with target_errors(session.server, what):
        connection = _joined(session)
        if wanted.history:
            execute(connection, INSERT_HISTORY)
        rows, warnings = _stored(connection, session, wanted, data)
        warning = _first_warning(connection) if warnings or rows != wanted.rows else ""
    if rows != wanted.rows:
        raise VerificationFailed(
            f"{what} took {rows} rows of a chunk of {wanted.rows}",
            why=warning,
            hint="nothing was kept; look whether the target's definitions are the snapshot's",
        )
    return Placed(wanted.table, rows, warning)


def _stored(connection: Connection, session: Session, wanted: Load, data: bytes) -> tuple[int, int]:
    """Rows that the table took, and how many warnings the server has."""
    for left in reversed(range(_DEADLOCKS)):
        try:
            if not session.local_infile or len(data) > _LONG_ROWS:
                try:
                    return _insert(connection, session, wanted, data)
                except _PacketTooSmallError as error:
                    connection.rollback()
                    if not session.local_infile:
                        raise _too_long(session, wanted, str(error)) from error
            sql = load_sql(session.server.database, wanted.table, wanted.columns)
            # A packet must be smaller than the server's limit; rows may be longer.
            done = load(connection, sql, data, block=_packet // 2)
            return done.rows, done.warnings
        except pymysql.Error as error:
            # Workers that fill neighbouring gaps of one index can lock each other out. The server took everything of
            # this chunk back, so it can be sent again.
            if code_of(error) != ER.LOCK_DEADLOCK or not left:
                raise
    raise AssertionError("the last try returns or raises")


class _PacketTooSmallError(Exception):
    """The server would not take an INSERT that must be so long; it would only close the connection."""


def _too_long(session: Session, wanted: Load, why: str) -> TargetError:
    return TargetError(
        f"a row of table {wanted.table} is too long for the server of {session.server.name}",
        why=why,
        hint="raise max_allowed_packet on that server, or switch local_infile on",
    )


def _first_warning(connection: Connection) -> str:
    rows = execute(connection, "SHOW WARNINGS LIMIT 1")
    return str(rows[0][2]) if rows else "the server has warnings"


def _insert(connection: Connection, session: Session, wanted: Load, data: bytes) -> tuple[int, int]:
    """The same rows by INSERT, in one transaction: how many, and how many warnings."""
    rows = warnings = 0
    execute(connection, "BEGIN")
    for statement in insert_statements(
        quoted(session.server.database, wanted.table), wanted.columns, data, min(_INSERT_BYTES, _packet // 2)
    ):
        if len(statement) >= _packet:
            raise _PacketTooSmallError(f"its INSERT has {len(statement)} bytes, and max_allowed_packet is {_packet}")
        rows += connection.query(statement)  # bytes go as they are
        warnings += int(value(connection, "SELECT @@warning_count"))
    execute(connection, "COMMIT")
    return rows, warnings


def insert_statements(table: str, columns: Sequence[tuple[str, str]], data: bytes, limit: int) -> Iterator[bytes]:
    r"""INSERTs of about `limit` bytes for lines, at least one row in each. table: quoted.

    The escapes of a line are those of a literal: only its quotes are added. Values are literals of bytes, which every
    column takes as they are; no text of them goes through a character set.
    """
    head = f"INSERT INTO {table} ({','.join(quoted(name) for name, _ in columns)}) VALUES ".encode()
    kinds = [how for _, how in columns]
    # Pieces that are joined once: a row can be longer than all else that is held.
    taken: list[bytes] = []
    size = 0
    for line in data.split(b"\n")[:-1]:
        row = [b","] if taken else [head]
        for number, (field, how) in enumerate(zip(line.split(b"\t"), kinds, strict=True)):
            row.append(b"," if number else b"(")
            if field == b"\\N":
                row.append(b"NULL")
            elif how == NUMBER:
                row.append(field)
            else:
                before, after = (b"CONVERT(_binary'", b"' USING utf8mb4)") if how == TEXT else (b"_binary'", b"'")
                row += before, field.replace(b"'", b"''"), after
        row.append(b")")
        length = sum(map(len, row))
        if taken and size + length > limit:
            yield b"".join(taken)
            taken, size = [], 0
            row[0] = head
        taken += row
        size += length
    if taken:
        yield b"".join(taken)


def run_statements(session: Session, work: Sequence[tuple[str, str]]) -> None:
    """Run statements that make or alter tables, each with what it is about. Raises TargetError kinds."""
    for label, text in work:
        with target_errors(session.server, label):
            execute(_joined(session), text)


def set_optional(connection: Connection) -> None:
    """Settings that make a restore easier, where they can be made. Raises pymysql.Error."""
    for setting in optional_settings(version_of(connection)):
        try:
            execute(connection, setting)
        except (pymysql.OperationalError, pymysql.InternalError, pymysql.ProgrammingError) as error:
            if error.args[0] not in _NOT_SETTABLE:
                raise


#: Unknown variable, not for this user, not for sessions.
_NOT_SETTABLE = (1193, 1227, 1229)


def _joined(session: Session) -> Connection:
    global _session, _connection, _packet  # noqa: PLW0603 - see the module's docstring
    if not session.alive.exists():
        # Whoever ends a restore removes the file first and then ends all sessions: this one must not write.
        raise TargetError(f"the restore to {session.server.name} was given up")
    if _session == session and _connection is not None and _connection.open:
        return _connection
    leave()
    connection = connect(session.server, local_infile=session.local_infile)
    try:
        join_mark(connection)
        set_optional(connection)
        for setting in session_settings(version_of(connection)):
            execute(connection, setting)
        _packet = int(value(connection, "SELECT @@max_allowed_packet"))
    except BaseException:
        connection.close()
        raise
    _session, _connection = session, connection
    return connection


def leave() -> None:
    """Close the connection of this process, if it has one."""
    global _session, _connection  # noqa: PLW0603 - see the module's docstring
    if _connection is not None and _connection.open:
        try:
            _connection.close()
        except (pymysql.Error, OSError) as error:  # it is gone already, which is what we want
            del error
    _session = _connection = None
