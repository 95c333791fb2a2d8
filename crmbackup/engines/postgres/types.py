"""What the text of a value depends on besides its bytes: labels, attributes, base types."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, NamedTuple

import psycopg

#: Types that print names from the catalogs, which can change while the value stays: regproc, regprocedure, regoper,
#: regoperator, regclass, regtype, regconfig, regdictionary, regnamespace, regrole, regcollation, aclitem.
_NAMES_FROM_CATALOGS = frozenset({24, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191, 1033})
#: The first object id that is not PostgreSQL's own (FirstNormalObjectId, src/include/access/transam.h).
_FIRST_OF_USERS = 16384

_TYPES = """
SELECT t.oid, t.typname, t.typtype, t.typbasetype, t.typtypmod, t.typcollation, t.typelem, t.typrelid, t.typoutput::oid,
       coalesce(r.rngsubtype, 0), EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
         WHERE d.classid = 'pg_catalog.pg_type'::regclass AND d.objid = t.oid AND d.deptype = 'e')
  FROM pg_catalog.pg_type t LEFT JOIN pg_catalog.pg_range r ON r.rngtypid = t.oid
"""
_LABELS = "SELECT enumtypid, oid, enumlabel FROM pg_catalog.pg_enum ORDER BY enumtypid, oid"
_ATTRIBUTES = """
SELECT a.attrelid, a.attnum, a.attname, a.atttypid, a.atttypmod, a.attcollation, a.attisdropped, a.attmissingval::text
  FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
 WHERE a.attnum > 0 AND c.oid >= 16384 AND c.relkind IN ('c', 'r', 'p', 'v', 'm', 'f')
 ORDER BY a.attrelid, a.attnum
"""
#: pg_range grew a column for the multirange of a range in 14.
_MULTIRANGES = "SELECT rngmultitypid, rngtypid FROM pg_catalog.pg_range"


class TypeFacts(NamedTuple):
    """always_read: why values of these types can change their text in place, or empty."""

    fingerprint: str
    always_read: str


class Types:
    """All types of one database."""

    def __init__(
        self, rows: Iterable[tuple[Any, ...]], labels: Iterable[Any], attributes: Iterable[Any], ranges: Iterable[Any]
    ) -> None:
        self._rows = {row[0]: row for row in rows}
        self._labels: dict[int, list[Any]] = defaultdict(list)
        for owner, *label in labels:
            self._labels[owner].append(label)
        self._attributes: dict[int, list[Any]] = defaultdict(list)
        for owner, *attribute in attributes:
            self._attributes[owner].append(attribute)
        self._ranges = dict(ranges)
        self._known: dict[frozenset[int], TypeFacts] = {}

    def of(self, oids: Iterable[int]) -> TypeFacts:
        """Of some columns' types and all that they are made of."""
        asked = frozenset(oids)
        if asked not in self._known:
            self._known[asked] = self._of(asked)
        return self._known[asked]

    def _of(self, oids: frozenset[int]) -> TypeFacts:
        seen: dict[int, object] = {}
        waiting = sorted(oids)
        reason = ""
        while waiting:
            oid = waiting.pop()
            if oid in seen or oid == 0:
                continue
            row = self._rows.get(oid)
            seen[oid] = row, self._labels.get(oid), self._attributes.get(row[7] if row else 0)
            if row is None:
                reason = reason or f"a column's type {oid} is unknown"
                continue
            if oid in _NAMES_FROM_CATALOGS:
                reason = reason or f"its columns of type {row[1]} show names that can change"
            if row[2] == "b" and oid >= _FIRST_OF_USERS and not row[6] and not row[10]:
                reason = reason or f"nothing is known of its columns' own base type {row[1]}"
            waiting += [row[3], row[6], row[9], self._ranges.get(oid, 0)]
            waiting += [attribute[2] for attribute in self._attributes.get(row[7], ()) if not attribute[5]]
        text = repr(sorted(seen.items()))
        return TypeFacts(blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest(), reason)


def read_types(connection: psycopg.Connection[tuple[Any, ...]]) -> Types:
    """From the catalogs of the database at hand."""
    ranges = connection.execute(_MULTIRANGES).fetchall() if connection.info.server_version >= 140000 else []
    return Types(
        connection.execute(_TYPES).fetchall(),
        connection.execute(_LABELS).fetchall(),
        connection.execute(_ATTRIBUTES).fetchall(),
        ranges,
    )
