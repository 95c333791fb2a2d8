"""Large objects: which there are, whose they are, and who may do what with them."""

from __future__ import annotations

from typing import Any

import psycopg

from crmbackup.engines.postgres.layout import LargeObject

Connection = psycopg.Connection[tuple[Any, ...]]

#: Large objects in one slice.
GROUP = 64

_OBJECTS = """
SELECT m.oid, pg_catalog.pg_get_userbyid(m.lomowner), pg_catalog.obj_description(m.oid, 'pg_largeobject')
  FROM pg_catalog.pg_largeobject_metadata m ORDER BY m.oid
"""
_RIGHTS = """
SELECT m.oid, CASE WHEN a.grantee = 0 THEN '' ELSE pg_catalog.pg_get_userbyid(a.grantee) END, a.privilege_type,
       a.is_grantable
  FROM pg_catalog.pg_largeobject_metadata m, pg_catalog.aclexplode(m.lomacl) a
 WHERE a.grantee <> m.lomowner
 ORDER BY 1, 2, 3
"""


def read_large_objects(connection: Connection) -> list[LargeObject]:
    """All of them, by oid. The owner's own rights are not listed."""
    rights: dict[int, list[tuple[str, str, bool]]] = {}
    for oid, grantee, right, grantable in connection.execute(_RIGHTS):
        rights.setdefault(oid, []).append((grantee, right, grantable))
    return [
        LargeObject(oid, owner, tuple(rights.get(oid, ())), comment)
        for oid, owner, comment in connection.execute(_OBJECTS)
    ]
