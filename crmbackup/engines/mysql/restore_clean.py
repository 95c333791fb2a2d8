"""What a database holds; the mark of a restore that goes on; and making a database empty again.

The mark is a table that says what is being restored, and holds the numbers of all sessions at work. MySQL undoes no
definitions and renames no databases, so the database is made under its own name: a restore that is killed leaves the
mark, so that nobody takes what is there for a whole database, and the next restore to it knows what it may remove.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import pymysql

from crmbackup.core.errors import ObjectDamaged
from crmbackup.engines.mysql.connection import Connection, code_of, execute, literal, quoted, value
from crmbackup.engines.mysql.definitions import Definition
from crmbackup.engines.mysql.restore_objects import make_triggers
from crmbackup.engines.mysql.statements import batches

MARK = "crmbackup_restoring"
_NO_SUCH_TABLE, _NO_SUCH_THREAD = 1146, 1094
_KEEPS_OLD_ROWS = 4137
_BATCH = 100
_NAME = re.compile(r"\w+")
_KINDS = {
    "BASE TABLE": "table",
    "SYSTEM VERSIONED": "table",
    "VIEW": "view",
    "SEQUENCE": "sequence",
}


def exists(connection: Connection, name: str) -> bool:
    """Whether the server has a database of that name."""
    return bool(value(connection, "SELECT count(*) FROM information_schema.schemata WHERE schema_name = %s", (name,)))


def what_is_there(connection: Connection, database: str) -> dict[str, tuple[int, str]]:
    """Kinds of objects with their number and the first one's name; empty for a database that is empty."""
    found: dict[str, list[str]] = {}
    for name, kind in execute(
        connection,
        "SELECT table_name, table_type FROM information_schema.tables WHERE table_schema = %s AND table_name <> %s"
        " UNION ALL SELECT routine_name, routine_type FROM information_schema.routines WHERE routine_schema = %s"
        " UNION ALL SELECT event_name, 'EVENT' FROM information_schema.events WHERE event_schema = %s ORDER BY 1",
        (database, MARK, database, database),
    ):
        found.setdefault(_KINDS.get(kind, str(kind).lower()), []).append(str(name))
    return {kind: (len(names), names[0]) for kind, names in found.items()}


def take_lock(connection: Connection, database: str) -> bool:
    """For as long as the connection lives; False when another restore to this database has it."""
    name = "crmbackup_" + sha256(database.encode()).hexdigest()[:40]
    # The session of a restore that has just ended, or was killed, lives on for a moment.
    return bool(value(connection, "SELECT GET_LOCK(%s, 1)", (name,)))


def read_mark(connection: Connection, database: str) -> Mapping[str, Any] | None:
    """What an unfinished restore said of itself; None without one. Raises pymysql.Error."""
    try:
        rows = execute(connection, f"SELECT said FROM {quoted(database, MARK)} WHERE session = 0")
    except pymysql.Error as error:
        if code_of(error) == _NO_SUCH_TABLE:
            return None
        raise
    # Between the making of the mark and its text nothing else was made.
    return json.loads(rows[0][0]) if rows else {}


def set_mark(connection: Connection, said: Mapping[str, Any]) -> None:
    """Say that a restore to the selected database goes on. said: what it takes to undo it; JSON."""
    execute(
        connection,
        f"CREATE TABLE {MARK} (session BIGINT UNSIGNED NOT NULL PRIMARY KEY, said LONGTEXT) CHARACTER SET utf8mb4"
        " COMMENT 'A restore to this database is not finished: it is not whole'",
    )
    execute(connection, f"INSERT INTO {MARK} VALUES (0, %s)", (json.dumps(said),))


def join_mark(connection: Connection) -> None:
    """Note the session among those that work on the restore. Raises pymysql.Error where there is none."""
    execute(connection, f"INSERT INTO {MARK} (session) VALUES (CONNECTION_ID())")


def clear_mark(connection: Connection, database: str) -> None:
    """The restore is over."""
    execute(connection, f"DROP TABLE IF EXISTS {quoted(database, MARK)}")


def end_sessions(connection: Connection, database: str) -> None:
    """End all sessions of a restore's workers, and wait until they are gone. Raises pymysql.Error.

    After a restart of the server numbers begin anew: only sessions that are in this database count.
    """
    while True:
        rows = execute(
            connection,
            f"SELECT p.id FROM information_schema.processlist p JOIN {quoted(database, MARK)} m ON m.session = p.id"
            f" WHERE p.db = {literal(database)} AND p.id <> CONNECTION_ID()",
        )
        for (number,) in rows:
            try:
                execute(connection, f"KILL {int(number)}")
            except pymysql.Error as error:
                if code_of(error) != _NO_SUCH_THREAD:
                    raise
        if not rows:
            return
        execute(connection, "DO SLEEP(0.05)")


def undo_marked(connection: Connection, database: str, mark: Mapping[str, Any]) -> None:
    """Remove what the restore did that set the mark, and the mark. Raises pymysql.Error."""
    end_sessions(connection, database)
    execute(connection, "SET SESSION foreign_key_checks = 0")
    if mark.get("content") == "data":
        for name in mark["tables"]:
            _empty(connection, quoted(database, name))
        make_triggers(connection, database, [Definition(**each) for each in mark["triggers"]])
    elif mark:
        make_empty(connection, database)
        execute(connection, database_sql(database, mark["database"], "ALTER"))
    # Without its text nothing was done yet.
    clear_mark(connection, database)


def _empty(connection: Connection, table: str) -> None:
    try:
        execute(connection, f"TRUNCATE TABLE {table}")
    except pymysql.Error as error:
        if code_of(error) != _KEEPS_OLD_ROWS:
            raise
        execute(connection, f"DELETE FROM {table}")
        execute(connection, f"DELETE HISTORY FROM {table}")


def make_empty(connection: Connection, database: str) -> None:
    """Drop everything but the mark. Raises pymysql.Error."""
    execute(connection, "SET SESSION foreign_key_checks = 0")
    for name, kind in execute(
        connection,
        "SELECT event_name, 'EVENT' FROM information_schema.events WHERE event_schema = %s UNION ALL"
        " SELECT routine_name, routine_type FROM information_schema.routines WHERE routine_schema = %s"
        # The body of a package goes before the package.
        " ORDER BY 2 DESC",
        (database, database),
    ):
        execute(connection, f"DROP {kind} IF EXISTS {quoted(database, name)}")
    for kind, word in (
        ("VIEW", "VIEW"),
        ("BASE TABLE", "TABLE"),
        ("SYSTEM VERSIONED", "TABLE"),
        ("SEQUENCE", "SEQUENCE"),
    ):
        rows = execute(
            connection,
            "SELECT table_name FROM information_schema.tables WHERE table_schema = %s AND table_type = %s"
            " AND table_name <> %s",
            (database, kind, MARK),
        )
        for names in batches([quoted(database, name) for (name,) in rows], _BATCH):
            execute(connection, f"DROP {word} IF EXISTS {', '.join(names)}")


def database_sql(name: str, database: Mapping[str, Any], verb: str) -> str:
    """CREATE or ALTER DATABASE with these properties. Raises ObjectDamaged."""
    charset, collation = str(database["charset"]), str(database["collation"])
    if not (_NAME.fullmatch(charset) and _NAME.fullmatch(collation)):
        raise ObjectDamaged("the snapshot's database has no valid character set", why=f"{charset} {collation}")
    return f"{verb} DATABASE {quoted(name)} CHARACTER SET {charset} COLLATE {collation}"
