"""Roles and the properties of a database come back on another server as they were read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest

from crmbackup.engines.postgres.connection import connect, quoted
from crmbackup.engines.postgres.roles import (
    create_database_sql,
    database_settings_sql,
    literal,
    needed_roles,
    read_database,
    read_roles,
    roles_sql,
)
from tests.postgres import TestServer, running_server

HOSTILE = "a\"b'c\\d\n\t; DROP ROLE x --"
LONG = "ü" * 31 + "z"
NAME = "The \"CRM\"\n\\ 'of' " + "é" * 20

#: Names are given to format(): {0} is the hostile role, {1} the long one, {2} the database.
STATEMENTS = (
    "CREATE ROLE {0} LOGIN CREATEDB CONNECTION LIMIT 3 VALID UNTIL '2040-02-03 04:05:06.5+02'",
    "CREATE ROLE {1} NOINHERIT CREATEROLE VALID UNTIL 'infinity'",
    "CREATE ROLE boss SUPERUSER REPLICATION BYPASSRLS PASSWORD 'not to be seen'",
    "CREATE ROLE idle",
    "GRANT {1} TO {0} WITH ADMIN OPTION",
    "GRANT idle TO {0}",
    "GRANT pg_monitor TO boss",
    "COMMENT ON ROLE {0} IS 'it''s \\ \"x\"'",
    'ALTER ROLE {0} SET search_path = "$user", public, \'we"ird, \\ one\'',
    "ALTER ROLE {0} SET work_mem = '7MB'",
    "ALTER ROLE {0} IN DATABASE {2} SET \"my.own\" = 'it''s \\ =x'",
    "ALTER ROLE {1} SET temp_tablespaces = ''",
    "ALTER DATABASE {2} OWNER TO {1}",
    "ALTER DATABASE {2} SET search_path = 'a b', \"$user\"",
    "ALTER DATABASE {2} SET timezone = 'Asia/Tokyo'",
    "ALTER DATABASE {2} SET \"my.own\" = '\\'",
    "ALTER DATABASE {2} CONNECTION LIMIT 17",
    "COMMENT ON DATABASE {2} IS 'it''s\nours'",
    "REVOKE TEMPORARY ON DATABASE {2} FROM PUBLIC",
    "GRANT CREATE ON DATABASE {2} TO {0} WITH GRANT OPTION",
)


@pytest.fixture(scope="module", params=[12, 15, 18], ids="pg{}".format)
def servers(request: pytest.FixtureRequest) -> Iterator[tuple[TestServer, TestServer]]:
    """One with the roles and the database, and an empty one of the same version."""
    with running_server(request.param) as source, running_server(request.param) as target:
        source.create_database(NAME, encoding="LATIN1", locale="C")
        with closing(source.connect()) as connection:
            for statement in STATEMENTS:
                connection.execute(statement.format(quoted(HOSTILE), quoted(LONG), quoted(NAME)).encode())
            if request.param >= 16:
                connection.execute(f"GRANT idle TO {quoted(LONG)} WITH INHERIT TRUE, SET FALSE".encode())
        with closing(source.connect(NAME)) as connection:
            connection.execute(f"CREATE SCHEMA s AUTHORIZATION {quoted(HOSTILE)}".encode())
        yield source, target


def read(server: TestServer, database: str, **options: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    with closing(connect(server.server(database))) as connection:
        return read_roles(connection, **options), read_database(connection)


def names_of(connection: psycopg.Connection[Any]) -> set[str]:
    return {str(name) for (name,) in connection.execute("SELECT rolname FROM pg_catalog.pg_roles")}


def run(connection: psycopg.Connection[Any], statements: list[str]) -> None:
    for statement in statements:
        connection.execute(statement.encode(connection.info.encoding))


def seen(name: str) -> str:
    """A name that was given in a database of UTF-8, as one of LATIN1 shows it: names of roles are bytes to a server."""
    return name.encode().decode("latin-1")


def test_roles_and_database_come_back_as_they_were(servers: tuple[TestServer, TestServer]) -> None:
    source, target = servers
    roles, database = read(source, NAME, passwords=True)
    version = source.major * 10000
    with closing(connect(target.server())) as connection:
        run(connection, [create_database_sql(database, NAME, version)])
    with closing(connect(target.server(NAME))) as connection:
        name = str(connection.execute("SELECT current_database()").fetchone()[0])
        run(connection, roles_sql(roles, names_of(connection), login=True, server_version=version, database=name))
        run(connection, database_settings_sql(database, name, owners=True))
    found_roles, found_database = read(target, NAME, passwords=True)
    assert found_database == database
    for part in ("memberships", "settings"):
        assert found_roles[part] == roles[part]
    # The superuser of initdb was there.
    assert [role for role in found_roles["roles"] if role["name"] != "postgres"] == [
        role for role in roles["roles"] if role["name"] != "postgres"
    ]
    assert database["encoding"] == "LATIN1"
    owners = [[seen(LONG), right, False] for right in ("CONNECT", "CREATE", "TEMPORARY")]
    assert database["acl"] == sorted([["", "CONNECT", False], [HOSTILE, "CREATE", True], *owners])
    settings = {(entry["role"], entry["database"]): dict(entry["settings"]) for entry in found_roles["settings"]}
    assert settings[HOSTILE, False]["search_path"] == '"$user", public, "we""ird, \\ one"'
    assert settings[HOSTILE, True] == {"my.own": "it's \\ =x"}


def test_needed_are_those_who_own_or_may_something(servers: tuple[TestServer, TestServer]) -> None:
    roles, _ = read(servers[0], NAME)
    assert needed_roles(roles) == {HOSTILE, seen(LONG)}
    assert "password" not in str(roles)


def test_without_login_roles_have_no_power_and_existing_ones_stay(servers: tuple[TestServer, TestServer]) -> None:
    source, _ = servers
    version = source.major * 10000
    roles, _ = read(source, NAME, passwords=True)
    with closing(connect(source.server(NAME), autocommit=False)) as connection:
        existing = names_of(connection)
        assert roles_sql(roles, existing, login=True, server_version=version) == []
        # Under other names, in a transaction that is rolled back.
        for entry in roles["roles"]:
            entry["name"] = "2" + entry["name"][:20]
        for entry in roles["memberships"]:
            entry["member"] = "2" + entry["member"][:20]
            entry["role"] = entry["role"] if entry["role"].startswith("pg_") else "2" + entry["role"][:20]
        statements = roles_sql(roles, existing, login=False, server_version=version)
        assert not any("PASSWORD" in statement for statement in statements)
        run(connection, statements)
        powers = connection.execute(
            "SELECT count(*), bool_or(rolsuper OR rolcreaterole OR rolcreatedb OR rolcanlogin OR rolreplication OR"
            " rolbypassrls) FROM pg_roles WHERE rolname LIKE '2%'"
        ).fetchone()
        groups = connection.execute(
            "SELECT m.rolname LIKE '2%', r.rolname LIKE '2%' FROM pg_auth_members a JOIN pg_roles r ON r.oid = a.roleid"
            " JOIN pg_roles m ON m.oid = a.member WHERE m.rolname LIKE '2%'"
        ).fetchall()
        connection.rollback()
    assert powers == (5, False)
    assert set(groups) == {(True, True)}


@pytest.mark.parametrize("conforming", ["on", "off"])
@pytest.mark.parametrize("text", ["", "'", "\\", "\\'", "a\\\\'b\n\t", "E'x'", "ü" * 40, "--", "$$"])
def test_a_literal_is_read_as_what_it_was(servers: tuple[TestServer, TestServer], text: str, conforming: str) -> None:
    with closing(servers[0].connect()) as connection:
        connection.execute(f"SET standard_conforming_strings = {conforming}".encode())
        assert connection.execute(f"SELECT {literal(text)}".encode()).fetchone() == (text,)


def test_a_right_that_is_no_word_is_refused(servers: tuple[TestServer, TestServer]) -> None:
    _, database = read(servers[0], NAME)
    forged = {**database, "acl": [["", "CREATE ON DATABASE x TO y; DROP", False]]}
    with pytest.raises(ValueError, match="not a right"):
        database_settings_sql(forged, NAME, owners=True)


def test_an_icu_database_comes_back(servers: tuple[TestServer, TestServer]) -> None:
    """Where the server was built with ICU; that of other versions cannot have any."""
    server = servers[0]
    database = {"encoding": "UTF8", "collate": "C", "ctype": "C", "provider": "i", "locale": "und-u-ks-level2",
                "icurules": "& a < b"}  # fmt: skip
    sql = create_database_sql(database, "icu", server.major * 10000)
    if server.major < 15:
        assert "ICU" not in sql
        return
    with closing(server.connect()) as connection:
        built = connection.execute("SELECT count(*) FROM pg_collation WHERE collname = 'und-x-icu'").fetchone()[0]
        if not built:
            with pytest.raises(psycopg.errors.FeatureNotSupported, match="ICU is not supported"):
                connection.execute(sql.encode())
            return
        connection.execute(sql.encode())
    found = read(server, "icu")[1]
    assert {key: found[key] for key in ("provider", "locale")} == {"provider": "i", "locale": "und-u-ks-level2"}
    assert found["icurules"] == ("& a < b" if server.major >= 16 else None)
    server.drop_database("icu")
