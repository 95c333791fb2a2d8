"""Rows for any MariaDB schema: each table is filled by its columns' types, and foreign keys hold in the end.

Every value follows from the row's number alone, so that the child numbered 7 finds the parent numbered 7; where a key
or a check refused one of them, the other goes.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pymysql

Connection = pymysql.connections.Connection  # type: ignore[type-arg]

#: What LOAD DATA, a script or a careless tool could take for something else.
HOSTILE = (
    r"""concat('k', seq, elt(1 + seq % 9, '', '\t', '\\N', '\n', '\r\n', '\\', '''"`', 'žluťoučký 漢字 😀', '\0\Z'))"""
)
#: The same for bytes: all kinds that are escaped, and some that are valid in no character set.
_RAW = r"concat(unhex(md5(seq)), elt(1 + seq % 7, '', x'00', x'09', x'0A0D', x'5C', x'5C4E', x'FFFEF09F'))"
_DAY = "timestamp('2020-01-01') + INTERVAL seq * 61 MINUTE"
#: Numbers that the server cuts to what a column can hold.
_HUGE = "99999999999999999999999999"
_TEXT = {"char", "varchar", "tinytext", "text", "mediumtext", "longtext"}
_BYTES = {"binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob"}
_WHOLE = {"tinyint", "smallint", "mediumint", "int", "bigint"}
SMALL = {"tinyint": 120, "smallint": 32000, "mediumint": 8000000}
BY_TYPE = {
    "decimal": f"elt(1 + seq % 4, seq % 9 / 3, -{_HUGE}, {_HUGE}, 0)",
    "float": "if(seq % 19 = 0, -0e0, seq / 3 * pow(10, seq % 60) / 1e30)",
    "double": "if(seq % 19 = 0, -0e0, seq / 3 * pow(10, seq % 300) / 1e150)",
    "date": f"elt(1 + seq % 9, '0000-00-00', '9999-12-31', '2020-00-00', {', '.join(['date(' + _DAY + ')'] * 6)})",
    "datetime": f"elt(1 + seq % 9, '0000-00-00', '9999-12-31 23:59:59.999999', {', '.join([_DAY] * 7)})",
    "timestamp": f"elt(1 + seq % 9, '0000-00-00', '2038-01-19 03:14:07.123456', {', '.join([_DAY] * 7)})",
    "time": "elt(1 + seq % 3, sec_to_time(seq), '-838:59:59', '838:59:59.999999')",
    "year": "if(seq % 9 = 0, 0, 2000 + seq % 100)",
    "json": f"json_object('number', seq, 'text', {HOSTILE})",
    "point": "POINT(seq, -1.5)",
    "geometry": "ST_GeomFromText(concat('POLYGON((0 0,0 ', 1 + seq % 9, ',9 9,0 0))'), seq % 2 * 4326)",
    "linestring": "ST_GeomFromText(concat('LINESTRING(0 0,', seq, ' 1e-30)'))",
    "polygon": "ST_GeomFromText('POLYGON((0 0,0 9,9 9,0 0))')",
    "uuid": "uuid()",
    "inet6": "concat('::', seq % 9999)",
}

#: Columns of generated values are left out. Of the last two: whether it is JSON, and whether any key has it.
_COLUMNS = """
SELECT table_name, column_name, data_type, column_type, coalesce(character_maximum_length, 0), is_nullable = 'YES',
       EXISTS (SELECT 1 FROM information_schema.check_constraints c WHERE c.constraint_schema = database()
                  AND c.table_name = t.table_name AND c.check_clause = concat('json_valid(`', column_name, '`)')),
       column_key <> ''
  FROM information_schema.columns JOIN information_schema.tables t USING (table_schema, table_name)
 WHERE table_schema = database() AND table_type = 'BASE TABLE' AND extra NOT LIKE '%GENERATED%'
 ORDER BY table_name, ordinal_position
"""
_KEYS = """
SELECT table_name, referenced_table_name, constraint_name, column_name, referenced_column_name
  FROM information_schema.key_column_usage WHERE table_schema = database() AND referenced_table_name IS NOT NULL
 ORDER BY table_name, constraint_name, ordinal_position
"""


def execute(connection: Connection, sql: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def count(connection: Connection, sql: str) -> int:
    """Run a statement; how many rows it changed."""
    with connection.cursor() as cursor:
        return int(cursor.execute(sql))


def quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _value(kind: str, definition: str, length: int, *, key: bool) -> str:
    """SQL of a column's value in row `seq`."""
    if kind in _TEXT and length > 60000 and not key:
        return f"if(seq % 16 = 5, left(repeat({HOSTILE}, 900), 15000), {HOSTILE})"
    if kind in _TEXT:
        return f"left({HOSTILE}, {length})"
    if kind in _BYTES and length > 60000 and not key:
        return f"if(seq % 16 = 5, repeat({_RAW}, 2500), {_RAW})"
    if kind in _BYTES:
        return f"left({_RAW}, {length})"
    if kind in _WHOLE:
        plain = f"seq % {SMALL[kind]}" if kind in SMALL else "seq"
        return plain if key else f"CASE seq % 17 WHEN 3 THEN {_HUGE} WHEN 4 THEN -{_HUGE} ELSE {plain} END"
    choices = definition.count("','") + 1
    if kind == "enum":
        return f"seq % {choices + 1}"  # 0 is what MySQL stores for a value that is none of them
    if kind == "set":
        return f"seq % {1 << min(choices, 62)}"
    if kind == "bit":
        return f"seq % {1 << min(int(definition[4:-1]), 62)}"
    return BY_TYPE.get(kind, "NULL")


def columns(connection: Connection) -> dict[str, list[tuple[str, str]]]:
    """For each table its columns and their values; every seventh is NULL where it may be."""
    found = defaultdict(list)
    for table, name, kind, definition, length, nullable, is_json, key in execute(connection, _COLUMNS):
        value = _value("json" if is_json else kind, definition, length, key=bool(key))
        if nullable:
            value = f"if(seq % 7 = {len(found[table]) % 7}, NULL, {value})"
        found[table].append((name, value))
    return found


def fill(connection: Connection, first: int, rows: int) -> tuple[int, list[str]]:
    """Up to `rows` rows for every table, numbered from `first`; and the tables that are still empty."""
    for text in ("sql_mode = ''", "foreign_key_checks = 0", "NAMES utf8mb4"):
        execute(connection, f"SET {text}")
    total = 0
    tables = columns(connection)
    for table, found in tables.items():
        names, values = ", ".join(quoted(name) for name, _ in found), ", ".join(value for _, value in found)
        total += count(
            connection,
            f"INSERT IGNORE INTO {quoted(table)} ({names}) SELECT {values} FROM seq_{first}_to_{first + rows - 1}",
        )
    mend(connection)
    execute(connection, "SET foreign_key_checks = 1")
    return total, [table for table in tables if not execute(connection, f"SELECT 1 FROM {quoted(table)} LIMIT 1")]


def mend(connection: Connection) -> None:
    """Take rows away whose parents are not there, until every foreign key holds."""
    keys: dict[tuple[str, str, str], list[tuple[str, str]]] = defaultdict(list)
    for child, parent, name, here, there in execute(connection, _KEYS):
        keys[child, parent, name].append((here, there))
    changed = True
    while changed:
        changed = False
        for (child, parent, _), pairs in keys.items():
            same = " AND ".join(f"p.{quoted(there)} = c.{quoted(here)}" for here, there in pairs)
            there = " AND ".join(f"c.{quoted(here)} IS NOT NULL" for here, _ in pairs)
            # A statement may not read a table that it deletes from, unless through a derived one.
            sql = (
                f"DELETE c FROM {quoted(child)} c LEFT JOIN (SELECT * FROM {quoted(parent)}) p ON {same}"
                f" WHERE {there} AND p.{quoted(pairs[0][1])} IS NULL"
            )
            changed = count(connection, sql) > 0 or changed


def change(connection: Connection, first: int, rows: int) -> None:
    """What a day does to a database: rows go, change and come in every table; one table gets a column, one is emptied."""
    for text in ("sql_mode = ''", "foreign_key_checks = 0"):
        execute(connection, f"SET {text}")
    tables = columns(connection)
    for table, found in tables.items():
        count(connection, f"DELETE FROM {quoted(table)} LIMIT 3")
        name, value = found[-1]
        number = value.replace("seq", "12345")
        count(connection, f"UPDATE IGNORE {quoted(table)} SET {quoted(name)} = {number} LIMIT 3")
    names = list(tables)
    count(
        connection, f"ALTER TABLE {quoted(names[len(names) // 2])} ADD COLUMN crmbackup_try text DEFAULT 'since then'"
    )
    count(connection, f"TRUNCATE {quoted(names[len(names) // 3])}")
    fill(connection, first, rows)
