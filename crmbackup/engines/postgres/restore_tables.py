"""Which tables come back: by name, and, for their rows alone, whether the target can take them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import errors as pg

from crmbackup.core.errors import TargetDenied, TargetError, TargetExists, UsageError
from crmbackup.engines.postgres.connection import Server, quoted
from crmbackup.engines.postgres.layout import Layout, TableLayout

Connection = psycopg.Connection[tuple[Any, ...]]


def find_tables(layout: Layout, names: Sequence[str]) -> tuple[TableLayout, ...]:
    """The tables of these names, each "schema.table", quoted or not, or the name alone. Raises UsageError.

    Of a table that is partitioned by the hash of an enum all partitions come, whichever is named: their rows lie in
    others after a restore.
    """
    found = {table.label: table for name in names for table in _find(layout, name)}
    roots = {table.root for table in found.values() if table.root}
    return tuple(table for table in layout.tables if table.label in found or (table.root and table.root in roots))


def _find(layout: Layout, name: str) -> list[TableLayout]:
    full = [table for table in layout.tables if name in (table.label, f"{table.schema}.{table.name}")]
    matches = full or [table for table in layout.tables if name == table.name]
    if len(matches) == 1:
        return matches
    below = [table for table in layout.tables if table.root and name in (".".join(table.root), table.root[1])]
    if below and not matches:
        return below
    if matches:
        raise UsageError(
            f"the snapshot has more than one table {name}",
            why=", ".join(table.label for table in matches),
            hint="name its schema too: --table schema.table",
        )
    labels = {spelling: table.label for table in layout.tables for spelling in (table.label, table.name)}
    near = list(dict.fromkeys(labels[match] for match in difflib.get_close_matches(name, labels, 5, 0.5)))
    raise UsageError(
        f"the snapshot has no table {name}",
        why=f"similar ones: {', '.join(near)}"
        if near
        else f"it has {len(layout.tables)} tables, none of a similar name",
        hint="names are as the database holds them; of a partitioned table name the partitions",
    )


def check_fillable(
    connection: Connection, server: Server, layout: Layout, tables: Sequence[TableLayout], *, large_objects: bool
) -> None:
    """Every table is there, with the snapshot's columns and no rows. Raises TargetError kinds, TargetExists."""
    try:
        with connection.transaction():
            connection.execute("SET LOCAL session_replication_role = replica")
    except pg.InsufficientPrivilege as error:
        raise TargetDenied(
            f"rows alone cannot be restored to {server.name} by this user",
            why="triggers and foreign keys must be off meanwhile (session_replication_role), which this user may not do",
            hint="restore as a superuser, or from PostgreSQL 15 on GRANT SET ON PARAMETER session_replication_role TO"
            " the user; or restore the definitions too",
        ) from error
    columns: dict[tuple[str, str], set[str]] = {}
    for schema, name, column in connection.execute(
        "SELECT n.nspname, c.relname, a.attname FROM pg_catalog.pg_class c"
        " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
        " WHERE c.relkind IN ('r', 'p')"
    ):
        columns.setdefault((schema, name), set()).add(column)
    for table in tables:
        there = columns.get((table.schema, table.name))
        if there is None:
            raise TargetError(
                f"the target {server.name} has no table {table.label}",
                hint="restore the definitions first (--schema-only), or all of it to an empty database",
            )
        missing = [column for column in table.columns if column not in there]
        if missing:
            raise TargetError(f"table {table.label} of the target lacks columns", why=", ".join(missing))
        codec = connection.info.encoding
        text = f"SELECT EXISTS (SELECT 1 FROM ONLY {quoted(table.schema, table.name)})"
        row = connection.execute(text.encode(codec)).fetchone()
        if row and row[0]:
            raise TargetExists(
                f"table {table.label} of {server.name} is not empty",
                hint="rows are restored to empty tables only: empty it, or restore elsewhere",
            )
    _refuse_triggers(connection, server, tables)
    if large_objects:
        row = connection.execute("SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_largeobject_metadata)").fetchone()
        if row and row[0]:
            raise TargetExists(
                f"{server.name} holds large objects already",
                why=f"the snapshot has {len(layout.large_objects)}, whose numbers could be the same",
                hint="restore to a database without, or name tables with --table",
            )


def _refuse_triggers(connection: Connection, server: Server, tables: Sequence[TableLayout]) -> None:
    """Triggers that are told to act on replicas too would change the rows, or write others; also if all is taken back."""
    names = {name for table in tables for name in ((table.schema, table.name), table.root) if name}
    rows = connection.execute(
        "SELECT n.nspname, c.relname, format('%I on %I.%I', t.tgname, n.nspname, c.relname) FROM pg_catalog.pg_trigger t"
        " JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " WHERE NOT t.tgisinternal AND t.tgenabled IN ('A', 'R') AND t.tgtype & 44 <> 0 ORDER BY 3"  # INSERT, DELETE, TRUNCATE
    ).fetchall()
    acting = [trigger for schema, name, trigger in rows if (schema, name) in names]
    if acting:
        raise TargetError(
            f"triggers of {server.name} would act on the rows",
            why="ENABLE ALWAYS or ENABLE REPLICA: " + ", ".join(acting),
            hint="ALTER TABLE ... DISABLE TRIGGER ..., and enable it again after the restore; or restore the definitions too",
        )
