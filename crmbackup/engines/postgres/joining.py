"""How all workers come to see the same moment, with every table locked against changes of its shape before it.

TRUNCATE and most of ALTER TABLE do not respect snapshots: a table that is emptied between the snapshot and the lock on
it would be read as empty. So all locks come first (LOCK takes no snapshot), then the snapshot, and the tables that it
shows must be those that are locked; else everything starts over. Each worker takes the same locks when it joins: one
that comes later could wait behind a migration that waits for us.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import errors as pg

from crmbackup.core.clock import Clock
from crmbackup.core.errors import SourceChanged, SourceDenied, SourceLocked
from crmbackup.engines.base import Workers
from crmbackup.engines.postgres import reader
from crmbackup.engines.postgres.catalog import Listed, Table, list_tables, read_tables
from crmbackup.engines.postgres.connection import Server, connect, quoted, source_errors
from crmbackup.engines.postgres.horizon import Mark, Position, in_recovery, make_mark, read_position

Connection = psycopg.Connection[tuple[Any, ...]]

#: Tables in one LOCK statement.
_BATCH = 400
_LABELS = """
SELECT e.oid, ARRAY[pg_catalog.format_type(e.enumtypid, NULL), e.enumlabel::text] FROM pg_catalog.pg_enum e
"""
#: Names that need no quotes.
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
_TRIES = 20
_PAUSE = 0.2
#: One wait for a lock. Waiting for us blocks those who come after the one that we wait for, so it is short.
LOCK_WAIT = 3.0


@dataclass(frozen=True)
class Moment:
    """The common view: what was committed before `captured` is in it. connection: the one that holds it."""

    connection: Connection
    snapshot: str
    captured: datetime
    position: Position
    tables: list[Table]


@contextmanager
def joined(workers: Workers, server: Server, lock_seconds: float, clock: Clock) -> Iterator[Moment]:
    """All workers in one read-only transaction each, of the same snapshot. Raises SourceError kinds."""
    deadline = clock.monotonic() + lock_seconds
    tries = 0
    while True:
        with source_errors(server):
            connection = connect(server)
        with closing(connection):
            try:
                moment = _attempt(workers, server, connection, clock)
            except SourceLocked:
                if clock.monotonic() >= deadline:
                    raise
                moment = None
            if moment:
                yield moment
                with source_errors(server):
                    # That also shows that the transaction, and with it the locks, held to the end.
                    _refuse_renamed_labels(server, connection)
                workers.each(reader.leave)
                return
        workers.each(reader.leave)
        tries += 1
        if tries >= _TRIES and clock.monotonic() >= deadline:
            raise SourceChanged(
                f"the tables of {server.name} change all the time",
                why="tables were made, dropped or altered at every try to lock them all",
                hint="back up when no migration runs",
            )
        clock.sleep(_PAUSE)


def _mark(server: Server) -> Mark | None:
    """After the snapshot was taken: what it shows is then durable. None on a standby."""
    with source_errors(server), closing(connect(server)) as connection:
        return None if in_recovery(connection) else make_mark(connection)


def _attempt(workers: Workers, server: Server, connection: Connection, clock: Clock) -> Moment | None:
    """None when the tables changed meanwhile."""
    with source_errors(server):
        before = list_tables(connection)
        refuse_unreadable(server, before)
        locks = _lock_statements(before)
        try:
            reader.begin(connection, LOCK_WAIT)
            for lock in locks:
                connection.execute(lock.encode(connection.info.encoding))
        except (pg.UndefinedTable, pg.InvalidSchemaName, pg.WrongObjectType):
            return None
        captured = clock.now()
        row = connection.execute("SELECT pg_catalog.pg_export_snapshot()").fetchone()
        assert row is not None
        tables = read_tables(connection)
        if _identities(tables) != _identities(before):
            return None
    mark = _mark(server)
    with source_errors(server):
        position = read_position(connection, mark)
    workers.each(reader.join, server, str(row[0]), locks, LOCK_WAIT)
    return Moment(connection, str(row[0]), captured, position, tables)


def _refuse_renamed_labels(server: Server, connection: Connection) -> None:
    """Types are not locked, and labels are printed as they are now, not as the snapshot has them."""
    before = _labels(connection)
    with closing(connect(server)) as other:
        now = _labels(other)
    renamed = sorted({before[oid][0] for oid in before.keys() & now.keys() if before[oid] != now[oid]})
    if renamed:
        raise SourceChanged(
            f"values of {server.name} changed their names while they were read",
            why=f"labels of {', '.join(renamed)} were renamed (ALTER TYPE ... RENAME VALUE)",
            hint="back up when no migration runs",
        )


def _labels(connection: Connection) -> dict[Any, Any]:
    return {row[0]: row[1] for row in connection.execute(_LABELS)}


def _role(server: Server) -> str:
    """Who connects, as statements name it that are to be typed."""
    name = dict(server.keywords).get("user")
    if name is None:
        return "the backup role"
    return name if _PLAIN.fullmatch(name) else quoted(name)


def refuse_unreadable(server: Server, tables: Sequence[Listed]) -> None:
    """Every table must be readable, and all rows of it. Raises SourceDenied with the statements that help."""
    denied = [table for table in tables if not table.readable]
    if denied:
        names = ", ".join(table.label for table in denied[:5]) + (" ..." if len(denied) > 5 else "")
        schemas = sorted({table.schema for table in denied})
        user = _role(server)
        grants = "; ".join(
            f"GRANT USAGE ON SCHEMA {schema} TO {user}; GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {user}"
            for schema in map(quoted, schemas[:3])
        )
        raise SourceDenied(
            f"the user may not read {len(denied)} of {len(tables)} tables of {server.name}",
            why=names,
            hint=f"GRANT pg_read_all_data TO {user} (PostgreSQL 14 and later), or: {grants}",
        )
    filtered = [table.label for table in tables if table.filtered]
    if filtered:
        user = _role(server)
        raise SourceDenied(
            f"row-level security may hide rows of {len(filtered)} of {len(tables)} tables of {server.name} from the user",
            why=", ".join(filtered[:5]) + (" ..." if len(filtered) > 5 else ""),
            hint=f"ALTER ROLE {user} BYPASSRLS, which needs a superuser; rows are never left out",
        )


def _identities(tables: Sequence[Listed | Table]) -> set[tuple[int, str]]:
    return {(table.oid, table.label) for table in tables}


def _lock_statements(tables: Sequence[Listed]) -> list[str]:
    names = [f"ONLY {table.sql}" for table in tables]
    return [
        f"LOCK TABLE {', '.join(names[start : start + _BATCH])} IN ACCESS SHARE MODE"
        for start in range(0, len(names), _BATCH)
    ]
