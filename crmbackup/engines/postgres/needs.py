"""What each table needs before it can stand alone in another database, as entries of pg_dump's archive."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg

from crmbackup.engines.postgres.catalog import Table

Connection = psycopg.Connection[tuple[Any, ...]]
Entry = tuple[int, int]

_CLASS = 1259  # pg_class
#: The first object id that is not PostgreSQL's own, and the schema public.
_FIRST, _PUBLIC = 16384, (2615, 2200)

#: What depends on what. A sequence that a table owns may be used by another one: it does not bring its owner along.
_DEPENDS = f"""
SELECT d.classid, d.objid, d.refclassid, d.refobjid FROM pg_catalog.pg_depend d
 WHERE (d.refobjid >= {_FIRST} OR (d.refclassid = {_PUBLIC[0]} AND d.refobjid = {_PUBLIC[1]}))
   AND (d.classid, d.objid) <> (d.refclassid, d.refobjid)
   AND NOT (d.deptype = 'a' AND d.classid = {_CLASS} AND d.refclassid = {_CLASS}
            AND EXISTS (SELECT 1 FROM pg_catalog.pg_class c WHERE c.oid = d.objid AND c.relkind = 'S'))
"""

#: What belongs to a relation or type and is an entry of its own. Of a foreign key also the table that it points at.
_PARTS = f"""
SELECT 1259, adrelid, 2604, oid, 0 FROM pg_catalog.pg_attrdef
UNION ALL SELECT 1259, conrelid, 2606, oid, CASE contype WHEN 'f' THEN confrelid ELSE 0 END
  FROM pg_catalog.pg_constraint WHERE conrelid <> 0 AND contype <> 't'
UNION ALL SELECT 1247, contypid, 2606, oid, 0 FROM pg_catalog.pg_constraint WHERE contypid <> 0
UNION ALL SELECT 1247, oid, 1259, typrelid, 0 FROM pg_catalog.pg_type WHERE typrelid <> 0
UNION ALL SELECT 1259, indrelid, 1259, indexrelid, 0 FROM pg_catalog.pg_index
UNION ALL SELECT 1259, tgrelid, 2620, oid, 0 FROM pg_catalog.pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT 1259, ev_class, 2618, oid, 0 FROM pg_catalog.pg_rewrite
UNION ALL SELECT 1259, polrelid, 3256, oid, 0 FROM pg_catalog.pg_policy
UNION ALL SELECT 1259, stxrelid, 3381, oid, 0 FROM pg_catalog.pg_statistic_ext
UNION ALL SELECT 1259, d.refobjid, 1259, d.objid, 0 FROM pg_catalog.pg_depend d
  JOIN pg_catalog.pg_class c ON c.oid = d.objid
 WHERE c.relkind = 'S' AND d.classid = {_CLASS} AND d.refclassid = {_CLASS} AND d.deptype IN ('a', 'i')
"""


#: Names, the same in every language of the server. Parts of tables, and what an extension brings, go with those.
_NAMES = f"""
SELECT t.c::text || '/' || t.o, i.type || ' ' || i.identity
  FROM unnest(%s::oid[], %s::oid[]) t(c, o), LATERAL pg_catalog.pg_identify_object(t.c, t.o, 0) i
 WHERE t.c NOT IN (2604, 2606, 2618, 2620, 3256, 3381) AND (t.c, t.o) <> ({_PUBLIC[0]}, {_PUBLIC[1]})
   AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d WHERE d.classid = t.c AND d.objid = t.o
                      AND (d.deptype = 'e' OR (t.c = {_CLASS} AND d.refclassid = {_CLASS} AND d.deptype IN ('a', 'i', 'P'))
                           OR (t.c = 1247 AND d.deptype = 'i')))
   AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_class k WHERE t.c = {_CLASS} AND k.oid = t.o AND k.relkind IN ('i', 'I'))
 ORDER BY 2
"""
_EXTENSIONS = "SELECT '3079/' || oid, extname FROM pg_catalog.pg_extension ORDER BY extname"


def read_names(connection: Connection, needs: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """What the entries of `read_needs` are called, such as "type crm.stage"; of those that are no parts of a table.

    Raises psycopg.Error.
    """
    keys = {key for entries in needs.values() for key in entries}
    classes, oids = zip(*(map(int, key.split("/")) for key in sorted(keys)), strict=True) if keys else ((), ())
    return dict(connection.execute(_NAMES.encode(), (list(classes), list(oids))).fetchall())


def read_extensions(connection: Connection) -> dict[str, str]:
    """Names of extensions by their entries. Raises psycopg.Error."""
    return dict(connection.execute(_EXTENSIONS).fetchall())


def read_needs(connection: Connection, tables: Sequence[Table]) -> dict[str, list[str]]:
    """For each table's label the entries "classid/oid" (in numbers, as `pg_restore -l` shows them) that it needs.

    These are its own parts (defaults, constraints, indexes, triggers, rules, policies, statistics, sequences that it
    owns) and all that it and they depend on by pg_depend, over any number of steps: types, functions, operators,
    collations, sequences, extensions, schemas, tables that it inherits from or is a partition of, with their parts. The
    table itself is not included, nor is what every server has. A foreign key is included if the table that it points at
    is. What only the text of a function names is not known to the server. Raises psycopg.Error.
    """
    forward: dict[Entry, set[Entry]] = defaultdict(set)
    for class_id, oid, other_class, other in connection.execute(_DEPENDS.encode()):
        forward[class_id, oid].add((other_class, other))
    foreign: dict[Entry, dict[Entry, Entry]] = defaultdict(dict)
    for class_id, oid, part_class, part, points_at in connection.execute(_PARTS.encode()):
        if points_at:
            foreign[class_id, oid][part_class, part] = (_CLASS, points_at)
        elif part >= _FIRST:
            forward[class_id, oid].add((part_class, part))
    return {table.label: _entries((_CLASS, table.oid), forward, foreign) for table in tables}


def _entries(
    start: Entry, forward: Mapping[Entry, set[Entry]], foreign: Mapping[Entry, Mapping[Entry, Entry]]
) -> list[str]:
    seen = {start}
    _reach([start], seen, forward)
    # A foreign key needs nothing but the tables and unique indexes of both sides, which are all there.
    keys = {key for entry in seen for key, points_at in foreign.get(entry, {}).items() if points_at in seen}
    return [f"{class_id}/{oid}" for class_id, oid in sorted((seen | keys) - {start})]


def _reach(waiting: list[Entry], seen: set[Entry], forward: Mapping[Entry, set[Entry]]) -> None:
    while waiting:
        for entry in forward.get(waiting.pop(), ()):
            if entry not in seen:
                seen.add(entry)
                waiting.append(entry)
