"""What a database holds besides what every new one holds; the mark of a restore that goes on; and making it empty again.

The mark is a schema whose comment says what is being restored. A restore that is killed leaves it, so that nobody takes
what is there for a whole database, and the next restore to the same database knows what it may remove.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg import sql as psql

from crmbackup.engines.postgres.connection import quoted

Connection = psycopg.Connection[tuple[Any, ...]]

MARK = "crmbackup_restoring"
#: What only one session of a database can hold: that which restores. Two halves of a number of our own.
_LOCK = (0x63726D62, 0x72657374)
#: How often is looked whether it is free, within a second.
_LOOKS = 20
_DROP_EVENT_TRIGGERS = "SELECT format('DROP EVENT TRIGGER %I', evtname) FROM pg_event_trigger"
#: What is dropped in one transaction: each takes locks, of which a server has a limited number.
_BATCH = 200
#: Objects made by users, and not by an extension or the server; for each kind a query of names.
_SCHEMAS = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
_OBJECTS = {
    "relation": "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n"
    f" ON n.oid = c.relnamespace WHERE {_SCHEMAS} AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 'c')",
    "function": "SELECT format('%I.%I', n.nspname, p.proname) FROM pg_proc p JOIN pg_namespace n"
    f" ON n.oid = p.pronamespace WHERE {_SCHEMAS}",
    "type": "SELECT format('%I.%I', n.nspname, t.typname) FROM pg_type t JOIN pg_namespace n"
    f" ON n.oid = t.typnamespace WHERE {_SCHEMAS} AND t.typtype IN ('e', 'd', 'r', 'b') AND t.typcategory <> 'A'",
    "schema": f"SELECT quote_ident(n.nspname) FROM pg_namespace n WHERE {_SCHEMAS} AND n.nspname <> 'public'",
    "extension": "SELECT quote_ident(extname) FROM pg_extension WHERE extname <> 'plpgsql'",
    "large object": "SELECT oid::text FROM pg_largeobject_metadata",
    "event trigger": "SELECT quote_ident(evtname) FROM pg_event_trigger",
    "publication": "SELECT quote_ident(pubname) FROM pg_publication",
    "foreign data wrapper": "SELECT quote_ident(fdwname) FROM pg_foreign_data_wrapper",
}


def what_is_there(connection: Connection) -> dict[str, tuple[int, str]]:
    """Kinds of objects with their number and the first one's name; empty for a database that is empty."""
    found = {}
    for kind, sql in _OBJECTS.items():
        row = connection.execute(f"SELECT count(*), min(x.name) FROM ({sql}) x(name)".encode()).fetchone()
        assert row is not None
        if row[0]:
            found[kind] = (int(row[0]), str(row[1]))
    return found


def take_lock(connection: Connection) -> bool:
    """For as long as the connection lives; False when another restore to this database has it."""
    for _ in range(_LOOKS):
        row = connection.execute("SELECT pg_catalog.pg_try_advisory_lock(%s, %s)", _LOCK).fetchone()
        if row and row[0]:
            return True
        # The session of a restore that has just ended, or was killed, lives on for a moment.
        connection.execute("SELECT pg_catalog.pg_sleep(0.05)")
    return False


def read_mark(connection: Connection) -> Mapping[str, Any] | None:
    """What an unfinished restore said of itself; None without one."""
    row = connection.execute(
        "SELECT pg_catalog.obj_description(oid, 'pg_namespace') FROM pg_catalog.pg_namespace WHERE nspname = %s",
        (MARK,),
    ).fetchone()
    if row is None:
        return None
    try:
        found = json.loads(row[0] or "")
        return found if isinstance(found, dict) and found.get("restoring") else None
    except ValueError:
        return None


def set_mark(
    connection: Connection,
    digest: str,
    content: str,
    token: str,
    tables: Sequence[str] = (),
    *,
    large_objects: bool = False,
) -> None:
    """Say that a restore goes on. token: what its sessions are called. The database held nothing before; for "data" only
    these `tables` were empty, and with large_objects there were none.
    """
    said = {"restoring": digest, "content": content, "token": token, "public": read_public(connection)}
    text = json.dumps({**said, "tables": list(tables), "large_objects": large_objects})
    with connection.transaction():
        connection.execute(f"CREATE SCHEMA {MARK}".encode())
        literal = psql.Literal(text).as_string(connection)
        connection.execute(f"COMMENT ON SCHEMA {MARK} IS {literal}".encode(connection.info.encoding))


def clear_mark(connection: Connection) -> None:
    """The restore is over; no event trigger sees it. Raises psycopg.Error."""
    words = {"O": "ENABLE", "R": "ENABLE REPLICA", "A": "ENABLE ALWAYS"}
    codec = connection.info.encoding
    with connection.transaction():
        acting = connection.execute(
            "SELECT quote_ident(evtname), evtenabled::text FROM pg_event_trigger"
            " WHERE evtenabled <> 'D' AND pg_has_role(evtowner, 'USAGE')"
        ).fetchall()
        for name, _ in acting:
            connection.execute(f"ALTER EVENT TRIGGER {name} DISABLE".encode(codec))
        connection.execute(f"DROP SCHEMA IF EXISTS {MARK} CASCADE".encode())
        for name, state in acting:
            connection.execute(f"ALTER EVENT TRIGGER {name} {words[state]}".encode(codec))


def make_droppable(connection: Connection) -> None:
    """A database with subscriptions cannot be dropped. Raises psycopg.Error."""
    _each(connection, _DROP_EVENT_TRIGGERS)
    _drop_subscriptions(connection)


def undo_marked(connection: Connection, mark: Mapping[str, Any]) -> None:
    """Remove what the restore did that set the mark, and the mark. Raises psycopg.Error."""
    # Programs of a restore that was killed may still be at work.
    end_sessions(connection, str(mark.get("token") or ""))
    if mark.get("content") != "data":
        make_empty(connection, mark.get("public"))
        return
    empty_tables(connection, [str(name) for name in mark.get("tables", ())])
    if mark.get("large_objects"):
        _drop_large_objects(connection)
    clear_mark(connection)


def end_sessions(connection: Connection, token: str) -> None:
    """End all sessions of a restore's workers, and wait until they are gone. Raises psycopg.Error."""
    while token:
        row = connection.execute(
            "SELECT count(pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity"
            " WHERE application_name = %s AND pid <> pg_catalog.pg_backend_pid()",
            (token,),
        ).fetchone()
        if not row or not row[0]:
            return
        connection.execute("SELECT pg_catalog.pg_sleep(0.05)")


def empty_tables(connection: Connection, tables: Sequence[str]) -> None:
    """Remove all rows of tables that held none before. tables: quoted names. Raises psycopg.Error."""
    if not tables:
        return
    codec = connection.info.encoding
    try:
        connection.execute(f"TRUNCATE {', '.join(f'ONLY {name}' for name in tables)}".encode(codec))
    except (pg.FeatureNotSupported, pg.InsufficientPrivilege):
        # Other tables refer to them: TRUNCATE then refuses even without rows.
        with connection.transaction():
            connection.execute("SET LOCAL session_replication_role = replica")
            for name in tables:
                connection.execute(f"DELETE FROM ONLY {name}".encode(codec))


def make_empty(connection: Connection, public: Mapping[str, Any] | None) -> None:
    """Drop all that users or restores made, so that the database is as a new one. Raises psycopg.Error.

    public: what `read_public` gave before.
    """
    # Event triggers come first: they would fire for all that follows.
    _each(connection, _DROP_EVENT_TRIGGERS)
    _drop_subscriptions(connection)
    _each(connection, "SELECT format('DROP PUBLICATION %I', pubname) FROM pg_publication")
    _each(
        connection,
        "SELECT format('DROP EXTENSION IF EXISTS %I CASCADE', extname) FROM pg_extension WHERE extname <> 'plpgsql'",
    )
    _each(connection, "SELECT format('DROP FOREIGN DATA WRAPPER %I CASCADE', fdwname) FROM pg_foreign_data_wrapper")
    for letters, word in (("rp", "TABLE"), ("m", "MATERIALIZED VIEW"), ("v", "VIEW"), ("f", "FOREIGN TABLE")):
        _each(
            connection,
            f"SELECT format('DROP {word} IF EXISTS %I.%I CASCADE', n.nspname, c.relname) FROM pg_class c"
            f" JOIN pg_namespace n ON n.oid = c.relnamespace WHERE {_SCHEMAS} AND c.relkind::text = ANY("
            f"string_to_array('{','.join(letters)}', ','))",
        )
    _drop_large_objects(connection)
    _each(connection, "SELECT format('DROP ACCESS METHOD %I CASCADE', amname) FROM pg_am WHERE oid >= 16384")
    _each(connection, "SELECT format('DROP LANGUAGE %I CASCADE', lanname) FROM pg_language WHERE oid >= 16384")
    _each(
        connection,
        "SELECT format('DROP CAST (%s AS %s)', castsource::regtype, casttarget::regtype) FROM pg_cast WHERE oid >= 16384"
        " AND castsource < 16384 AND casttarget < 16384",
    )
    # The mark goes last: a cleaning that is killed is taken up again.
    _each(
        connection,
        f"SELECT format('DROP SCHEMA IF EXISTS %I CASCADE', nspname) FROM pg_namespace n WHERE {_SCHEMAS}"
        f" AND nspname NOT IN ('public', '{MARK}')",
    )
    _renew_public(connection, public)
    _reset_default_rights(connection)
    clear_mark(connection)


def _each(connection: Connection, sql: str) -> None:
    """Run the statements that a query gives, some in each transaction."""
    statements = [row[0] for row in connection.execute(sql.encode()).fetchall()]
    codec = connection.info.encoding
    for start in range(0, len(statements), _BATCH):
        connection.execute("; ".join(statements[start : start + _BATCH]).encode(codec))


def _drop_subscriptions(connection: Connection) -> None:
    """Without a word to the publisher, which knows nothing of this copy."""
    row = connection.execute("SELECT has_table_privilege('pg_catalog.pg_subscription', 'SELECT')").fetchone()
    if not row or not row[0]:
        return  # who may not see them could not make them
    codec = connection.info.encoding
    for (name,) in connection.execute(
        "SELECT quote_ident(subname) FROM pg_subscription"
        " WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())"
    ).fetchall():
        for text in (
            f"ALTER SUBSCRIPTION {name} DISABLE",
            f"ALTER SUBSCRIPTION {name} SET (slot_name = NONE)",
            f"DROP SUBSCRIPTION {name}",
        ):
            connection.execute(text.encode(codec))


def _drop_large_objects(connection: Connection) -> None:
    while True:
        row = connection.execute(
            "SELECT count(lo_unlink(oid)) FROM (SELECT oid FROM pg_largeobject_metadata LIMIT 1000) x"
        ).fetchone()
        if not row or not row[0]:
            return


def read_public(connection: Connection) -> dict[str, Any] | None:
    """Owner, rights and comment of the schema public, which every new database has; None without it."""
    row = connection.execute(
        """
        SELECT pg_get_userbyid(nspowner), obj_description(oid, 'pg_namespace'),
               coalesce((SELECT json_agg(json_build_array(CASE WHEN x.grantee = 0 THEN '' ELSE
                                pg_get_userbyid(x.grantee) END, x.privilege_type, x.is_grantable)
                                ORDER BY x.grantee, x.privilege_type)
                           FROM aclexplode(coalesce(nspacl, acldefault('n', nspowner))) x), '[]')
          FROM pg_namespace WHERE nspname = 'public'"""
    ).fetchone()
    return {"owner": row[0], "comment": row[1], "acl": row[2]} if row else None


def _renew_public(connection: Connection, before: Mapping[str, Any] | None) -> None:
    """Empty it and give it back what it was. It is not dropped, since the server knows its first one by number."""
    if before is None:
        connection.execute("DROP SCHEMA IF EXISTS public CASCADE")
        return
    connection.execute("CREATE SCHEMA IF NOT EXISTS public")
    words = "CASE i.type WHEN 'statistics object' THEN 'statistics' WHEN 'composite type' THEN 'type' ELSE i.type END"
    _each(
        connection,
        f"SELECT DISTINCT format('DROP %s IF EXISTS %s CASCADE', {words}, i.identity) FROM pg_depend d,"
        " LATERAL pg_identify_object(d.classid, d.objid, 0) i WHERE d.refclassid = 'pg_namespace'::regclass"
        " AND d.refobjid = (SELECT oid FROM pg_namespace WHERE nspname = 'public') AND d.deptype = 'n'"
        " AND d.objsubid = 0 AND d.classid <> 'pg_default_acl'::regclass"
        # What belongs to another object, as a range's functions do, can only go with that one.
        " AND NOT EXISTS (SELECT 1 FROM pg_depend o WHERE o.classid = d.classid AND o.objid = d.objid"
        " AND o.objsubid = 0 AND o.deptype = 'i')",
    )
    _each(
        connection,
        "SELECT format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA public REVOKE ALL ON %s FROM %s',"
        f" pg_get_userbyid(d.defaclrole), {_DEFAULT_WORDS}, CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE"
        " quote_ident(pg_get_userbyid(x.grantee)) END) FROM pg_default_acl d, aclexplode(d.defaclacl) x"
        " WHERE d.defaclnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'public')",
    )
    now = read_public(connection)
    assert now is not None
    statements = []
    if now["owner"] != before["owner"]:
        statements.append(f"ALTER SCHEMA public OWNER TO {quoted(before['owner'])}")
    if now["acl"] != before["acl"] or statements:
        whom = {entry[0] for entry in now["acl"]} | {now["owner"], before["owner"]}
        statements += [f"REVOKE ALL ON SCHEMA public FROM {_grantee(name)}" for name in sorted(whom)]
        statements += [
            f"GRANT {_SCHEMA_RIGHTS[right]} ON SCHEMA public TO {_grantee(name)}{' WITH GRANT OPTION' * bool(grantable)}"
            for name, right, grantable in before["acl"]
        ]
    if now["comment"] != before["comment"]:
        statements.append(f"COMMENT ON SCHEMA public IS {psql.Literal(before['comment']).as_string(connection)}")
    if statements:
        connection.execute("; ".join(statements).encode(connection.info.encoding))


_SCHEMA_RIGHTS = {"USAGE": "USAGE", "CREATE": "CREATE"}
_DEFAULT_WORDS = (
    "CASE d.defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'FUNCTIONS' ELSE 'TYPES' END"
)


def _grantee(name: str) -> str:
    return quoted(name) if name else "PUBLIC"


def _reset_default_rights(connection: Connection) -> None:
    """Those of no schema; once they are as usual, the server drops the entry."""
    words = {"r": "TABLES", "S": "SEQUENCES", "f": "FUNCTIONS", "T": "TYPES", "n": "SCHEMAS", "L": "LARGE OBJECTS"}
    public = {"f": "EXECUTE ON FUNCTIONS", "T": "USAGE ON TYPES"}
    codec = connection.info.encoding
    for role, kind, grantees in connection.execute(
        """
        SELECT quote_ident(pg_get_userbyid(d.defaclrole)), d.defaclobjtype::text,
               array(SELECT DISTINCT CASE WHEN x.grantee = 0 THEN 'PUBLIC'
                                          ELSE quote_ident(pg_get_userbyid(x.grantee)) END
                       FROM aclexplode(d.defaclacl) x)
          FROM pg_default_acl d WHERE d.defaclnamespace = 0"""
    ).fetchall():
        begin = f"ALTER DEFAULT PRIVILEGES FOR ROLE {role}"
        statements = [f"{begin} REVOKE ALL ON {words[kind]} FROM {grantee}" for grantee in grantees]
        statements.append(f"{begin} GRANT ALL ON {words[kind]} TO {role}")
        if kind in public:
            statements.append(f"{begin} GRANT {public[kind]} TO PUBLIC")
        connection.execute("; ".join(statements).encode(codec))
