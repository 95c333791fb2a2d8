"""What follows the rows: where sequences stand, whose large objects are, materialised views, statistics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg import sql as psql

from crmbackup.core.events import Emit, Notice, Warned
from crmbackup.engines.base import Workers
from crmbackup.engines.postgres.connection import AS_SERVED, Server, make_canonical, quoted, target_errors, text_of
from crmbackup.engines.postgres.layout import LargeObject, SequenceLayout
from crmbackup.engines.postgres.restore_data import run

Connection = psycopg.Connection[tuple[Any, ...]]

#: What is wrong with a query or its rows, not with the server.
_REFUSED = (psycopg.ProgrammingError, psycopg.DataError, psycopg.IntegrityError)
#: What goes to the server at once.
_BATCH = 500
#: Tables in one ANALYZE.
_ANALYZED = 50


def create_large_objects(connection: Connection, objects: Sequence[LargeObject]) -> None:
    """Empty ones, so that pieces can be written in any order. Raises psycopg.Error."""
    for start in range(0, len(objects), _BATCH):
        oids = [found.oid for found in objects[start : start + _BATCH]]
        connection.execute("SELECT count(pg_catalog.lo_create(o)) FROM unnest(%s::oid[]) o", (oids,))


def finish_large_objects(connection: Connection, objects: Iterable[LargeObject], *, roles: bool) -> None:
    """Comments; with roles, owners and rights too. Raises psycopg.Error."""
    statements: list[str] = []
    for found in objects:
        name = f"LARGE OBJECT {found.oid}"
        if found.comment is not None:
            statements.append(f"COMMENT ON {name} IS {psql.Literal(found.comment).as_string(connection)}")
        if not roles:
            continue
        for grantee, right, grantable in found.acl:
            to = quoted(grantee) if grantee else "PUBLIC"
            option = " WITH GRANT OPTION" if grantable else ""
            statements.append(f"GRANT {_right(right)} ON {name} TO {to}{option}")
        # Last: whoever gives an object away may not grant rights on it any more.
        statements.append(f"ALTER {name} OWNER TO {quoted(found.owner)}")
    codec = connection.info.encoding
    for start in range(0, len(statements), _BATCH):
        connection.execute("; ".join(statements[start : start + _BATCH]).encode(codec))


def _right(name: str) -> str:
    """A word of the catalogs, never a text of a snapshot."""
    return {"SELECT": "SELECT", "UPDATE": "UPDATE"}[name]


def set_sequences(connection: Connection, sequences: Sequence[SequenceLayout]) -> None:
    """Let each one continue where it stood. Raises psycopg.Error."""
    for start in range(0, len(sequences), _BATCH):
        batch = sequences[start : start + _BATCH]
        connection.execute(
            "SELECT count(pg_catalog.setval(pg_catalog.format('%%I.%%I', s, n)::pg_catalog.regclass, v, c))"
            " FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bool[]) t(s, n, v, c)",
            (
                [item.schema for item in batch],
                [item.name for item in batch],
                [item.last_value for item in batch],
                [item.is_called for item in batch],
            ),
        )


def sequences_of(connection: Connection, tables: Sequence[str]) -> set[tuple[str, str]]:
    """Schemas and names of the sequences that these tables own. Raises psycopg.Error."""
    rows = connection.execute(
        "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c"
        " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid"
        " AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i')"
        " WHERE c.relkind = 'S' AND d.refobjid = ANY(%s::text[]::pg_catalog.regclass[])",
        (list(tables),),
    ).fetchall()
    return set(rows)


def matviews_of(connection: Connection) -> set[str]:
    """Labels of the materialised views that are there. Raises psycopg.Error."""
    rows = connection.execute(
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c"
        " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'm'"
    )
    return {label for (label,) in rows}


def refresh(connection: Connection, server: Server, labels: Sequence[str], emit: Emit, *, neutral: bool) -> None:
    """Fill materialised views, in order. One that cannot be filled stays empty, with a warning: what it is made of is there.
    neutral: then it is an error, as the drill is to tell of it, unless it reads a foreign table, which a drill never does.

    Raises TargetError kinds.
    """
    with target_errors(server, "materialized views"):
        connection.execute(AS_SERVED)
        # A view's owner may be subject to policies: they then apply, as they did when it was filled.
        connection.execute("SET row_security = on")
        over_foreign = _over_foreign(connection)
    for label in labels:
        if neutral and label in over_foreign:
            emit(
                Notice(f"materialized view {label} stays empty: it needs a foreign table, and a drill reaches nothing")
            )
            continue
        with target_errors(server, f"materialized view {label}"):
            try:
                _refresh(connection, label, emit)
            except psycopg.Error as error:
                # In a snapshot of an earlier version one may read another that was not filled.
                unfilled = isinstance(error, pg.ObjectNotInPrerequisiteState)
                if label in over_foreign:
                    hint = "refresh it when the foreign server can be reached"
                elif unfilled or (not neutral and isinstance(error, _REFUSED)):
                    hint = "mend the view, or the rows that it is made of, and refresh it"
                else:
                    raise
                emit(Warned("matview-empty", f"materialized view {label} stays empty: {text_of(error)}", hint))
    with target_errors(server):
        make_canonical(connection)


def _refresh(connection: Connection, label: str, emit: Emit) -> None:
    text = f"REFRESH MATERIALIZED VIEW {label}".encode(connection.info.encoding)
    try:
        connection.execute(text)
    except (pg.UndefinedTable, pg.UndefinedFunction, pg.UndefinedObject) as error:
        # A function that it calls names others without their schema: it needs the search path of a usual session.
        emit(Notice(f"materialized view {label} needs the usual search_path: {text_of(error)}"))
        connection.execute("RESET search_path")
        try:
            connection.execute(text)
        finally:
            connection.execute("SET search_path = ''")


def _over_foreign(connection: Connection) -> set[str]:
    """Materialised views that read a foreign table, over any number of views."""
    rows = connection.execute(
        """
        WITH RECURSIVE reads(reader, read) AS (
            SELECT DISTINCT r.ev_class, d.refobjid FROM pg_catalog.pg_rewrite r
              JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid
             WHERE d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid <> r.ev_class
             UNION
            SELECT i.inhparent, i.inhrelid FROM pg_catalog.pg_inherits i
        ), below(oid) AS (
            SELECT c.oid FROM pg_catalog.pg_class c WHERE c.relkind = 'f'
             UNION SELECT r.reader FROM reads r JOIN below b ON b.oid = r.read)
        SELECT format('%I.%I', n.nspname, c.relname) FROM below b JOIN pg_catalog.pg_class c ON c.oid = b.oid
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'm'"""
    ).fetchall()
    return {row[0] for row in rows}


def analyze(connection: Connection, server: Server, workers: Workers) -> None:
    """Statistics of all tables, for a usable plan from the first query on; of those that have foreign tables among their
    children only the children's, as ANALYZE would ask the foreign servers. Raises TargetError kinds.
    """
    with target_errors(server):
        names = [
            row[0]
            for row in connection.execute(
                """
                WITH RECURSIVE far(oid) AS (
                    SELECT oid FROM pg_catalog.pg_class WHERE relkind = 'f'
                     UNION SELECT i.inhparent FROM pg_catalog.pg_inherits i JOIN far f ON f.oid = i.inhrelid)
                SELECT format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c
                  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
                 WHERE c.relkind IN ('r', 'p', 'm') AND c.oid NOT IN (SELECT oid FROM far)
                   AND (NOT c.relispartition OR EXISTS (SELECT 1 FROM pg_catalog.pg_inherits i
                         WHERE i.inhrelid = c.oid AND i.inhparent IN (SELECT oid FROM far)))
                   AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
                   AND pg_catalog.pg_has_role(c.relowner, 'USAGE')
                 ORDER BY c.relpages DESC"""
            ).fetchall()
        ]
    lists = [names[start :: _parts(len(names))] for start in range(_parts(len(names)))]
    futures = [workers.submit(run, server, [f"ANALYZE {', '.join(some)}"], [AS_SERVED]) for some in lists if some]
    for future in futures:
        future.result()


def _parts(count: int) -> int:
    return max(1, (count + _ANALYZED - 1) // _ANALYZED, min(count, 8))


def neutralise(connection: Connection) -> list[str]:
    """Let nothing of the database reach other servers or act on commands; gives the statements that undo it.

    Raises psycopg.Error.
    """
    undo = []
    codec = connection.info.encoding
    for name, handler in connection.execute(
        "SELECT quote_ident(fdwname), format('%I.%I', n.nspname, p.proname) FROM pg_catalog.pg_foreign_data_wrapper w"
        " JOIN pg_catalog.pg_proc p ON p.oid = w.fdwhandler JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace"
    ).fetchall():
        connection.execute(f"ALTER FOREIGN DATA WRAPPER {name} NO HANDLER".encode(codec))
        undo.append(f"ALTER FOREIGN DATA WRAPPER {name} HANDLER {handler}")
    words = {"O": "ENABLE", "R": "ENABLE REPLICA", "A": "ENABLE ALWAYS"}
    for name, state in connection.execute(
        "SELECT quote_ident(evtname), evtenabled::text FROM pg_catalog.pg_event_trigger WHERE evtenabled <> 'D'"
    ).fetchall():
        connection.execute(f"ALTER EVENT TRIGGER {name} DISABLE".encode(codec))
        undo.append(f"ALTER EVENT TRIGGER {name} {words[state]}")
    return undo
