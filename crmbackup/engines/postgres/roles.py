"""What lies outside of a database and belongs to it: roles, and the properties of the database itself.

What is read is JSON as it stands in a manifest; the SQL that brings it back is for servers of 12 and later.

A server keeps the names of roles and databases as bytes, which each database shows in its own encoding. So all SQL but
CREATE DATABASE must run in the new database itself, which has the encoding of the one that was read, and with its name
as `current_database()` gives it there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import psycopg
from psycopg import errors as pg

from crmbackup.core.errors import SourceDenied
from crmbackup.engines.postgres.connection import quoted

Connection = psycopg.Connection[tuple[Any, ...]]

_ROLES = """
SELECT r.rolname, r.rolsuper, r.rolinherit, r.rolcreaterole, r.rolcreatedb, r.rolcanlogin, r.rolreplication,
       r.rolbypassrls, r.rolconnlimit, r.rolvaliduntil::text, d.description
  FROM pg_catalog.pg_roles r LEFT JOIN pg_catalog.pg_shdescription d
    ON d.objoid = r.oid AND d.classoid = 'pg_catalog.pg_authid'::regclass
 WHERE r.rolname !~ '^pg_' ORDER BY r.rolname COLLATE "C"
"""
_FIELDS = ("name", "superuser", "inherit", "createrole", "createdb", "login", "replication", "bypassrls",
           "connection_limit", "valid_until", "comment")  # fmt: skip
#: Since 16 one membership can be granted by several roles, with other options each: together they are what counts.
_MEMBERS = """
SELECT r.rolname, m.rolname, bool_or(a.admin_option), {options}
  FROM pg_catalog.pg_auth_members a JOIN pg_catalog.pg_roles r ON r.oid = a.roleid
  JOIN pg_catalog.pg_roles m ON m.oid = a.member
 WHERE m.rolname !~ '^pg_' GROUP BY 1, 2 ORDER BY r.rolname COLLATE "C", m.rolname COLLATE "C"
"""
_SETTINGS = """
SELECT coalesce(r.rolname, ''), s.setdatabase <> 0, s.setconfig FROM pg_catalog.pg_db_role_setting s
  LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
 WHERE s.setdatabase IN (0, (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))
   AND (s.setrole <> 0 OR s.setdatabase = 0) AND (s.setrole = 0 OR r.rolname IS NOT NULL)
 ORDER BY 1, 2
"""
#: The superuser of initdb (10) is not noted in pg_shdepend.
_NEEDED = """
SELECT DISTINCT r.rolname FROM pg_catalog.pg_shdepend s JOIN pg_catalog.pg_roles r ON r.oid = s.refobjid
  JOIN pg_catalog.pg_database d ON d.datname = current_database()
 WHERE s.refclassid = 'pg_catalog.pg_authid'::regclass AND r.rolname !~ '^pg_'
   AND (s.dbid = d.oid OR (s.classid = 'pg_catalog.pg_database'::regclass AND s.objid = d.oid))
UNION
SELECT r.rolname FROM pg_catalog.pg_roles r WHERE r.oid = 10 AND 10 IN (
    SELECT datdba FROM pg_catalog.pg_database WHERE datname = current_database()
    UNION ALL SELECT relowner FROM pg_catalog.pg_class WHERE oid >= 16384
    UNION ALL SELECT proowner FROM pg_catalog.pg_proc WHERE oid >= 16384
    UNION ALL SELECT typowner FROM pg_catalog.pg_type WHERE oid >= 16384
    UNION ALL SELECT nspowner FROM pg_catalog.pg_namespace WHERE oid >= 16384)
 ORDER BY 1
"""


def read_roles(connection: Connection, *, passwords: bool = False) -> dict[str, Any]:
    """All roles but PostgreSQL's own: {"roles": [...], "memberships": [...], "settings": [...], "needed": [...]}.

    passwords: with the hashes. needed: those that own something in this database or have a right there. Raises
    SourceDenied when hashes are asked for by someone who is not a superuser, psycopg.Error.
    """
    roles = [dict(zip(_FIELDS, row, strict=True)) for row in connection.execute(_ROLES)]
    if passwords:
        hashes = _hashes(connection)
        for role in roles:
            role["password"] = hashes.get(role["name"])
    newer = connection.info.server_version >= 160000
    options = "bool_or(a.inherit_option), bool_or(a.set_option)" if newer else "NULL, NULL"
    memberships = []
    for role, member, admin, inherit, may_set in connection.execute(_MEMBERS.format(options=options).encode()):
        entry = {"role": role, "member": member, "admin": admin}
        memberships.append({**entry, "inherit": inherit, "set": may_set} if newer else entry)
    settings = [
        {"role": role, "database": here, "settings": _settings(config)}
        for role, here, config in connection.execute(_SETTINGS)
    ]
    needed = [name for (name,) in connection.execute(_NEEDED)]
    return {"roles": roles, "memberships": memberships, "settings": settings, "needed": needed}


def _hashes(connection: Connection) -> dict[str, str | None]:
    try:
        rows = connection.execute("SELECT rolname, rolpassword FROM pg_catalog.pg_authid").fetchall()
    except pg.InsufficientPrivilege as error:
        raise SourceDenied(
            "the passwords of the roles cannot be read",
            why="only a superuser may read pg_authid",
            hint="back up as a superuser, or leave passwords out and set them after a restore",
        ) from error
    return dict(rows)


def _settings(config: list[str] | None) -> list[list[str]]:
    return [list(item.partition("=")[::2]) for item in config or ()]


def read_database(connection: Connection) -> dict[str, Any]:
    """The properties of the database at hand; acl as [grantee or "" for all, right, grantable]. Raises psycopg.Error."""
    version = connection.info.server_version
    provider = "d.datlocprovider::text" if version >= 150000 else "'c'"
    locale = "d.datlocale" if version >= 170000 else "d.daticulocale" if version >= 150000 else "NULL"
    rules = "d.daticurules" if version >= 160000 else "NULL"
    row = connection.execute(
        f"""
        SELECT d.datname, pg_encoding_to_char(d.encoding), d.datcollate, d.datctype, {provider}, {locale}, {rules},
               pg_get_userbyid(d.datdba), shobj_description(d.oid, 'pg_database'), d.datconnlimit,
               (SELECT s.setconfig FROM pg_catalog.pg_db_role_setting s WHERE s.setdatabase = d.oid AND s.setrole = 0)
          FROM pg_catalog.pg_database d WHERE d.datname = current_database()""".encode()
    ).fetchone()
    assert row is not None
    names = ("name", "encoding", "collate", "ctype", "provider", "locale", "icurules", "owner", "comment",
             "connection_limit", "settings")  # fmt: skip
    result: dict[str, Any] = dict(zip(names, row, strict=True))
    result["settings"] = _settings(result["settings"])
    acl = connection.execute(
        """
        SELECT DISTINCT CASE WHEN x.grantee = 0 THEN '' ELSE pg_get_userbyid(x.grantee) END, x.privilege_type,
               x.is_grantable
          FROM pg_catalog.pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) x
         WHERE d.datname = current_database()"""
    )
    result["acl"] = sorted([str(grantee), right, grantable] for grantee, right, grantable in acl)
    return result


def create_database_sql(database: Mapping[str, Any], name: str, server_version: int) -> str:
    """CREATE DATABASE with the same encoding and locale, as far as that server (server_version_num) knows them."""
    parts = [
        f"CREATE DATABASE {quoted(name)} TEMPLATE template0 ENCODING {literal(database['encoding'])}",
        f"LC_COLLATE {literal(database['collate'])} LC_CTYPE {literal(database['ctype'])}",
    ]
    provider, locale, rules = database["provider"], database.get("locale"), database.get("icurules")
    if server_version >= 150000:
        word = {"c": "libc", "i": "icu", "b": "builtin"}.get(provider, "libc")
        parts.append(f"LOCALE_PROVIDER {word}")
        if word == "icu" and locale:
            parts.append(f"ICU_LOCALE {literal(locale)}")
        if word == "icu" and rules and server_version >= 160000:
            parts.append(f"ICU_RULES {literal(rules)}")
        if word == "builtin" and locale:
            parts.append(f"BUILTIN_LOCALE {literal(locale)}")
    return " ".join(parts)


def database_settings_sql(database: Mapping[str, Any], name: str, *, owners: bool) -> list[str]:
    """Statements for the properties that an existing database can take; owners: with owner and rights.

    For the end of a restore: the connection limit and the owner can lock out whoever restores.
    """
    target = f"DATABASE {quoted(name)}"
    result = [f"ALTER {target} SET {setting_sql(key, value)}" for key, value in database["settings"]]
    if database["comment"] is not None:
        result.append(f"COMMENT ON {target} IS {literal(database['comment'])}")
    if database["connection_limit"] >= 0:
        result.append(f"ALTER {target} CONNECTION LIMIT {int(database['connection_limit'])}")
    if owners:
        owner = quoted(database["owner"])
        result += [f"ALTER {target} OWNER TO {owner}", f"REVOKE ALL ON {target} FROM PUBLIC, {owner}"]
        for grantee, right, grantable in database["acl"]:
            whom = quoted(grantee) if grantee else "PUBLIC"
            more = " WITH GRANT OPTION" if grantable else ""
            result.append(f"GRANT {_word(right)} ON {target} TO {whom}{more}")
    return result


def needed_roles(layout_roles: Mapping[str, Any]) -> set[str]:
    """Names of the roles without which owners and rights cannot come back."""
    return set(layout_roles.get("needed", ()))


def roles_sql(
    roles: Mapping[str, Any], existing: set[str], *, login: bool, server_version: int, database: str = ""
) -> list[str]:
    """Statements that make the roles that are missing; those that exist are not touched.

    existing: all roles of the target, its own pg_* too. login: with all that they may do, as recorded (attributes,
    passwords if recorded, settings, memberships in pg_*); else they cannot log in and have no rights over the server.
    server_version: the target's server_version_num. database: for settings of a role in this database; none if empty.
    """
    missing = {role["name"]: role for role in roles["roles"] if role["name"] not in existing}
    result = [_create(role, login=login) for role in missing.values()]
    result += [
        f"COMMENT ON ROLE {quoted(name)} IS {literal(role['comment'])}"
        for name, role in missing.items()
        if role.get("comment") is not None
    ]
    for entry in roles["memberships"]:
        group = entry["role"]
        known = group in missing or (group in existing and (login or not group.startswith("pg_")))
        if entry["member"] in missing and known:
            result.append(_membership(entry, server_version))
    if login:
        result += _role_settings(roles["settings"], missing.keys(), database)
    return result


def role_settings_sql(roles: Mapping[str, Any], existing: Collection[str], database: str) -> list[str]:
    """What roles had set in this database alone (ALTER ROLE ... IN DATABASE), of those that the target has."""
    here = [entry for entry in roles["settings"] if entry["database"]]
    return list(_role_settings(here, existing, database))


def _create(role: Mapping[str, Any], *, login: bool) -> str:
    words = ["INHERIT" if role["inherit"] else "NOINHERIT"]
    fields = ("superuser", "createrole", "createdb", "login", "replication", "bypassrls")
    words += [field.upper() if login and role[field] else f"NO{field.upper()}" for field in fields]
    words.append(f"CONNECTION LIMIT {int(role['connection_limit'])}")
    if login and role.get("password"):
        words.append(f"PASSWORD {literal(role['password'])}")
    if role["valid_until"] is not None:
        words.append(f"VALID UNTIL {literal(role['valid_until'])}")
    return f"CREATE ROLE {quoted(role['name'])} {' '.join(words)}"


def _membership(entry: Mapping[str, Any], server_version: int) -> str:
    text = f"GRANT {quoted(entry['role'])} TO {quoted(entry['member'])}"
    if server_version < 160000:
        return text + (" WITH ADMIN OPTION" if entry["admin"] else "")
    options = [f"ADMIN {_boolean(entry['admin'])}"]
    options += [f"{word.upper()} {_boolean(entry[word])}" for word in ("inherit", "set") if word in entry]
    return f"{text} WITH {', '.join(options)}"


def _role_settings(settings: list[Mapping[str, Any]], made: Any, database: str) -> Iterator[str]:
    for entry in settings:
        if entry["role"] not in made or (entry["database"] and not database):
            continue
        where = f" IN DATABASE {quoted(database)}" if entry["database"] else ""
        for key, value in entry["settings"]:
            yield f"ALTER ROLE {quoted(entry['role'])}{where} SET {setting_sql(key, value)}"


def _boolean(value: bool) -> str:
    return "TRUE" if value else "FALSE"


def _word(right: str) -> str:
    """A right is a plain word of SQL."""
    if not re.fullmatch(r"[A-Z ]+", right):
        raise ValueError(f"{right!r} is not a right")
    return right


#: Settings whose stored value is a list of identifiers (GUC_LIST_QUOTE); quoted as one it would be one identifier.
_LISTS = frozenset({"local_preload_libraries", "search_path", "session_preload_libraries", "shared_preload_libraries",
                    "temp_tablespaces", "unix_socket_directories"})  # fmt: skip
_ITEM = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^,"]*?))\s*(?:,|$)')


def setting_sql(key: str, value: str) -> str:
    """What follows SET, from how the catalogs hold it."""
    if key.lower() not in _LISTS:
        return f"{quoted(key)} TO {literal(value)}"
    items, place = [], 0
    while place < len(value):
        match = _ITEM.match(value, place)
        if not match:
            raise ValueError(f"{key} is not a list of names")
        items.append(match[2] if match[1] is None else match[1].replace('""', '"'))
        place = match.end()
    return f"{quoted(key)} TO {', '.join(map(literal, items)) or literal('')}"


def literal(text: str) -> str:
    """A string of SQL, whatever it holds and whatever standard_conforming_strings says."""
    inner = text.replace("'", "''")
    return " E'" + inner.replace("\\", "\\\\") + "'" if "\\" in inner else f"'{inner}'"
