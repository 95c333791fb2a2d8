"""Rows for any PostgreSQL schema: each table is filled by its columns' types, and foreign keys hold in the end.

Every value follows from the row's number alone, so that the child numbered 7 finds the parent numbered 7 where neither
broke a check; the others lose their reference, or go.
"""

from __future__ import annotations

import re
from typing import Any

import psycopg
from psycopg import sql

Connection = psycopg.Connection[tuple[Any, ...]]

#: What a COPY line, a psql script or a careless tool could take for something else.
HOSTILE = r"""(ARRAY['', E'\t', E'\\N', E'\n\\.\n', E'\r\n', E'\\', '''"$$', 'žluťoučký 漢字 😀'])[1 + g % 8]"""
BY_TYPE = {
    "int2": "g % 32768",
    "int4": "g",
    "int8": "g",
    "oid": "g",
    "numeric": "g",
    "float4": "g / 3.0",
    "float8": "g / 3.0",
    "money": "g",
    "bool": "g % 2 = 0",
    "date": "date '2020-01-01' + g",
    "timestamp": "timestamp '2020-01-01' + g * interval '61.000001 minutes'",
    "timestamptz": "timestamptz '2020-01-01 00:00Z' + g * interval '61.000001 minutes'",
    "time": "time '00:00' + g * interval '1 second'",
    "timetz": "timetz '00:00Z' + g * interval '1 second'",
    "interval": "g * interval '1 day 1 second'",
    "uuid": "md5(g::text)",
    "bytea": "decode(md5(g::text), 'hex')",
    "inet": "inet '10.0.0.0' + g",
    "cidr": "host(inet '10.0.0.0' + g)",
    "macaddr": "left(md5(g::text), 12)",
    "tsvector": "to_tsvector('simple', 'row ' || g)",
    "tsquery": "'row & ' || g",
    "point": "point(g, -g / 3.0)",
    "box": "box(point(g, g), point(0, 0))",
    "polygon": "polygon(box(point(g, g), point(0, 0)))",
    "circle": "circle(point(g, g), 1)",
    "path": "'((0,0),(1,' || g || '))'",
    "lseg": "lseg(point(0, 0), point(1, g))",
    "line": "line(point(0, 0), point(1, g))",
    "xml": "'<row>' || g || '</row>'",
    "hstore": "'number=>' || g",
    "cube": "'(0, ' || g || ')'",
    "earth": "'(6378168, 0, 0)'",
    "ltree": "'top.row' || g",
    "char": "'c'",
    "bit": "1::bit(1)",
    "varbit": "B'1'",
    "pg_lsn": "'0/' || g",
    "regclass": "'pg_class'",
    "json": "json_build_object('number', g, 'text', {text})",
    "jsonb": "json_build_object('number', g, 'text', {text})",
}

_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod), b.typname, b.typtype::text, b.typcategory::text, b.typname,
       CASE WHEN b.typname IN ('varchar', 'bpchar') THEN greatest(greatest(a.atttypmod, t.typtypmod) - 4, 0) ELSE 0 END,
       a.attnotnull OR t.typnotnull, a.atthasdef OR a.attidentity <> '', e.typname, e.typtype::text,
       format_type(b.oid, NULL), format_type(e.oid, NULL), a.attndims
  FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
  JOIN pg_type b ON b.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END
  LEFT JOIN pg_type e ON e.oid = b.typelem AND b.typcategory = 'A'
 WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
 ORDER BY a.attnum
"""
_TABLES = """
SELECT c.oid, n.nspname, c.relname, c.relkind::text, pg_get_partition_constraintdef(c.oid)
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
   AND NOT EXISTS (SELECT 1 FROM pg_depend d
                    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
 ORDER BY c.relkind = 'r', n.nspname COLLATE "C", c.relname COLLATE "C"
"""
_KEYS = """
SELECT k.conrelid::regclass::text, k.confrelid::regclass::text,
       array(SELECT quote_ident(a.attname) FROM unnest(k.conkey) WITH ORDINALITY u(n, i)
               JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.n ORDER BY u.i),
       array(SELECT quote_ident(a.attname) FROM unnest(k.confkey) WITH ORDINALITY u(n, i)
               JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.n ORDER BY u.i),
       array(SELECT quote_ident(a.attname) FROM unnest(k.conkey) u(n)
               JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.n WHERE NOT a.attnotnull)
  FROM pg_constraint k WHERE k.contype = 'f' AND k.conparentid = 0 ORDER BY k.oid
"""
_BOUND = re.compile(r"""\((\w+|"[^"]+") (?:>=|=|= ANY) \(?(?:ARRAY\[)?('[^']*'::[a-z_ .]+|[-\d.]+)""")
#: Each is tried until the table's checks let one through: hostile texts, plain ones, only what must be there.
MODES = ("hostile", "plain", "sparse", "minimal")


def _value(name: str, kind: str, full: str, length: int, text: str) -> str:
    """The SQL of one value as a function of g; NULL for a type that nothing is known of."""
    if kind == "e":
        return f"(enum_range(NULL::{full}))[1 + g % array_length(enum_range(NULL::{full}), 1)]"
    if kind == "r":
        return f"'empty'::{full}"
    if name in ("text", "varchar", "bpchar", "citext", "name"):
        return f"left({text}, {length})" if length else text
    return BY_TYPE.get(name, "NULL").replace("{text}", text)


def _columns(connection: Connection, oid: int, mode: str) -> list[tuple[str, str]]:
    """Names and values."""
    text = f"('k' || g || {HOSTILE})" if mode == "hostile" else "('k' || g)"
    found = []
    for row in connection.execute(_COLUMNS, (oid,)):
        column, full, name, kind, category, _, length, needed, default, element, element_kind, base, element_full, _ = (
            row
        )
        if (mode in ("sparse", "minimal") and not needed) or (mode == "minimal" and default):
            continue
        if category == "A":
            inner = _value(element, element_kind, element_full, 0, text)
            value = f"ARRAY[{inner}, {inner}]::{base}" if inner != "NULL" else "NULL"
        else:
            value = _value(name, kind, base, length, text if length == 0 or length > 60 else "('k' || g)")
        if value == "NULL" and not needed:
            continue
        found.append((column, f"({value})::{full}"))
    return found


def _insert(connection: Connection, table: tuple[Any, ...], first: int, count: int) -> int:
    """Rows that went in by the first mode that the table takes."""
    oid, schema, name, _, bounds = table
    fixed = {column.strip('"'): value for column, value in _BOUND.findall(bounds or "")}
    for mode in MODES:
        columns = [(column, fixed.get(column, value)) for column, value in _columns(connection, oid, mode)]
        if not columns:
            continue
        text = sql.SQL(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM generate_series({}, {}) AS s(g)"
        ).format(
            sql.Identifier(schema, name),
            sql.SQL(", ").join(sql.Identifier(column) for column, _ in columns),
            sql.SQL(", ".join(value for _, value in columns)),
            first,
            first + count - 1,
        )
        try:
            with connection.transaction():
                done = connection.execute(text + sql.SQL(" ON CONFLICT DO NOTHING")).rowcount
        except psycopg.Error:
            continue
        if done > 0:
            return done
    return 0


def fill(connection: Connection, first: int, count: int) -> tuple[int, list[str]]:
    """Up to `count` rows for every table, numbered from `first`; the tables that took none.

    connection: of a superuser. Triggers and foreign keys are off meanwhile; foreign keys hold afterwards.
    """
    connection.execute("SET session_replication_role = replica")
    rows = 0
    for table in connection.execute(_TABLES).fetchall():
        rows += _insert(connection, table, first, count)
    mend(connection)
    connection.execute("RESET session_replication_role")
    empty = [
        f"{schema}.{name}"
        for _, schema, name, kind, _ in connection.execute(_TABLES).fetchall()
        if kind == "r"
        and not connection.execute(
            sql.SQL("SELECT 1 FROM ONLY {} LIMIT 1").format(sql.Identifier(schema, name))
        ).fetchone()
    ]
    return rows, empty


def mend(connection: Connection) -> None:
    """Take away references to rows that are not there, until every foreign key holds."""
    keys = connection.execute(_KEYS).fetchall()
    changed = True
    while changed:
        changed = False
        for child, parent, columns, parent_columns, nullable in keys:
            same = " AND ".join(f"p.{there} = c.{here}" for here, there in zip(columns, parent_columns, strict=True))
            orphans = (
                " AND ".join(f"c.{column} IS NOT NULL" for column in columns)
                + f" AND NOT EXISTS (SELECT 1 FROM {parent} p WHERE {same})"
            )
            remove = f"DELETE FROM {child} c WHERE {orphans}"
            empty = ", ".join(f"{column} = NULL" for column in nullable)
            try:
                with connection.transaction():
                    done = connection.execute(f"UPDATE {child} c SET {empty} WHERE {orphans}" if nullable else remove)
            except psycopg.Error:
                done = connection.execute(remove)
            changed = changed or done.rowcount > 0


def change(connection: Connection, first: int, count: int) -> None:
    """What a day does to a database: rows go, change and come in every table; one table gets a column, one is emptied."""
    connection.execute("SET session_replication_role = replica")
    tables = [table for table in connection.execute(_TABLES).fetchall() if table[3] == "r"]
    for oid, schema, name, _, _ in tables:
        table = sql.Identifier(schema, name)
        connection.execute(
            sql.SQL("DELETE FROM ONLY {0} WHERE ctid IN (SELECT ctid FROM ONLY {0} LIMIT 3)").format(table)
        )
        for column, _ in _columns(connection, oid, "plain")[-1:]:
            connection.execute(
                sql.SQL("UPDATE ONLY {0} SET {1} = {1} WHERE ctid IN (SELECT ctid FROM ONLY {0} LIMIT 3)").format(
                    table, sql.Identifier(column)
                )
            )
    plain = [table for table in tables if not table[4]]
    _, schema, name, _, _ = plain[len(plain) // 2]
    connection.execute(
        sql.SQL("ALTER TABLE {} ADD COLUMN crmbackup_try text DEFAULT 'since then'").format(
            sql.Identifier(schema, name)
        )
    )
    _, schema, name, _, _ = plain[len(plain) // 3]
    connection.execute(sql.SQL("TRUNCATE {} CASCADE").format(sql.Identifier(schema, name)))
    fill(connection, first, count)
