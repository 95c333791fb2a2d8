"""How all workers come to see the same moment.

All commits are held (locks.py) for the milliseconds in which every worker opens a consistent view of its own and the
place in the binary log is read. Then every worker reads a row of each table, which locks its definition (a metadata
lock) until the view ends. A table that was changed, emptied or replaced between the two shows itself there, since InnoDB
refuses views that are older than a table's definition; then all starts over. Without the right to hold commits, tables
are locked for that moment; without that right too, one worker reads alone, which needs no lock.

Tables whose rows belong to no snapshot (MyISAM, Aria, MEMORY) are locked for reading from before the moment (MySQL: from
that moment) until the end, if the policy allows that: writers of those wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import pymysql
from pymysql.constants import ER

from crmbackup.core.clock import Clock
from crmbackup.core.errors import SourceChanged, SourceDenied, SourceError, SourceLocked
from crmbackup.core.events import Emit, Warned
from crmbackup.engines.base import Workers
from crmbackup.engines.mysql import reader
from crmbackup.engines.mysql.catalog import Table, read_tables
from crmbackup.engines.mysql.connection import (
    Connection,
    Server,
    Version,
    code_of,
    connect,
    execute,
    source_errors,
    value,
    version_of,
)
from crmbackup.engines.mysql.locks import (
    Hold,
    binlog_position_sql,
    global_hold,
    gtid_sql,
    server_identity_sql,
    table_hold,
)

#: Seconds of one wait for a lock.
LOCK_WAIT = 3
#: The same for a lock that running statements or open transactions stand in the way of: whoever wants to write meanwhile
#: waits behind us. Then everybody gets `_REST` seconds to go on: an application is held up for a fifth of the time at most.
_SHORT_WAIT = 1
_REST = 4.0
_PAUSE = 0.2
#: A statement that has been running longer than that would make everybody wait behind FLUSH TABLES WITH READ LOCK.
_LONG_STATEMENT = 5
_NO_RIGHT = {1044, 1045, 1142, 1227}


@dataclass(frozen=True)
class Position:
    """Where the server was. identity: which server. file, offset, gtid: of its binary log, empty and 0 without one.

    version: product and version, as text. time: its clock, in seconds. born: what its clock said when the log's file was
    begun, 0 if that is not known: with time it tells this file from a later one of the same name.
    """

    identity: str
    version: str
    file: str = ""
    offset: int = 0
    gtid: str = ""
    time: int = 0
    born: int = 0


@dataclass(frozen=True)
class Moment:
    """The common view: what was committed before `captured` is in it. connection: a view too. tables: all of them.

    elsewhere: tables whose rows are not in this database. held: the words for how commits were held. catalog: for questions
    about definitions; it holds no lock on any. A connection that holds locks on thousands of tables looks through all of
    them for each table that it is asked about.
    """

    connection: Connection
    catalog: Connection
    version: Version
    captured: datetime
    position: Position
    tables: list[Table]
    elsewhere: list[Table]
    held: str


@contextmanager
def joined(
    workers: Workers, server: Server, lock_seconds: float, clock: Clock, emit: Emit, *, lock_others: bool = True
) -> Iterator[Moment]:
    """Every worker in one read-only view, all of the same moment. lock_others: see the module; else such tables are
    refused. Raises SourceError kinds.
    """
    deadline = clock.monotonic() + lock_seconds
    while True:
        with source_errors(server):
            main, keeper, catalog = connect(server), connect(server), connect(server)
        with closing(main), closing(keeper), closing(catalog):
            try:
                moment = _attempt(workers, server, main, keeper, catalog, clock, emit, lock_others=lock_others)
            except (SourceLocked, SourceChanged) as error:
                workers.each(reader.leave)
                if clock.monotonic() >= deadline:
                    raise
                moment = None
                pause = _REST if isinstance(error, SourceLocked) else _PAUSE
            if moment:
                yield moment
                with source_errors(server):
                    # The view, the locks on definitions and those on tables that belong to no snapshot held to the end.
                    for connection in (main, keeper):
                        connection.ping(reconnect=False)
                workers.each(reader.leave)
                return
        clock.sleep(pause)


def _attempt(
    workers: Workers,
    server: Server,
    main: Connection,
    keeper: Connection,
    catalog: Connection,
    clock: Clock,
    emit: Emit,
    *,
    lock_others: bool,
) -> Moment:
    """Raises SourceLocked, SourceChanged for what another try may mend."""
    with source_errors(server):
        version = version_of(main)
        before, _ = _by_place(read_tables(catalog, server.database, version))
        for connection, seconds in ((main, LOCK_WAIT), (keeper, _SHORT_WAIT), (catalog, LOCK_WAIT)):
            execute(connection, f"SET SESSION lock_wait_timeout = {seconds}")
        others = [table for table in before if not table.transactional]
        lock = partial(_lock_others, server, keeper, others, lock_others=lock_others) if others else _nothing
        # MySQL's FLUSH TABLES waits for whoever has locked a table: for us too. So these are locked while it holds all.
        early, late = (lock, _nothing) if version.mariadb else (_nothing, lock)
        early()
        tables = tuple(table.sql for table in before)
    with source_errors(server), closing(connect(server)) as holder:
        held, captured, position = _open_views(workers, server, version, main, holder, tables, clock, late)
    if workers.count > 1 and held == "LOCK TABLES":
        emit(
            Warned(
                "locks-of-tables",
                f"the user of {server.name} may not hold commits, so all tables were locked for a moment",
                "grant RELOAD; docs/mysql.md lists what a backup user needs",
            )
        )
    with source_errors(server):
        reader.touch(main, tables)
        workers.each(reader.touch_all, tables)
        after, elsewhere = _by_place(read_tables(catalog, server.database, version))
    if _identities(after) != _identities(before):
        raise SourceChanged(
            f"the tables of {server.name} change all the time",
            why="tables were made, dropped or altered at every try to lock them all",
            hint="back up when no migration runs",
        )
    return Moment(main, catalog, version, captured, position, after, elsewhere, held)


def _nothing() -> None:
    """Nothing has to be locked."""


def _by_place(tables: list[Table]) -> tuple[list[Table], list[Table]]:
    """Those that have their rows here, and those that have them elsewhere."""
    return [table for table in tables if not table.elsewhere], [table for table in tables if table.elsewhere]


def _lock_others(server: Server, keeper: Connection, others: Sequence[Table], *, lock_others: bool) -> None:
    names = ", ".join(f"{table.name} ({table.engine})" for table in others[:5]) + (" ..." if len(others) > 5 else "")
    if not lock_others:
        raise SourceError(
            f"{len(others)} tables of {server.name} cannot be part of a snapshot",
            why=f"their engine keeps no old versions of rows: {names}",
            hint="ALTER TABLE ... ENGINE=InnoDB, or let them be locked while they are read: "
            "source.non_transactional: lock",
        )
    try:
        for text in table_hold([table.sql for table in others]).take:
            execute(keeper, text)
    except pymysql.Error as error:
        if code_of(error) in _NO_RIGHT:
            raise SourceDenied(
                f"the user may not lock {len(others)} tables of {server.name} that cannot be part of a snapshot",
                why=names,
                hint="grant LOCK TABLES, or ALTER TABLE ... ENGINE=InnoDB",
            ) from error
        raise


def _open_views(
    workers: Workers,
    server: Server,
    version: Version,
    main: Connection,
    holder: Connection,
    tables: tuple[str, ...],
    clock: Clock,
    lock: Callable[[], None],
) -> tuple[str, datetime, Position]:
    """Every worker's view, under a hold on commits; how they were held, when, and where the server was.

    lock: locks tables that belong to no snapshot.
    """
    workers.each(reader.connect_here, server)
    for hold in (global_hold(version), table_hold(tables)):
        seconds = _SHORT_WAIT if hold.waits_for_queries else LOCK_WAIT
        execute(holder, f"SET SESSION lock_wait_timeout = {seconds}")
        if hold.waits_for_queries:
            _refuse_long_statements(server, holder)
        try:
            _take(holder, hold)
        except pymysql.Error as error:
            if code_of(error) in _NO_RIGHT:
                continue
            if hold.waits_for_queries and code_of(error) == ER.LOCK_WAIT_TIMEOUT:
                raise SourceLocked(
                    f"the tables of {server.name} cannot be locked",
                    why="statements that run, or transactions that stay open, stand in the way of " + hold.name,
                    hint="end them, or raise source.lock_timeout"
                    + ("; with the right RELOAD no table needs to be locked" if version.mariadb else ""),
                ) from error
            raise
        try:
            lock()
            workers.each(reader.open_view, LOCK_WAIT)
            reader.begin(main, LOCK_WAIT)
            captured = clock.now()
            position = read_position(holder, version)
        finally:
            for text in hold.release:
                execute(holder, text)
        return hold.name, captured, position
    if workers.count > 1:
        raise SourceDenied(
            f"the user may neither hold commits nor lock tables of {server.name}",
            why="several workers then cannot see the same moment",
            hint="grant RELOAD (or LOCK TABLES), or set limits.jobs to 1",
        )
    # One reader needs no lock: main has no rows to read, its view only keeps the definitions.
    lock()
    workers.each(reader.open_view, LOCK_WAIT)
    captured = clock.now()
    reader.begin(main, LOCK_WAIT)
    return "nothing", captured, read_position(holder, version, exact=False)


def _take(holder: Connection, hold: Hold) -> None:
    done = False
    try:
        for text in hold.take:
            execute(holder, text)
        done = True
    finally:
        if not done:
            for text in hold.release:
                try:
                    execute(holder, text)
                except pymysql.Error:
                    # Nothing was held, or the connection is gone and with it the hold; what failed first is told.
                    continue


def _refuse_long_statements(server: Server, holder: Connection) -> None:
    """Raises SourceLocked while a statement runs that would make everybody wait behind our lock."""
    rows = execute(
        holder,
        "SELECT id, time, left(info, 80) FROM information_schema.processlist WHERE command IN ('Query', 'Execute')"
        " AND id <> connection_id() AND time > %s AND user NOT IN ('system user', 'event_scheduler')"
        " ORDER BY time DESC LIMIT 1",
        (_LONG_STATEMENT,),
    )
    if rows:
        raise SourceLocked(
            f"a statement has been running on {server.name} for {rows[0][1]} s",
            why="all writers would wait behind it and us",
            hint=f"wait, end it (KILL {rows[0][0]}), or raise source.lock_timeout",
        )


def read_position(connection: Connection, version: Version, *, exact: bool = True) -> Position:
    """Where the server is; what the user may not see stays empty. exact: under a hold on commits."""
    identity = str(value(connection, server_identity_sql(version)))
    if not exact:
        return Position(identity, version.text)
    try:
        rows = execute(connection, binlog_position_sql(version))
        gtid = value(connection, gtid_sql(version))
    except pymysql.Error as error:
        if code_of(error) in _NO_RIGHT:
            return Position(identity, version.text)
        raise
    if not rows:
        return Position(identity, version.text)
    now = int(value(connection, "SELECT UNIX_TIMESTAMP()"))
    return Position(identity, version.text, str(rows[0][0]), int(rows[0][1]), str(gtid or "").replace("\n", ""), now)


def _identities(tables: Sequence[Table]) -> list[tuple[object, ...]]:
    return [(table.name, table.engine, table.columns, table.key) for table in tables]
