"""What runs in the workers of a restore: writing the archive's pieces, and loading rows.

A worker keeps one connection open, in a module variable, because tasks reach it as plain function calls.
"""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult

from crmbackup.core.errors import TargetError, VerificationFailed
from crmbackup.core.files import local_error
from crmbackup.engines.postgres.connection import Server, connect, target_errors

Connection = psycopg.Connection[tuple[Any, ...]]

#: Bytes handed to libpq at once.
_BLOCK = 1024 * 1024


@dataclass(frozen=True)
class Session:
    """How a worker connects. token: names the sessions of one restore. alive: a file that exists as long as it goes on.

    replica: triggers and foreign keys do not fire.
    """

    server: Server
    token: str
    alive: Path
    replica: bool = False


@dataclass(frozen=True)
class PieceOfArchive:
    """Where one chunk of the archive goes."""

    path: Path


@dataclass(frozen=True)
class Load:
    """One chunk of rows into one table. before, after: statements around the COPY, in its transaction."""

    label: str
    copy: str
    rows: int
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Loads:
    """All that one chunk is loaded into: equal chunks are stored once, whatever tables they are of."""

    session: Session
    loads: tuple[Load, ...]


_session: Session | None = None
_connection: Connection | None = None


def place(placement: object, data: bytes) -> object:
    """Write one chunk where it belongs; gives (label, rows) for each table that it went into.

    Raises TargetError kinds, LocalError kinds, VerificationFailed.
    """
    if isinstance(placement, PieceOfArchive):
        try:
            with open(placement.path, "wb", opener=private) as stream:
                stream.write(data)
        except OSError as error:
            raise local_error(error, f"write {placement.path}") from error
        return ()
    assert isinstance(placement, Loads)
    return tuple(_load(placement.session, load, data) for load in placement.loads)


def private(path: str, flags: int) -> int:
    """An opener for files that only their owner may read."""
    return os.open(path, flags, 0o600)


def _load(session: Session, load: Load, data: bytes) -> tuple[str, int]:
    with target_errors(session.server, f"rows of {load.label}"):
        connection = _joined(session)
        if not session.alive.exists():
            # Whoever ends a restore removes the file first and then ends all sessions: this one must not write.
            raise TargetError(f"the restore to {session.server.name} was given up")
        codec = connection.info.encoding
        with connection.transaction():
            if load.before:
                connection.execute(load.before.encode(codec))
            rows = copy_in(connection, load.copy.encode(codec), data)
            if rows != load.rows:
                raise VerificationFailed(
                    f"{load.label} took {rows} rows of a chunk of {load.rows}",
                    why="a trigger or rule of the target left some out" if rows < load.rows else "",
                )
            if load.after:
                connection.execute(load.after.encode(codec))
        return load.label, rows


def _joined(session: Session) -> Connection:
    global _session, _connection
    if _session == session and _connection is not None and not _connection.broken:
        return _connection
    leave()
    connection = connect(session.server)
    try:
        connection.execute(f"SET application_name = '{session.token}'".encode("ascii"))
        # Durable by the commit at the end: the log is written in order.
        connection.execute("SET synchronous_commit = off")
        if session.replica:
            connection.execute("SET session_replication_role = replica")
    except BaseException:
        connection.close()
        raise
    _session, _connection = session, connection
    return connection


def leave() -> None:
    """Close the connection of this process, if it has one."""
    global _session, _connection  # noqa: PLW0603 - see the module's docstring
    if _connection is not None:
        _connection.close()
    _session = _connection = None


def run(server: Server, statements: Sequence[str], settings: Sequence[str] = ()) -> None:
    """Run statements on a connection of their own, each in its own transaction. Raises TargetError kinds."""
    with target_errors(server), connect(server) as connection:
        codec = connection.info.encoding
        for text in (*settings, *statements):
            with target_errors(server, text[:100]):
                connection.execute(text.encode(codec))


def copy_in(connection: Connection, sql: bytes, data: bytes) -> int:
    """Send rows to a COPY ... FROM STDIN; gives how many it took. Raises psycopg.Error.

    libpq's own calls, without blocking: a call that blocks would hold the interpreter's lock, and this process could
    not notice its parent's death.
    """
    pgconn, codec = connection.pgconn, connection.info.encoding
    begun = pgconn.exec_(sql)
    if begun.status != ExecStatus.COPY_IN:
        raise error_from_result(begun, encoding=codec)
    before = pgconn.nonblocking
    pgconn.nonblocking = 1
    try:
        refused: psycopg.Error | None = None
        try:
            view = memoryview(data)
            for start in range(0, len(view), _BLOCK):
                while not pgconn.put_copy_data(view[start : start + _BLOCK]):
                    _flush(pgconn)
                _flush(pgconn)
            while not pgconn.put_copy_end():
                _flush(pgconn)
            _flush(pgconn)
        except psycopg.OperationalError as error:
            refused = error  # the server ended the COPY: its result says why
        return _outcome(pgconn, codec, refused)
    finally:
        if not connection.broken:
            pgconn.nonblocking = before


def _flush(pgconn: PGconn) -> None:
    """Until all is on its way, taking what the server sends meanwhile."""
    ready = select.poll()
    ready.register(pgconn.socket, select.POLLIN | select.POLLOUT)
    while pgconn.flush():
        if any(event & select.POLLIN for _, event in ready.poll()):
            pgconn.consume_input()


def _outcome(pgconn: PGconn, codec: str, refused: psycopg.Error | None) -> int:
    ready = select.poll()
    ready.register(pgconn.socket, select.POLLIN)
    rows, failed = None, None
    while True:
        while pgconn.is_busy():
            ready.poll()
            pgconn.consume_input()
        result: PGresult | None = pgconn.get_result()
        if result is None:
            break
        if result.status == ExecStatus.COMMAND_OK:
            rows = result.command_tuples
        elif result.status == ExecStatus.COPY_IN:
            pgconn.put_copy_end(b"given up")
            _flush(pgconn)
        else:
            failed = failed or error_from_result(result, encoding=codec)
    if failed or refused or rows is None:
        raise failed or refused or psycopg.OperationalError("the COPY ended without a result")
    return rows
