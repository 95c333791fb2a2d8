"""What runs in the workers of a restore: writing the archive's pieces, and loading rows.

A worker keeps one connection open, in a module variable, because tasks reach it as plain function calls.
"""

from __future__ import annotations

import select
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGconn, PGresult

from crmbackup.core.errors import TargetError, VerificationFailed
from crmbackup.engines.pieces import Piece, write_piece
from crmbackup.engines.postgres.connection import Server, connect, target_errors

Connection = psycopg.Connection[tuple[Any, ...]]

#: Bytes handed to libpq at once.
_BLOCK = 1024 * 1024
#: After these a COPY ends and another begins: what the server refuses is then told, not at the end of a table.
_COPY_BYTES = 64 * 1024 * 1024


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
class Load:
    """One chunk of rows into one table. before, after: statements around the COPY, in its transaction.

    apart: committed at once, since rows of other workers could have to wait for it (unique indexes that are there).
    """

    label: str
    copy: str
    rows: int
    before: str = ""
    after: str = ""
    apart: bool = False


@dataclass(frozen=True)
class Loads:
    """Where one chunk's rows go: equal chunks are there once, whatever tables they are of."""

    session: Session
    loads: tuple[Load, ...]


class _Loader:
    """The connection of one worker: one transaction, and in it one COPY as long as chunks are of the same table.

    With a transaction for each chunk autovacuum reads the growing table while rows come, and there are a thousand commits.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.connection = connect(session.server)
        self._copy: _Copy | None = None
        self._taken: Counter[str] = Counter()
        try:
            self.connection.execute(f"SET application_name = '{session.token}'".encode("ascii"))
            # Durable by the commit at the end: the log is written in order.
            self.connection.execute("SET synchronous_commit = off")
            if session.replica:
                self.connection.execute("SET session_replication_role = replica")
            self.connection.execute("BEGIN")
        except BaseException:
            self.connection.close()
            raise

    def load(self, load: Load, data: bytes) -> None:
        codec = self.connection.info.encoding
        if self._copy and (load.apart or load.before or self._copy.load.label != load.label):
            self._end_copy()
        with target_errors(self.session.server, f"rows of {load.label}"):
            if load.before:
                self.connection.execute(load.before.encode(codec))
            if self._copy is None:
                self._copy = _Copy(self.connection, load)
            self._copy.put(data, load.rows)
        if load.apart or load.after or self._copy.sent >= _COPY_BYTES:
            self._end_copy()
        if load.after or load.apart:
            with target_errors(self.session.server, f"rows of {load.label}"):
                if load.after:
                    self.connection.execute(load.after.encode(codec))
                self._commit()
                self.connection.execute("BEGIN")

    def finish(self) -> Counter[str]:
        """Commit; gives the rows that each label took. Raises TargetError kinds, VerificationFailed."""
        self._end_copy()
        with target_errors(self.session.server, "rows"):
            self._commit()
        return self._taken

    def _commit(self) -> None:
        done = self.connection.execute("COMMIT").statusmessage
        if done != "COMMIT":
            raise TargetError(f"the target {self.session.server.name} took rows back", why=f"COMMIT answered {done}")

    def _end_copy(self) -> None:
        copy, self._copy = self._copy, None
        if copy is None:
            return
        label = copy.load.label
        with target_errors(self.session.server, f"rows of {label}"):
            rows = copy.end()
        if rows != copy.rows:
            raise VerificationFailed(
                f"{label} took {rows} rows of {copy.rows}",
                why="a trigger or rule of the target left some out" if rows < copy.rows else "",
            )
        self._taken[label] += rows


_loader: _Loader | None = None


def place(placement: object, data: bytes) -> object:
    """Write one chunk where it belongs. Rows are there for others when `finish` was called in the same process.

    Raises TargetError kinds, LocalError kinds, VerificationFailed; also for chunks that were placed before.
    """
    if isinstance(placement, Piece):
        write_piece(placement, data)
        return None
    assert isinstance(placement, Loads)
    session = placement.session
    loader = _joined(session)
    if not session.alive.exists():
        # Whoever ends a restore removes the file first and then ends all sessions: this one must not write.
        raise TargetError(f"the restore to {session.server.name} was given up")
    for load in placement.loads:
        loader.load(load, data)
    return None


def _joined(session: Session) -> _Loader:
    """Never a second one for a session: what the first had not committed would be missing."""
    global _loader  # noqa: PLW0603 - see the module's docstring
    if _loader is None or _loader.session != session:
        leave()
        with target_errors(session.server):
            _loader = _Loader(session)
    return _loader


def finish(session: Session) -> Counter[str]:
    """Commit what this process loaded for `session`, and close its connection; gives the rows that each label took.

    Workers outlive a restore that fails: what this one still holds of another is given up. Raises TargetError kinds,
    VerificationFailed.
    """
    taken = _loader.finish() if _loader and _loader.session == session else Counter()
    leave()
    return taken


def leave() -> None:
    """Close the connection of this process, if it has one; what was not committed is gone."""
    global _loader  # noqa: PLW0603 - see the module's docstring
    if _loader is not None:
        _loader.connection.close()
    _loader = None


def run(server: Server, statements: Sequence[str], settings: Sequence[str]) -> None:
    """Run statements on a connection of their own with these settings, each in its own transaction. Raises TargetError kinds."""
    with target_errors(server), connect(server) as connection:
        codec = connection.info.encoding
        for text in (*settings, *statements):
            with target_errors(server, text[:100]):
                connection.execute(text.encode(codec))


class _Copy:
    """A COPY ... FROM STDIN that is open. rows: how many it should take; sent: bytes.

    libpq's own calls, without blocking: a call that blocks would hold the interpreter's lock, and this process could
    not notice its parent's death. Raises psycopg.Error.
    """

    def __init__(self, connection: Connection, load: Load) -> None:
        self.load = load
        self.rows = 0
        self.sent = 0
        self._connection = connection
        self._pgconn, self._codec = connection.pgconn, connection.info.encoding
        self._refused: psycopg.Error | None = None
        begun = self._pgconn.exec_(load.copy.encode(self._codec))
        if begun.status != ExecStatus.COPY_IN:
            raise error_from_result(begun, encoding=self._codec)
        self._before = self._pgconn.nonblocking
        self._pgconn.nonblocking = 1

    def put(self, data: bytes, rows: int) -> None:
        """Send more rows; what the server refuses is told by `end` at the latest."""
        self.rows += rows
        self.sent += len(data)
        view = memoryview(data)
        try:
            for start in range(0, len(view), _BLOCK):
                while not self._pgconn.put_copy_data(view[start : start + _BLOCK]):
                    _flush(self._pgconn)
                _flush(self._pgconn)
        except psycopg.OperationalError as error:
            self._refused = error  # the server ended the COPY: its result says why
            self.end()

    def end(self) -> int:
        """No more rows; gives how many the server took."""
        try:
            if self._refused is None:
                try:
                    while not self._pgconn.put_copy_end():
                        _flush(self._pgconn)
                    _flush(self._pgconn)
                except psycopg.OperationalError as error:
                    self._refused = error
            return _outcome(self._pgconn, self._codec, self._refused)
        finally:
            if not self._connection.broken:
                self._pgconn.nonblocking = self._before


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
