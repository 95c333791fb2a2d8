"""A canonical description of all that a database holds besides rows: equal for a source and its exact restore.

Equal means: on the same major version. What cannot be carried by pg_dump, or is the server's own choice, does not enter:
members of extensions, indexes that failed to build, names of foreign keys' copies on partitions, tablespaces, the
order in which inherited columns lie, owners of extensions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import psycopg
from psycopg.adapt import Buffer, Loader

from crmbackup.engines.postgres.acting import ACTING
from crmbackup.engines.postgres.acting import without as reduced
from crmbackup.engines.postgres.connection import encoding_of
from crmbackup.engines.postgres.describe_sql import FIRST, GONE, going_without, queries
from crmbackup.engines.postgres.leaning import read_leaning

Connection = psycopg.Connection[tuple[Any, ...]]

#: Kinds that say something of objects that are counted elsewhere.
_NOT_COUNTED = frozenset({"owners", "privileges"})
#: Kinds that a restore without roles does not bring back.
_OF_ROLES = frozenset({"owners", "privileges", "default_privileges"})


#: Neither an array type nor the row type of a table.
_STANDALONE = (
    "typtype <> 'm' AND (typrelid = 0 OR (SELECT c.relkind = 'c' FROM pg_class c WHERE c.oid = typrelid))"
    " AND NOT EXISTS (SELECT 1 FROM pg_type a WHERE a.typarray = o.oid)"
)


def _objects() -> str:
    """Everything that has an owner or rights: class, oid, column, owner, rights, what the rights are by default.

    An extension's owner is whoever restores, so extensions are not there.
    """
    # catalog, owner, rights, letter of acldefault, schema, more conditions
    catalogs: tuple[tuple[str, str, str, str, str, str], ...] = (
        ("pg_class", "relowner", "relacl", "CASE relkind WHEN 'S' THEN 's' ELSE 'r' END", "relnamespace",
         "relkind IN ('r', 'p', 'v', 'm', 'f', 'S')"),
        ("pg_proc", "proowner", "proacl", "'f'", "pronamespace", ""),
        ("pg_type", "typowner", "typacl", "'T'", "typnamespace",
         _STANDALONE),
        ("pg_namespace", "nspowner", "nspacl", "'n'", "oid", ""),
        ("pg_language", "lanowner", "lanacl", "'l'", "0", ""),
        ("pg_foreign_data_wrapper", "fdwowner", "fdwacl", "'F'", "0", ""),
        ("pg_foreign_server", "srvowner", "srvacl", "'S'", "0", ""),
        ("pg_largeobject_metadata", "lomowner", "lomacl", "'L'", "0", ""),
        ("pg_operator", "oprowner", "NULL", "", "oprnamespace", "oprcode <> 0"),
        ("pg_opclass", "opcowner", "NULL", "", "opcnamespace", ""),
        ("pg_opfamily", "opfowner", "NULL", "", "opfnamespace", ""),
        ("pg_collation", "collowner", "NULL", "", "collnamespace", ""),
        ("pg_conversion", "conowner", "NULL", "", "connamespace", ""),
        ("pg_ts_dict", "dictowner", "NULL", "", "dictnamespace", ""),
        ("pg_ts_config", "cfgowner", "NULL", "", "cfgnamespace", ""),
        ("pg_statistic_ext", "stxowner", "NULL", "", "stxnamespace", ""),
        ("pg_event_trigger", "evtowner", "NULL", "", "0", ""),
        ("pg_publication", "pubowner", "NULL", "", "0", ""),
    )  # fmt: skip
    parts = []
    for catalog, owner, rights, letter, schema, condition in catalogs:
        class_name = "pg_largeobject" if catalog == "pg_largeobject_metadata" else catalog
        default = f'acldefault(({letter})::"char", {owner})' if letter else "NULL"
        parts.append(
            f"SELECT '{class_name}'::regclass::oid AS class, o.oid, 0 AS part, {owner} AS owner,"
            f" {rights}::aclitem[] AS rights, {default} AS usual, {schema}::oid AS schema, {letter != ''} AS has_rights"
            f" FROM {catalog} o" + (f" WHERE {condition}" if condition else "")
        )
    parts.append(
        "SELECT 'pg_class'::regclass::oid, attrelid, attnum, relowner, attacl, '{}'::aclitem[], relnamespace, true"
        " FROM pg_attribute JOIN pg_class c ON c.oid = attrelid WHERE attacl IS NOT NULL AND NOT attisdropped"
    )
    return " UNION ALL ".join(parts)


#: The superuser that initdb made is called differently on another server, and owns what initdb made.
_ROLE = "CASE WHEN o.oid < {first} AND {role} = 10 THEN '*' ELSE quote_ident(pg_get_userbyid({role})) END"
_RIGHTS = f"""
(SELECT coalesce(array_agg(item ORDER BY item COLLATE "C"), '{{{{}}}}') FROM (
    SELECT CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE {_ROLE.format(first=FIRST, role="x.grantee")} END
           || '=' || x.privilege_type || CASE WHEN x.is_grantable THEN '*' ELSE '' END
           || '/' || {_ROLE.format(first=FIRST, role="x.grantor")} AS item FROM aclexplode({{0}}) x) AS items)"""


#: As the server prints them, where no role needs another name.
_ITEMS = """(SELECT coalesce(array_agg(i::text ORDER BY i::text COLLATE "C"), '{{}}') FROM unnest({0}) i)"""


def _of_roles() -> dict[str, str]:
    """Owners, rights and rights to come. Rights on what PostgreSQL or an extension made enter where they were changed,
    since pg_dump carries those.
    """
    objects = f"""
        WITH objects AS MATERIALIZED (
            SELECT o.*, o.oid >= {FIRST} OR (o.oid = 2200 AND o.class = 'pg_namespace'::regclass) AS of_users,
                   EXISTS (SELECT 1 FROM pg_depend e WHERE e.classid = o.class AND e.objid = o.oid
                           AND e.deptype = 'e') AS of_extension
              FROM ({_objects()}) o
             WHERE (o.oid >= {FIRST} OR o.rights IS NOT NULL OR o.oid = 2200)
               AND NOT EXISTS (SELECT 1 FROM {GONE} g(classid, objid) WHERE g.classid = o.class AND g.objid = o.oid)
               AND NOT EXISTS (SELECT 1 FROM pg_namespace n WHERE n.oid = o.schema AND n.nspname ~ '^pg_(toast|temp)'))"""
    return {
        "owners": f"""{objects}
            SELECT i.type || ' ' || i.identity AS name, {_ROLE.format(first=FIRST, role="o.owner")} AS owner
              FROM objects o, LATERAL pg_identify_object(o.class, o.oid, 0) i
             WHERE o.of_users AND NOT o.of_extension AND o.part = 0""",
        "privileges": f"""{objects}
            SELECT i.type || ' ' || i.identity AS name, r.rights
              FROM objects o LEFT JOIN pg_init_privs p ON p.classoid = o.class AND p.objoid = o.oid
                   AND p.objsubid = o.part,
                   LATERAL pg_identify_object(o.class, o.oid, o.part) i,
                   LATERAL (SELECT CASE WHEN o.oid >= {FIRST} THEN {_ITEMS.format("coalesce(o.rights, o.usual)")}
                                        ELSE {_RIGHTS.format("coalesce(o.rights, o.usual)")} END AS rights) r
             WHERE o.has_rights AND (o.of_users AND NOT o.of_extension OR
                   (o.rights IS NOT NULL AND r.rights <> CASE WHEN o.oid >= {FIRST}
                    THEN {_ITEMS.format("coalesce(p.initprivs, o.usual)")}
                    ELSE {_RIGHTS.format("coalesce(p.initprivs, o.usual)")} END))""",
        "default_privileges": f"""
            SELECT pg_get_userbyid(d.defaclrole) || ' ' || coalesce(n.nspname, '') || ' ' || d.defaclobjtype::text AS name,
                   (SELECT {_RIGHTS.format("o.defaclacl")} FROM (SELECT d.oid, d.defaclacl) o) AS rights
              FROM pg_default_acl d LEFT JOIN pg_namespace n ON n.oid = d.defaclnamespace""",
    }


class _TextLoader(Loader):
    """A database in SQL_ASCII may hold any bytes; they stay what they are."""

    def load(self, data: Buffer) -> str:
        return bytes(data).decode("utf-8", "surrogateescape")


def listing(
    connection: Connection, *, owners: bool = True, gone: Collection[tuple[int, int]] = ()
) -> dict[str, dict[str, str]]:
    """For each kind of object the definition of each one, as text, by name.

    connection: from `connect`, for its settings. owners: with owners and rights. gone: objects, by class and oid, that
    are left out with all that is said of them. Raises psycopg.Error.
    """
    major = connection.info.server_version // 10000
    wanted = {**queries(major), **_of_roles()}
    result: dict[str, dict[str, str]] = {}
    raw = encoding_of(connection) in ("SQL_ASCII", "MULE_INTERNAL", "EUC_TW")
    usual = str(connection.info.parameter_status("client_encoding"))
    if raw:
        connection.execute("SET client_encoding = 'SQL_ASCII'")  # as UTF8 the server would refuse bytes that are not
    for kind, sql in sorted(wanted.items()):
        if kind in _OF_ROLES and not owners:
            continue
        found: dict[str, list[str]] = {}
        text = f"SELECT q.name::text, row_to_json(q)::text FROM ({going_without(sql, gone)}) q"
        with connection.cursor() as cursor:
            if raw:
                cursor.adapters.register_loader("text", _TextLoader)
            for name, definition in cursor.execute(text.encode()).fetchall():
                found.setdefault(name, []).append(same_names(same_arrays(definition)))
        # Two objects of one name would be a fault of ours; neither may hide the other.
        result[kind] = {name: "\n".join(sorted(definitions)) for name, definitions in sorted(found.items())}
    if raw:
        connection.execute(f"SET client_encoding = '{usual}'".encode("ascii"))
    return result


def describe(connection: Connection, *, owners: bool = True, without: Sequence[str] = ()) -> dict[str, Any]:
    """{"digest", "objects": {kind: count}, "settings": {name: value}, "kinds": {kind: digest}}, digests in hex.

    With extensions that a drill leaves out also "drilled": the same of what it brings back, and "without": their names.
    Of a database from which they were left out (`without`) only that. connection, owners: as for `listing`.
    Raises psycopg.Error.
    """
    found = listing(connection, owners=owners)
    acting = sorted(ACTING.keys() & found["extensions"].keys())
    result = {**_summary(reduced(found, without)), "settings": _settings(connection)}
    if without:
        result["without"] = list(without)
    if acting:
        if leaning := [(each.class_id, each.oid) for each in read_leaning(connection, acting)]:
            found = listing(connection, owners=owners, gone=leaning)
        result["drilled"] = {**_summary(reduced(found, acting)), "without": acting}
    return result


def _summary(found: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    kinds = {kind: _digest(definitions) for kind, definitions in found.items()}
    return {
        "digest": _digest(kinds),
        "objects": {kind: len(entries) for kind, entries in found.items() if entries and kind not in _NOT_COUNTED},
        "kinds": kinds,
    }


def _digest(value: object) -> str:
    # Not core.canonical: bytes that are not valid text (as lone surrogates) must pass.
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return blake2b(text.encode("ascii"), digest_size=16).hexdigest()


def _settings(connection: Connection) -> dict[str, str]:
    """What was chosen when the database was made."""
    major = connection.info.server_version // 10000
    provider = "datlocprovider" if major >= 15 else "'c'"
    locale = "datlocale" if major >= 17 else "daticulocale" if major >= 15 else "NULL"
    rules = "daticurules" if major >= 16 else "NULL"
    row = connection.execute(
        f"""
        SELECT pg_encoding_to_char(encoding), datcollate, datctype, {provider}::text, {locale}, {rules}
          FROM pg_database WHERE datname = current_database()""".encode()
    ).fetchone()
    assert row is not None
    names = ("encoding", "collate", "ctype", "locale provider", "locale", "ICU rules")
    return {name: str(value) for name, value in zip(names, row, strict=True) if value is not None}


# An IN list of varchar is shown as one cast of the whole array, and once that text was read back, as a cast of each
# element: (ARRAY['a'::character varying, ...])::text[] and ARRAY[('a'::character varying)::text, ...]. Definitions in
# JSON: a quote is a quote there, and a backslash before a double quote does not matter between single quotes.
_CONSTANT = r"'(?:[^']|'')*'(?:::[a-z][a-z ]*(?:\(\d+\))?)"
_ARRAY = re.compile(rf"\(ARRAY\[({_CONSTANT}(?:, {_CONSTANT})*)\]\)::([a-z][a-z ]*)\[\]")
_ELEMENT = re.compile(_CONSTANT)


def same_arrays(definition: str) -> str:
    """The second of two ways in which the server shows one array of constants, where it is the first."""
    if "(ARRAY[" not in definition:
        return definition
    return _ARRAY.sub(
        lambda match: "ARRAY[" + ", ".join(f"({item})::{match[2]}" for item in _ELEMENT.findall(match[1])) + "]",
        definition,
    )


# A UNION casts a constant or an expression that has no name to its column's type; that cast is shown without a name,
# and once that text was read back, with the name that a cast has by itself: NULL::integer and NULL::integer AS int4.
_SHOWN_AS = {
    "integer": "int4",
    "bigint": "int8",
    "smallint": "int2",
    "boolean": "bool",
    "real": "float4",
    "double precision": "float8",
    "character": "bpchar",
    "character varying": "varchar",
    "bit varying": "varbit",
    "timestamp with time zone": "timestamptz",
    "timestamp without time zone": "timestamp",
    "time with time zone": "timetz",
    "time without time zone": "time",
}
_NAMED_CAST = re.compile(
    r"""::((?:\\?"?\w+\\?"?\.)?(?:bit\ varying|character\ varying|double\ precision|\\?"?\w+\\?"?))
        ((?:\([\d,]+\))?) ((?:\ with(?:out)?\ time\ zone)?) ((?:\[\])*)
        \ AS\ (?:\\"(\w+)\\"|(\w+)) (?=,|;|\)|\ |\\n)""",
    re.VERBOSE,
)


def same_names(definition: str) -> str:
    """A query without the names that casts have by themselves."""
    if "::" not in definition or " AS " not in definition:
        return definition
    return _NAMED_CAST.sub(_without_name, definition)


def _without_name(match: re.Match[str]) -> str:
    kind = match[1].replace('\\"', "").rpartition(".")[2] + match[3]
    if _SHOWN_AS.get(kind, kind) != (match[5] or match[6]):
        return match[0]
    return f"::{match[1]}{match[2]}{match[3]}{match[4]}"
