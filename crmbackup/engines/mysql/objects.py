"""Reading definitions: what SHOW CREATE gives for everything in a database."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import pymysql
import pymysql.cursors
from pymysql.constants import ER

from crmbackup.core.errors import SourceDenied
from crmbackup.engines.mysql.connection import Connection, Server, Version, code_of, execute, quoted
from crmbackup.engines.mysql.definitions import Definition
from crmbackup.engines.mysql.layout import SequenceLayout

#: Of views that are shown with a warning: they miss a table, a column, a function, a right or their definer.
_NOT_USABLE = (ER.VIEW_INVALID, ER.NO_SUCH_USER)
_SETTINGS = ("sql_mode", "character_set_client", "collation_connection", "time_zone")


def read_objects(connection: Connection, server: Server, version: Version, tables: Collection[str]) -> list[Definition]:
    """Everything in the database that is selected, in an order in which it can be made: tables, sequences, views,
    routines, triggers, events. Raises SourceDenied for what may not be looked at, pymysql.Error.

    tables: those that belong to the snapshot; any other, with its triggers, is an application's scratch table that came
    later, and may go at any time.
    """
    database = server.database
    found = list(_tables_and_views(connection, database, tables))
    found += _routines(connection, server, version)
    found += (each for each in read_triggers(connection, database) if each.table in tables)
    found += _events(connection, database)
    return found


def _show(connection: Connection, sql: str) -> dict[str, Any]:
    with connection.cursor(pymysql.cursors.DictCursor) as cursor:
        cursor.execute(sql)
        row = cursor.fetchone()
    return {str(key): found for key, found in (row or {}).items()}


def _settings(row: dict[str, Any]) -> dict[str, str]:
    lower = {key.lower(): found for key, found in row.items()}
    return {key: str(lower[key]) for key in _SETTINGS if lower.get(key) is not None}


def _tables_and_views(connection: Connection, database: str, tables: Collection[str]) -> Iterator[Definition]:
    rows = execute(
        connection,
        "SELECT table_name, table_type FROM information_schema.tables WHERE table_schema = %s"
        " AND table_type IN ('BASE TABLE', 'SYSTEM VERSIONED', 'SEQUENCE', 'VIEW')"
        " ORDER BY table_type = 'VIEW', table_type = 'SEQUENCE', table_name",
        (database,),
    )
    for name, kind in rows:
        if kind == "VIEW":
            yield _view(connection, database, name)
            continue
        if kind != "SEQUENCE" and name not in tables:
            continue
        row = _show(connection, f"SHOW CREATE {'SEQUENCE' if kind == 'SEQUENCE' else 'TABLE'} {quoted(database, name)}")
        create = str(row.get("Create Table") or row.get("Create Sequence"))
        yield Definition("sequence" if kind == "SEQUENCE" else "table", name, create, {})


def _view(connection: Connection, database: str, name: str) -> Definition:
    definer = execute(
        connection,
        "SELECT definer FROM information_schema.views WHERE table_schema = %s AND table_name = %s",
        (database, name),
    )
    try:
        row = _show(connection, f"SHOW CREATE VIEW {quoted(database, name)}")
        works = not any(code in _NOT_USABLE for _, code, _ in execute(connection, "SHOW WARNINGS"))
    except pymysql.Error as error:
        if code_of(error) != ER.NO_SUCH_USER:
            raise
        row, works = _put_together(connection, database, name, str(definer[0][0])), False
    return Definition(
        "view",
        name,
        str(row["Create View"]),
        _settings(row),
        definer=str(definer[0][0]) if definer else "",
        columns=(_columns_shown(connection, database, name) if works else ())
        or _columns_by_use(connection, database, name),
    )


def _columns_shown(connection: Connection, database: str, name: str) -> tuple[str, ...]:
    columns = execute(
        connection,
        "SELECT column_name FROM information_schema.columns WHERE table_schema = %s AND table_name = %s"
        " ORDER BY ordinal_position",
        (database, name),
    )
    return tuple(str(column) for (column,) in columns)


def _columns_by_use(connection: Connection, database: str, name: str) -> tuple[str, ...]:
    """The columns of a view that shows none or seems not to work: MariaDB says so to who may not execute a function that
    it calls, even where that right is its definer's to have. None of a view that cannot be used.
    """
    with connection.cursor() as cursor:
        try:
            cursor.execute(f"SELECT * FROM {quoted(database, name)} LIMIT 0")
        except pymysql.Error:
            if not connection.open:
                raise
            return ()
        return tuple(str(column[0]) for column in cursor.description)


def _put_together(connection: Connection, database: str, name: str, definer: str) -> dict[str, Any]:
    """As SHOW CREATE VIEW would show a view which it refuses: MariaDB does if its definer is gone and it has no table."""
    sql = "SELECT * FROM information_schema.views WHERE table_schema = %s AND table_name = %s"
    with connection.cursor(pymysql.cursors.DictCursor) as cursor:
        cursor.execute(sql, (database, name))
        row = {str(key).lower(): found for key, found in (cursor.fetchone() or {}).items()}
    user, _, host = definer.rpartition("@")
    create = (
        f"CREATE ALGORITHM={row.get('algorithm', 'UNDEFINED')} DEFINER={quoted(user)}@{quoted(host)}"
        f" SQL SECURITY {row['security_type']} VIEW {quoted(name)} AS {row['view_definition']}"
    )
    return {**row, "Create View": create}


def _routines(connection: Connection, server: Server, version: Version) -> Iterator[Definition]:
    rows = execute(
        connection,
        "SELECT routine_type, routine_name, definer FROM information_schema.routines WHERE routine_schema = %s"
        " ORDER BY routine_type, routine_name",
        (server.database,),
    )
    for kind, name, definer in rows:
        row = _show(connection, f"SHOW CREATE {kind} {quoted(server.database, name)}")
        create = row.get(f"Create {str(kind).title()}")
        if not create:
            right = "SHOW CREATE ROUTINE" if version.mariadb and version.number >= (11, 3) else "SELECT on mysql.proc"
            right = right if version.mariadb else "SHOW_ROUTINE"
            raise SourceDenied(
                f"the body of {str(kind).lower()} {name} of {server.name} cannot be read",
                why="the user is neither its definer nor may it read other users' routines",
                hint=f"grant {right}; docs/mysql.md lists what a backup user needs",
            )
        yield Definition(str(kind).lower(), name, str(create), _settings(row), definer=str(definer))


def read_triggers(connection: Connection, database: str) -> Iterator[Definition]:
    """The triggers of a database, in an order in which they can be made. Raises pymysql.Error."""
    rows = execute(
        connection,
        "SELECT trigger_name, event_object_table, definer, action_timing, event_manipulation"
        " FROM information_schema.triggers WHERE trigger_schema = %s"
        " ORDER BY event_object_table, action_timing, event_manipulation, action_order",
        (database,),
    )
    last: dict[tuple[str, str, str], str] = {}
    for name, table, definer, timing, event in rows:
        row = _show(connection, f"SHOW CREATE TRIGGER {quoted(database, name)}")
        place = (table, timing, event)
        yield Definition(
            "trigger",
            name,
            str(row["SQL Original Statement"]),
            _settings(row),
            table=str(table),
            after=last.get(place, ""),
            definer=str(definer),
        )
        last[place] = str(name)


def _events(connection: Connection, database: str) -> Iterator[Definition]:
    rows = execute(
        connection,
        "SELECT event_name, definer, status FROM information_schema.events WHERE event_schema = %s ORDER BY event_name",
        (database,),
    )
    for name, definer, status in rows:
        row = _show(connection, f"SHOW CREATE EVENT {quoted(database, name)}")
        yield Definition(
            "event",
            name,
            str(row["Create Event"]),
            _settings(row),
            definer=str(definer),
            enabled=str(status) == "ENABLED",
        )


def read_sequences(connection: Connection, database: str, objects: list[Definition]) -> list[SequenceLayout]:
    """Where each sequence stands now. Raises pymysql.Error."""
    found = []
    for each in objects:
        if each.kind == "sequence":
            rows = execute(connection, f"SELECT next_not_cached_value, cycle_count FROM {quoted(database, each.name)}")
            found.append(SequenceLayout(each.name, int(rows[0][0]), int(rows[0][1])))
    return found
