"""What a restored database is checked for besides its rows and definitions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from typing import Any, NamedTuple

import pymysql

from crmbackup.engines.base import CheckOutcome, Workers
from crmbackup.engines.mysql.connection import (
    Connection,
    Server,
    connect,
    execute,
    quoted,
    source_errors,
    text_of,
    value,
)

_SHOWN = 20
_FOREIGN_KEYS = """
SELECT k.table_name, k.constraint_name, k.column_name, k.referenced_table_schema, k.referenced_table_name,
       k.referenced_column_name, c.character_set_name, c.collation_name, p.character_set_name, p.collation_name
  FROM information_schema.key_column_usage k
  LEFT JOIN information_schema.columns c
    ON c.table_schema = k.table_schema AND c.table_name = k.table_name AND c.column_name = k.column_name
  LEFT JOIN information_schema.columns p ON p.table_schema = k.referenced_table_schema
   AND p.table_name = k.referenced_table_name AND p.column_name = k.referenced_column_name
 WHERE k.table_schema = %s AND k.referenced_table_name IS NOT NULL
 ORDER BY k.table_name, k.constraint_name, k.ordinal_position
"""
#: Of tables that count on from their greatest value: where other columns come first in the key (MyISAM, Aria), each value of
#: those is counted on its own, and there is no counter.
_COUNTERS = """
SELECT t.table_name, t.auto_increment, c.column_name, c.column_type
  FROM information_schema.tables t
  JOIN information_schema.columns c ON c.table_schema = t.table_schema AND c.table_name = t.table_name
 WHERE t.table_schema = %s AND t.table_type IN ('BASE TABLE', 'SYSTEM VERSIONED') AND t.auto_increment IS NOT NULL
   AND c.extra LIKE '%%auto_increment%%'
   AND EXISTS (SELECT 1 FROM information_schema.statistics s WHERE s.table_schema = c.table_schema
               AND s.table_name = c.table_name AND s.column_name = c.column_name AND s.seq_in_index = 1)
 ORDER BY t.table_name
"""
_BITS = {"tinyint": 8, "smallint": 16, "mediumint": 24, "int": 32, "bigint": 64}


class ForeignKey(NamedTuple):
    """sql: a query whose only value is the number of rows that point at nothing. elsewhere: the table that it refers to, if
    that belongs to another database and is not here, else empty. Picklable.
    """

    label: str
    sql: str
    elsewhere: str


def check_database(workers: Workers, server: Server, broken: frozenset[str] | None) -> list[CheckOutcome]:
    """The outcomes "foreign_key_check", "auto_increment", "views" and "events". broken: views that could not be used in
    the source, None where that is not known. Raises SourceError kinds.
    """
    with source_errors(server), closing(connect(server)) as connection:
        keys = foreign_keys(connection, server.database)
        outcomes = [check_counters(connection, server.database), _views(connection, server.database, broken)]
        outcomes.append(_events(connection, server.database))
    here = [key for key in keys if not key.elsewhere]
    futures = [workers.submit(count_orphans, server, key) for key in here]
    found = [text for text in (future.result() for future in futures) if text]
    detail = _shown(found) if found else f"{len(here)} foreign keys hold"
    apart = [f"{key.label} to {key.elsewhere}" for key in keys if key.elsewhere]
    if apart:
        detail += f"; not looked at, since they refer to a database that is not here: {_shown(apart)}"
    return [CheckOutcome("foreign_key_check", not found, detail), *outcomes]


def count_orphans(server: Server, key: ForeignKey) -> str:
    """What is wrong with a foreign key; empty if it holds. Raises SourceError kinds."""
    with source_errors(server, key.label), closing(connect(server)) as connection:
        rows = int(value(connection, key.sql))
    return f"{key.label}: {rows} rows without the row they refer to" if rows else ""


def foreign_keys(connection: Connection, database: str) -> list[ForeignKey]:
    """All of a database, with queries that run on their own. Raises pymysql.Error."""
    columns: dict[tuple[str, str], list[tuple[Any, ...]]] = defaultdict(list)
    for table, name, *rest in execute(connection, _FOREIGN_KEYS, (database,)):
        columns[table, name].append(tuple(rest))
    tables = {
        (schema, name)
        for schema, name in execute(connection, "SELECT table_schema, table_name FROM information_schema.tables")
    }
    found = []
    for (table, name), rows in columns.items():
        schema, other = rows[0][1:3]
        there = (schema, other) in tables
        elsewhere = "" if there or schema == database else f"{schema}.{other}"
        found.append(ForeignKey(f"{table}.{name}", orphans_sql(database, table, rows, there=there), elsewhere))
    return found


def orphans_sql(database: str, table: str, columns: Sequence[tuple[Any, ...]], *, there: bool) -> str:
    """Counts rows without a row to refer to; one with any NULL refers to nothing. there: the other table exists.

    columns: for each pair own column, other schema, table and column, character set and collation of both.
    """
    refers = " AND ".join(f"f.{quoted(column[0])} IS NOT NULL" for column in columns)
    text = f"SELECT COUNT(*) FROM {quoted(database, table)} f WHERE {refers}"
    if not there:
        return text
    equal = " AND ".join(f"p.{quoted(column[3])} = {_like_other(column)}" for column in columns)
    return f"{text} AND NOT EXISTS (SELECT 1 FROM {quoted(columns[0][1], columns[0][2])} p WHERE {equal})"


def _like_other(column: tuple[Any, ...]) -> str:
    """A column as the other one's collation compares it."""
    own, _, _, _, charset, collation, other_charset, other_collation = column
    text = f"f.{quoted(own)}"
    if collation == other_collation or not (collation and other_collation):
        return text
    converted = text if charset == other_charset else f"CONVERT({text} USING {other_charset})"
    return f"{converted} COLLATE {other_collation}"


def check_counters(connection: Connection, database: str) -> CheckOutcome:
    """Whether each AUTO_INCREMENT is past the greatest value that a row has. Raises pymysql.Error."""
    behind = []
    rows = execute(connection, _COUNTERS, (database,))
    for table, following, column, kind in rows:
        greatest = value(connection, f"SELECT MAX({quoted(column)}) FROM {quoted(database, table)}")
        if greatest is not None and int(following) <= int(greatest) < _limit(str(kind)):
            behind.append(f"{table}: the next is {following}, a row has {greatest}")
    return CheckOutcome(
        "auto_increment", not behind, _shown(behind) if behind else f"{len(rows)} go on after their rows"
    )


def _limit(kind: str) -> int:
    """The greatest value of a column of that type; what counts there cannot go on."""
    name = kind.split("(", maxsplit=1)[0].split(" ", maxsplit=1)[0]
    bits = _BITS.get(name, 64)
    return (1 << bits) - 1 if "unsigned" in kind else (1 << (bits - 1)) - 1


def _views(connection: Connection, database: str, broken: frozenset[str] | None) -> CheckOutcome:
    """Whether each view can be used, unless it could not in the source."""
    names = execute(
        connection, "SELECT table_name FROM information_schema.views WHERE table_schema = %s ORDER BY 1", (database,)
    )
    failing = {}
    for (name,) in names:
        try:
            execute(connection, f"SELECT 1 FROM {quoted(database, name)} LIMIT 0")
        except (pymysql.ProgrammingError, pymysql.OperationalError, pymysql.InternalError) as error:
            if not connection.open:
                raise
            failing[str(name)] = text_of(error)
    worse = [f"{name}: {reason}" for name, reason in failing.items() if broken is not None and name not in broken]
    if worse:
        return CheckOutcome("views", False, _shown(worse))
    detail = f"{len(names) - len(failing)} views can be used"
    if failing:
        same = "as in the source" if broken is not None else "perhaps as in the source"
        detail += f"; {same}, not: {_shown(sorted(failing))}"
    return CheckOutcome("views", True, detail)


def _events(connection: Connection, database: str) -> CheckOutcome:
    """Which events would act by themselves, for information."""
    rows = execute(
        connection, "SELECT event_name, status FROM information_schema.events WHERE event_schema = %s", (database,)
    )
    awake = [str(name) for name, status in rows if status == "ENABLED"]
    detail = f"switched on: {_shown(awake)}" if awake else f"all {len(rows)} are off"
    return CheckOutcome("events", True, detail)


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
