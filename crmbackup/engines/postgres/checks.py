"""What a restored database is checked for besides its rows and definitions: its indexes and foreign keys hold."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import psycopg

from crmbackup.engines.base import CheckOutcome
from crmbackup.engines.postgres.connection import quoted

Connection = psycopg.Connection[tuple[Any, ...]]

_SHOWN = 20
_OURS = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"

_INVALID_INDEXES = f"""
SELECT format('%I.%I', n.nspname, x.relname) FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = x.relnamespace
 -- That of a partitioned table is not valid before every partition has one, by its owner's choice.
 WHERE NOT i.indisvalid AND c.relkind <> 'p' AND {_OURS} ORDER BY 1
"""

_NOT_VALIDATED = f"""
SELECT format('%I.%I %I', n.nspname, c.relname, o.conname) FROM pg_catalog.pg_constraint o
  JOIN pg_catalog.pg_class c ON c.oid = o.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE NOT o.convalidated AND {_OURS} ORDER BY 1
"""

#: One row for each pair of columns. A partition's copy (with a parent) is checked with the whole table.
_FOREIGN_KEYS = """
SELECT o.oid, n.nspname, c.relname, o.conname, m.nspname, p.relname, c.relkind = 'p', p.relkind = 'p',
       o.confmatchtype = 'f', {period}, a.attname, b.attname, s.nspname, q.oprname,
       CASE WHEN a.attcollation <> b.attcollation THEN l.collname END, k.nspname
  FROM pg_catalog.pg_constraint o
  JOIN pg_catalog.pg_class c ON c.oid = o.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_class p ON p.oid = o.confrelid JOIN pg_catalog.pg_namespace m ON m.oid = p.relnamespace
  CROSS JOIN LATERAL unnest(o.conkey, o.confkey, o.conpfeqop) WITH ORDINALITY AS u(fk, pk, op, place)
  JOIN pg_catalog.pg_attribute a ON a.attrelid = o.conrelid AND a.attnum = u.fk
  JOIN pg_catalog.pg_attribute b ON b.attrelid = o.confrelid AND b.attnum = u.pk
  JOIN pg_catalog.pg_operator q ON q.oid = u.op JOIN pg_catalog.pg_namespace s ON s.oid = q.oprnamespace
  LEFT JOIN pg_catalog.pg_collation l ON l.oid = b.attcollation
  LEFT JOIN pg_catalog.pg_namespace k ON k.oid = l.collnamespace
 WHERE o.contype = 'f' AND o.convalidated AND {enforced} AND o.conparentid = 0
   AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
 ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C", o.conname COLLATE "C", u.place
"""


@dataclass(frozen=True)
class ForeignKey:
    """One that claims to hold. sql: a query whose only value is the number of rows that point at nothing. Picklable."""

    label: str
    sql: str


@dataclass(frozen=True)
class Claims:
    """What the catalogs say of indexes and constraints. invalid, waiting: names of indexes, of constraints."""

    invalid: list[str]
    waiting: list[str]
    keys: list[ForeignKey]


def read_claims(connection: Connection) -> Claims:
    """What `check_claims` looks into, perhaps after this transaction was taken back. Raises psycopg.Error.

    connection: from `connect`.
    """
    return Claims(_names(connection, _INVALID_INDEXES), _names(connection, _NOT_VALIDATED), foreign_keys(connection))


def check_claims(connection: Connection, claims: Claims) -> list[CheckOutcome]:
    """The outcomes "invalid_indexes", "not_validated_constraints" (for information) and "foreign_key_check".

    connection: of a user who reads every table. Raises psycopg.Error.
    """
    invalid, waiting = claims.invalid, claims.waiting
    return [
        CheckOutcome("invalid_indexes", not invalid, _shown(invalid) if invalid else "every index is valid"),
        CheckOutcome(
            "not_validated_constraints", True, _shown(waiting) if waiting else "every constraint is validated"
        ),
        check_foreign_keys(connection, claims.keys),
    ]


def check_foreign_keys(connection: Connection, keys: list[ForeignKey]) -> CheckOutcome:
    """Whether every row that refers to another one finds it. Raises psycopg.Error."""
    broken = []
    for key in keys:
        row = connection.execute(key.sql.encode(connection.info.encoding)).fetchone()
        assert row is not None
        if row[0]:
            broken.append(f"{key.label}: {row[0]} rows without the row they refer to")
    detail = _shown(broken) if broken else f"{len(keys)} foreign keys hold"
    return CheckOutcome("foreign_key_check", not broken, detail)


def foreign_keys(connection: Connection) -> list[ForeignKey]:
    """All that claim to be validated, with queries that run on their own, in any order, on any connection."""
    newest = connection.info.server_version >= 180000
    sql = _FOREIGN_KEYS.format(
        period="o.conperiod" if newest else "false", enforced="o.conenforced" if newest else "true"
    )
    columns: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for row in connection.execute(sql.encode()):
        columns[row[0]].append(row[1:])
    return [_foreign_key(rows) for rows in columns.values()]


def _foreign_key(rows: list[tuple[Any, ...]]) -> ForeignKey:
    schema, table, name, other_schema, other, parted, other_parted, full, period = rows[0][:9]
    label = f"{quoted(schema, table)} {quoted(name)}"
    # Rows of tables that inherit are not bound by the key, and cannot be referred to; partitions' are, and can.
    child = ("" if parted else "ONLY ") + quoted(schema, table)
    parent = ("" if other_parted else "ONLY ") + quoted(other_schema, other)
    pairs = [_equal(row[9:]) for row in rows]
    # MATCH SIMPLE: a row with any NULL refers to nothing. MATCH FULL: only if all are NULL; some is a breach.
    word = " OR " if full else " AND "
    refers = word.join(f"f.{quoted(row[9])} IS NOT NULL" for row in rows)
    if period:
        # The last pair are ranges of time: those of all matching rows together must cover it.
        mine, theirs = quoted(rows[-1][9]), quoted(rows[-1][10])
        found = (
            f"coalesce((SELECT f.{mine} OPERATOR(pg_catalog.<@) pg_catalog.range_agg(p.{theirs}) FROM {parent} p"
            f" WHERE {' AND '.join([*pairs[:-1], f'p.{theirs} OPERATOR(pg_catalog.&&) f.{mine}'])}), false)"
        )
    else:
        found = f"EXISTS (SELECT 1 FROM {parent} p WHERE {' AND '.join(pairs)})"
    return ForeignKey(label, f"SELECT count(*) FROM {child} f WHERE ({refers}) AND NOT {found}")


def _equal(row: tuple[Any, ...]) -> str:
    """With the operator of the key itself, and where the collations differ, with that of the row referred to."""
    mine, theirs, schema, operator, collation, collation_schema = row
    collate = f" COLLATE {quoted(collation_schema, collation)}" if collation else ""
    return f"p.{quoted(theirs)} OPERATOR({quoted(schema)}.{operator}) f.{quoted(mine)}{collate}"


def _names(connection: Connection, sql: str) -> list[str]:
    return [str(name) for (name,) in connection.execute(sql.encode())]


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
