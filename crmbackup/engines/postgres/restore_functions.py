"""Functions that definitions rest on, as the source has them while they are made.

pg_dump's definitions run with an empty search_path, and it carries nothing of what was altered on an extension's objects.
Two customs of CRM databases cannot come back so: an index or check over a function that names others without their
schema, and an index over a function of an extension that was made IMMUTABLE (Odoo does that with unaccent).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg

from crmbackup.engines.postgres.layout import Layout
from crmbackup.engines.postgres.programs import Program
from crmbackup.engines.postgres.restore_program import text_of_entries
from crmbackup.engines.postgres.restore_toc import Entry
from crmbackup.engines.postgres.roles import setting_sql

Connection = psycopg.Connection[tuple[Any, ...]]

_USUAL_PATH = '"$user", public'
#: What indexes can be over, and what checks are: functions of users, without a search_path of their own. 12 and 13 are the
#: languages internal and C, 14 is SQL.
_RESTED_ON = """
SELECT p.oid, p.oid::pg_catalog.regprocedure::text, p.prolang = 14 AND NOT EXISTS (
           SELECT 1 FROM pg_catalog.unnest(p.proargtypes) a(oid) JOIN pg_catalog.pg_type t ON t.oid = a.oid
            WHERE t.typtype = 'p')
  FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
 WHERE p.oid >= 16384 AND p.prokind = 'f' AND p.prolang NOT IN (12, 13) AND n.nspname !~ '^pg_' AND {sqlbody}
   AND NOT EXISTS (SELECT 1 FROM pg_catalog.unnest(p.proconfig) c WHERE c LIKE 'search\\_path=%%')
   AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend e WHERE e.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
                      AND e.objid = p.oid AND e.deptype = 'e')
   AND pg_catalog.pg_has_role(p.proowner, 'USAGE')
   AND (p.provolatile = 'i' OR EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
         WHERE d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass
           AND d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.refobjid = p.oid))
 ORDER BY 2
"""
_OF_EXTENSIONS = """
SELECT pg_catalog.format('%I.%I', n.nspname, p.proname), p.pronargs - p.pronargdefaults, p.pronargs,
       p.oid::pg_catalog.regprocedure::text
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  JOIN pg_catalog.pg_depend e ON e.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND e.objid = p.oid
 WHERE e.deptype = 'e' AND p.prokind = 'f' AND p.provolatile <> 'i'
"""


def prepare(
    connection: Connection, program: Program, archive: Path, entries: Sequence[Entry], layout: Layout
) -> list[str]:
    """Before any row, index or constraint asks for functions; gives the statements that take back what they were given.

    Raises psycopg.Error, ObjectDamaged, LocalError kinds.
    """
    indexes = [entry for entry in entries if entry.kind == "INDEX"]
    if indexes and any(entry.kind == "EXTENSION" for entry in entries):
        make_immutable(connection, text_of_entries(program, archive, indexes))
    return lend_paths(connection, layout.database["settings"])


def lend_paths(connection: Connection, settings: Sequence[Sequence[str]]) -> list[str]:
    """Give functions that need it the database's usual search_path; gives the statements that take it back.

    settings: of the database. In SQL the server can tell which functions need it; those of any type, and other languages,
    are only understood as they run. Raises psycopg.Error.
    """
    path = next((value for key, value in settings if key.lower() == "search_path"), _USUAL_PATH)
    undo, codec = [], connection.info.encoding
    sqlbody = "p.prosqlbody IS NULL" if connection.info.server_version >= 140000 else "true"
    for oid, name, can_tell in connection.execute(_RESTED_ON.format(sqlbody=sqlbody).encode()).fetchall():
        if not can_tell or _fails(connection, oid):
            connection.execute(f"ALTER FUNCTION {name} SET {setting_sql('search_path', path)}".encode(codec))
            undo.append(f"ALTER FUNCTION {name} RESET search_path")
    return undo


def _fails(connection: Connection, oid: int) -> bool:
    """Whether the server finds something wrong with the text of a function in SQL."""
    try:
        with connection.transaction():
            connection.execute("SET LOCAL check_function_bodies = on")
            connection.execute("SELECT pg_catalog.fmgr_sql_validator(%s)", (oid,))
    except (psycopg.ProgrammingError, psycopg.DataError):
        return True
    return False


def make_immutable(connection: Connection, indexes: bytes) -> None:
    """Functions of extensions that these definitions of indexes call: they could not, were they not IMMUTABLE in the source.

    Raises psycopg.Error.
    """
    codec = connection.info.encoding
    for name, least, most, signature in connection.execute(_OF_EXTENSIONS).fetchall():
        if any(least <= count <= most for count in _calls(indexes, name.encode(codec))):
            connection.execute(f"ALTER FUNCTION {signature} IMMUTABLE".encode(codec))


def _calls(text: bytes, name: bytes) -> Iterator[int]:
    """With how many arguments a function is called."""
    for match in re.finditer(rb"(?<![\w\".])" + re.escape(name) + rb"\(", text):
        depth, commas = 1, 0
        for token in re.finditer(rb"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|[(),\[\]]", text[match.end() :]):
            depth += {b"(": 1, b"[": 1, b")": -1, b"]": -1}.get(token[0], 0)
            commas += token[0] == b"," and depth == 1
            if not depth:
                break
        yield commas + 1


def take_back(connection: Connection, statements: Sequence[str]) -> None:
    """Run what `prepare` gave. Raises psycopg.Error."""
    for text in statements:
        connection.execute(text.encode(connection.info.encoding))
