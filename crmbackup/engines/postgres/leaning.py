"""What cannot exist without an extension: told at the snapshot, since a drill without it must know what to expect.

An object leans on an extension if the server would drop it together with the extension (DROP ... CASCADE): what depends
on one of its members, over any number of steps, and what such an object is a part of. A default or a check stands in its
table's own definition, so the table leans as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg

Connection = psycopg.Connection[tuple[Any, ...]]


class Leaning(NamedTuple):
    """One object. name: for people, such as "view crm.jobs"; empty for what goes with another one that is listed."""

    class_id: int
    oid: int
    name: str


# 3079 is pg_extension, 2604 pg_attrdef, 2606 pg_constraint, 1259 pg_class, 1247 pg_type.
_LEANING = """
WITH RECURSIVE lean(class, oid) AS (
    SELECT 3079::oid, x.oid FROM pg_catalog.pg_extension x WHERE x.extname = ANY (%(names)s)
    UNION
    SELECT n.class, n.oid FROM lean l, LATERAL (
        SELECT d.classid AS class, d.objid AS oid FROM pg_catalog.pg_depend d
         WHERE d.refclassid = l.class AND d.refobjid = l.oid
        UNION ALL
        SELECT d.refclassid, d.refobjid FROM pg_catalog.pg_depend d
         WHERE d.classid = l.class AND d.objid = l.oid AND d.deptype = 'i'
        UNION ALL
        SELECT 1259::oid, a.adrelid FROM pg_catalog.pg_attrdef a WHERE l.class = 2604 AND a.oid = l.oid
        UNION ALL
        SELECT CASE WHEN c.conrelid <> 0 THEN 1259 ELSE 1247 END::oid, greatest(c.conrelid, c.contypid)
          FROM pg_catalog.pg_constraint c WHERE l.class = 2606 AND c.oid = l.oid AND c.contype = 'c'
    ) n
), own AS (
    SELECT l.* FROM lean l
     WHERE NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension x ON x.oid = d.refobjid
                        WHERE d.classid = l.class AND d.objid = l.oid AND d.deptype = 'e' AND d.refclassid = 3079
                          AND x.extname = ANY (%(names)s))
       AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_extension x
                        WHERE l.class = 3079 AND x.oid = l.oid AND x.extname = ANY (%(names)s))
)
SELECT o.class, o.oid,
       CASE WHEN EXISTS (SELECT 1 FROM pg_catalog.pg_depend d JOIN lean l ON l.class = d.refclassid AND l.oid = d.refobjid
                          WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype IN ('a', 'i', 'e', 'P', 'S'))
            THEN '' ELSE coalesce(i.type || ' ' || i.identity, '') END
  FROM own o, LATERAL pg_catalog.pg_identify_object(o.class, o.oid, 0) i
 ORDER BY 1, 2
"""


def read_leaning(connection: Connection, extensions: Sequence[str]) -> list[Leaning]:
    """All that leans on these extensions, without what is theirs. Raises psycopg.Error."""
    if not extensions:
        return []
    return [Leaning(*row) for row in connection.execute(_LEANING, {"names": list(extensions)})]
