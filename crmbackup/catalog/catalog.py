"""The catalog: who ran what when, in any database that SQLAlchemy knows.

It is a cache. What it says of snapshots and drills can be read from the repository at any time, restore never asks it,
and a caller that cannot write to it goes on and warns: every method raises LocalError (or a kind of it) and nothing
else for what a database, a disk or an address can do wrong. Wrong arguments raise ValueError.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    NullPool,
    Table,
    create_engine,
    delete,
    event,
    insert,
    inspect,
    select,
)
from sqlalchemy.exc import OperationalError

from crmbackup.catalog import schema
from crmbackup.catalog.failures import display, parse_url, reported, sqlite_error
from crmbackup.catalog.records import Drill, Row, Run, Snapshot
from crmbackup.core.errors import LocalError
from crmbackup.core.files import PRIVATE_FILE, local_error, make_private_directory

#: How long one process waits for another that writes; a write takes milliseconds.
BUSY_SECONDS = 30
ERROR_TEXT_LENGTH = 4000
ROWS_PER_STATEMENT = 1000
MEMORY = (None, "", ":memory:")

Kind = TypeVar("Kind", Run, Snapshot, Drill)
History = Literal["kept", "new", "discarded"]


class Catalog:
    """Run history behind one database URL. Safe for use by several threads and several processes.

    Opening creates the tables when there are none. Tables of an older form are dropped and made anew, since the
    repository can fill them again; those of a newer form raise LocalError. `history` says which it was: "new" and
    "discarded" call for a rebuild. Missing directories and a missing file of SQLite are created for the owner alone.
    """

    history: History

    def __init__(self, url: str) -> None:
        self._url = parse_url(url)
        _create_private_file(self._url)
        with reported(self._url, "open the catalog"):
            self._engine = _engine(self._url)
        # On SQLite a transaction that begins by reading cannot wait for its turn to write.
        self._writing = self._engine.execution_options(crmbackup_begin="BEGIN IMMEDIATE")
        try:
            with reported(self._url, "open the catalog"):
                self.history = self._prepare()
        except BaseException:
            self._engine.dispose()
            raise

    @property
    def location(self) -> str:
        """The address, for messages. Never holds a password."""
        return display(self._url)

    def close(self) -> None:
        """Give back connections. The catalog is of no use afterwards."""
        self._engine.dispose()

    def record(self, *rows: Row) -> None:
        """Add runs, snapshots and drills, or replace the same ones; all or none.

        The same is a run of that run_id, a snapshot of that repository and id, a drill of that drill_id: so a run can be
        recorded at its start and at its end.
        """
        stored = [(*_place_of(row), _values(row)) for row in rows]
        with reported(self._url, "record in the catalog"), self._writing.begin() as connection:
            for table, same, values in stored:
                connection.execute(delete(table).where(same))
                connection.execute(insert(table), [values])

    def replace_snapshots(self, repository_id: str, rows: Sequence[Snapshot]) -> None:
        """Forget all snapshots of a repository and add these, in one transaction."""
        self._replace(schema.snapshots, repository_id, rows, "rebuild the snapshots in the catalog")

    def replace_drills(self, repository_id: str, rows: Sequence[Drill]) -> None:
        """Forget all drills of a repository and add these, in one transaction. Drills that never reached one stay."""
        self._replace(schema.drills, repository_id, rows, "rebuild the drills in the catalog")

    def runs(self, policy: str | None = None, limit: int | None = None) -> list[Run]:
        """Runs, of one policy or all, the latest start first, at most `limit`."""
        return self._read(Run, schema.runs, policy, "started_at", limit)

    def snapshots(self, policy: str | None = None) -> list[Snapshot]:
        """Snapshots of all repositories, of one policy or all, the newest first."""
        return self._read(Snapshot, schema.snapshots, policy, "captured_at", None)

    def drills(self, policy: str | None = None) -> list[Drill]:
        """Drills, of one policy or all, the latest start first."""
        return self._read(Drill, schema.drills, policy, "started_at", None)

    def last_drill(self, policy: str) -> Drill | None:
        """The drill of a policy that started last, whatever came of it."""
        return next(iter(self._read(Drill, schema.drills, policy, "started_at", 1)), None)

    def _replace(self, table: Table, repository_id: str, rows: Sequence[Row], doing: str) -> None:
        if any(row.repository_id != repository_id for row in rows):
            raise ValueError(f"all rows must be of the repository {repository_id}")
        values = [_values(row) for row in rows]
        with reported(self._url, doing), self._writing.begin() as connection:
            connection.execute(delete(table).where(table.c.repository_id == repository_id))
            for start in range(0, len(values), ROWS_PER_STATEMENT):
                connection.execute(insert(table), values[start : start + ROWS_PER_STATEMENT])

    def _read(self, kind: type[Kind], table: Table, policy: str | None, order: str, limit: int | None) -> list[Kind]:
        names = [field.name for field in fields(kind)]
        query = select(*(table.c[name] for name in names)).order_by(
            table.c[order].desc(), *(column.desc() for column in table.primary_key.columns)
        )
        if policy is not None:
            query = query.where(table.c.policy == policy)
        if limit is not None:
            query = query.limit(limit)
        with reported(self._url, "read the catalog"), self._engine.connect() as connection:
            return [kind(**row) for row in connection.execute(query).mappings()]

    def _prepare(self) -> History:
        with self._engine.connect() as connection:
            found = self._version(connection)
        if found == schema.SCHEMA_VERSION:
            return "kept"
        self._use_wal()
        with self._writing.begin() as connection:
            # Another process may have been faster.
            found = self._version(connection)
            if found == schema.SCHEMA_VERSION:
                return "kept"
            schema.metadata.drop_all(connection)
            schema.metadata.create_all(connection)
            connection.execute(insert(schema.version), [{"version": schema.SCHEMA_VERSION}])
        return "new" if found is None else "discarded"

    def _version(self, connection: Connection) -> int | None:
        """The form of the tables that are there; 0 when they are not whole, None when there are none."""
        present = set(inspect(connection).get_table_names())
        if schema.version.name not in present:
            return 0 if present & schema.metadata.tables.keys() else None
        found = connection.execute(select(schema.version.c.version)).scalar() or 0
        if found > schema.SCHEMA_VERSION:
            raise LocalError(
                f"cannot open the catalog {self.location}",
                why=f"it is of form {found}; this version of crmbackup knows form {schema.SCHEMA_VERSION}",
                hint="use the version of crmbackup that wrote it, or name another catalog in the policy",
            )
        return found

    def _use_wal(self) -> None:
        """Let readers and a writer work at once. The mode stays with the file."""
        if self._engine.dialect.name != "sqlite":
            return
        try:
            with self._engine.connect().execution_options(crmbackup_begin="") as connection:
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        except OperationalError as error:
            # SQLite does not wait here. Whoever holds the file is creating the same catalog, and sets the same mode.
            if sqlite_error(error.orig) != "BUSY":
                raise


def _engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url, poolclass=NullPool, hide_parameters=True)
    # Without a pool, nothing is shared with worker processes that are forked from this one.
    pool = None if url.database in MEMORY else NullPool
    options = {} if "timeout" in url.query else {"timeout": BUSY_SECONDS}
    engine = create_engine(url, poolclass=pool, hide_parameters=True, connect_args=options)

    @event.listens_for(engine, "connect")
    def leave_transactions_to_us(connection: Any, _record: object) -> None:
        connection.isolation_level = None

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        statement = connection.get_execution_options().get("crmbackup_begin", "BEGIN")
        if statement:
            connection.exec_driver_sql(statement)

    return engine


def _create_private_file(url: URL) -> None:
    """SQLite would create it readable for everyone. Addresses of other kinds and `file:` URIs are left alone."""
    name = url.database
    if url.get_backend_name() != "sqlite" or name is None or name in MEMORY or name.startswith("file:"):
        return
    path = Path(name)
    make_private_directory(path.parent)
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE))
    except OSError as error:
        raise local_error(error, f"open the catalog {display(url)}") from error


def _place_of(row: Row) -> tuple[Table, ColumnElement[bool]]:
    """The table of a row, and the condition for the same row."""
    if isinstance(row, Run):
        return schema.runs, schema.runs.c.run_id == row.run_id
    if isinstance(row, Drill):
        return schema.drills, schema.drills.c.drill_id == row.drill_id
    columns = schema.snapshots.c
    same = (columns.repository_id == row.repository_id) & (columns.snapshot_id == row.snapshot_id)
    return schema.snapshots, same


def _values(row: Row) -> dict[str, object]:
    return {name: _storable(name, value) for name, value in asdict(row).items()}


def _storable(name: str, value: object) -> object:
    if isinstance(value, datetime) and value.tzinfo is None:
        raise ValueError(f"{name} must be an aware moment")
    if isinstance(value, str):
        # Names of files may hold bytes that are no text; PostgreSQL takes no zero characters.
        value = value.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\0")
        return value[:ERROR_TEXT_LENGTH] if name == "error_text" else value
    return value
