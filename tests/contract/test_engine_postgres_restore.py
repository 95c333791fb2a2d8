"""Bringing all of a PostgreSQL database back, on real servers; and nothing of it when that fails."""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from crmbackup.core.errors import CrmBackupError, TargetError, TargetExists
from crmbackup.core.events import Warned
from crmbackup.engines.base import Restore
from crmbackup.engines.postgres import restore_data as data
from crmbackup.engines.postgres.connection import Server
from crmbackup.engines.postgres.restore_clean import MARK, end_sessions
from crmbackup.operations.workers import ProcessWorkers
from tests.postgres import TestServer
from tests.support_postgres import PgChain, assert_same
from tests.support_postgres_cases import CRM, HOSTILE, Case, give_up_at, make_case, names_in, restore_unchecked, workers
from tests.support_sqlite import error_of

__all__ = ["make_case", "workers"]


def test_all_of_a_database_comes_back_on_a_private_server(make_case: Callable[..., Case]) -> None:
    case = make_case(CRM + HOSTILE)
    taken = case.chain.take()
    case.chain.prove(taken)


def test_all_of_a_database_comes_back_in_an_empty_one(make_case: Callable[..., Case]) -> None:
    case = make_case()
    taken = case.chain.take()
    place = case.place()
    assert_same(taken, case.restored(taken, place))
    assert case.execute(place.database, "SELECT nextval('crm.contacts_id_seq')") == [(9000,)]
    assert case.execute(place.database, "INSERT INTO crm.companies (name) VALUES ('new') RETURNING id") == [(21,)]
    assert case.execute(place.database, "SELECT n FROM crm.a_total") == [(3004,)]
    assert MARK not in names_in(case, place.database)


@pytest.mark.parametrize("version", ["pg12", "pg18"])
def test_other_versions_bring_all_back_also_after_a_failure(
    make_case: Callable[..., Case], version: str, request: pytest.FixtureRequest
) -> None:
    case = make_case(CRM + HOSTILE + "SELECT lo_from_bytea(0, 'abc')", request.getfixturevalue(version))
    taken = case.chain.take()
    place = case.place(make=False)
    for options in ({"create": True}, {}):
        with pytest.raises(KeyboardInterrupt):
            case.chain.restore(taken, case.chain.target(place, **options), spoil=give_up_at(len(taken.chunks) - 1))
        assert_same(taken, case.restored(taken, place, **options))
        place = case.place()


def test_create_gives_the_database_its_encoding_settings_and_rights(make_case: Callable[..., Case]) -> None:
    case = make_case("CREATE TABLE t AS SELECT 'é'::text AS name", encoding="LATIN1", locale="C")
    source = case.names[0]
    case.execute(
        source,
        f"ALTER DATABASE {source} SET work_mem = '7MB'; COMMENT ON DATABASE {source} IS 'it''s'; REVOKE CONNECT ON"
        f" DATABASE {source} FROM PUBLIC; ALTER DATABASE {source} SET search_path = crm, public;"
        f" ALTER ROLE postgres IN DATABASE {source} SET temp_buffers = '9MB'",
    )
    taken = case.chain.take()
    place = case.place(make=False)
    assert_same(taken, case.restored(taken, place, create=True))
    assert case.execute(place.database, "SHOW work_mem") == [("7MB",)]
    assert case.execute(place.database, "SHOW search_path") == [("crm, public",)]
    assert case.execute(place.database, "SHOW temp_buffers") == [("9MB",)]
    rows = case.execute(
        place.database,
        "SELECT pg_encoding_to_char(encoding), shobj_description(oid, 'pg_database'), EXISTS (SELECT 1 FROM"
        " aclexplode(datacl) x WHERE x.grantee = 0 AND x.privilege_type = 'CONNECT')"
        " FROM pg_database WHERE datname = current_database()",
    )
    assert rows == [("LATIN1", "it's", False)]


def test_a_setting_of_a_role_that_the_user_may_not_give_is_named(make_case: Callable[..., Case]) -> None:
    role = f"owner_{secrets.token_hex(4)}"
    case = make_case("CREATE TABLE t AS SELECT 1 AS a")
    source = case.names[0]
    case.execute("postgres", f"CREATE ROLE {role} LOGIN CREATEDB")
    case.execute("postgres", f"ALTER DATABASE {source} OWNER TO {role}")
    case.execute("postgres", f"ALTER ROLE postgres IN DATABASE {source} SET temp_buffers = '9MB'")
    case.execute(source, f"ALTER TABLE t OWNER TO {role}")
    try:
        taken = case.chain.take()
        place = case.place(make=False)
        keywords = {**dict(place.keywords), "user": role}
        case.restored(taken, Server(tuple(sorted(keywords.items()))), create=True)
        warned = [event for event in case.chain.events if isinstance(event, Warned)]
        assert [event.code for event in warned] == ["role-settings"]
        assert f'ALTER ROLE "postgres" IN DATABASE "{place.database}" SET "temp_buffers" TO' in warned[0].hint
    finally:
        for name in case.names:
            case.host.drop_database(name)
        case.execute("postgres", f"DROP ROLE {role}")


def test_a_database_in_sql_ascii_keeps_its_bytes(make_case: Callable[..., Case]) -> None:
    case = make_case("CREATE TABLE t (a text)", encoding="SQL_ASCII", locale="C")
    with case.host.connect(case.names[0]) as connection:
        connection.execute("SET client_encoding = 'SQL_ASCII'")
        connection.execute(b"INSERT INTO t VALUES (E'\\xe9\\xff \\\\t'), ('\xe9')")
    taken = case.chain.take()
    case.chain.prove(taken)


def test_a_database_in_another_encoding_takes_the_rows(make_case: Callable[..., Case]) -> None:
    case = make_case("CREATE TABLE t AS SELECT 'é'::text AS \"näme\"", encoding="LATIN1", locale="C")
    taken = case.chain.take()
    place = case.place()
    case.chain.restore(taken, case.chain.target(place))
    assert case.execute(place.database, "SHOW server_encoding") == [("UTF8",)]
    assert case.execute(place.database, 'SELECT "näme" FROM t') == [("é",)]


def test_large_objects_come_back_with_owner_rights_and_comment(make_case: Callable[..., Case]) -> None:
    role = f"role_{secrets.token_hex(4)}"
    case = make_case(
        f"CREATE ROLE {role}; CREATE TABLE t (a oid);"
        "SELECT lo_from_bytea(100001, (SELECT string_agg(decode(md5(i::text), 'hex'), '') FROM"
        " generate_series(1, 40000) i)); SELECT lo_create(100002); SELECT lo_from_bytea(100003, '\\x00ff');"
        f"ALTER LARGE OBJECT 100003 OWNER TO {role}; GRANT SELECT ON LARGE OBJECT 100001 TO {role} WITH GRANT OPTION;"
        "GRANT UPDATE ON LARGE OBJECT 100002 TO PUBLIC; COMMENT ON LARGE OBJECT 100001 IS 'pi''cture'",
    )
    taken = case.chain.take()
    place = case.place()
    try:
        assert_same(taken, case.restored(taken, place))
        query = (
            "SELECT oid::bigint, pg_get_userbyid(lomowner), lomacl::text, obj_description(oid, 'pg_largeobject'),"
            " md5(lo_get(oid)) FROM pg_largeobject_metadata ORDER BY oid"
        )
        assert case.execute(place.database, query) == case.execute(case.names[0], query)
    finally:
        for name in case.names:
            case.host.drop_database(name)
        case.execute("postgres", f"DROP ROLE {role}")


@pytest.mark.parametrize(
    "what",
    ["CREATE TABLE mine (a int)", "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "CREATE SCHEMA mine",
     "CREATE TYPE mine AS ENUM ('a')", "CREATE SEQUENCE mine", "SELECT lo_create(0)", "CREATE EXTENSION pgcrypto"],
)  # fmt: skip
def test_a_database_that_holds_something_is_refused_and_left_alone(make_case: Callable[..., Case], what: str) -> None:
    case = make_case("CREATE TABLE t AS SELECT 1 AS a")
    taken = case.chain.take()
    place = case.place()
    case.execute(place.database, what)
    before = names_in(case, place.database)
    error = error_of(lambda: case.chain.target(place).check())
    assert isinstance(error, TargetExists)
    assert "--create" in error.hint
    error = error_of(lambda: restore_unchecked(case, taken, place))
    assert isinstance(error, TargetExists)
    assert names_in(case, place.database) == before


def test_create_refuses_a_database_that_exists(make_case: Callable[..., Case]) -> None:
    case = make_case("CREATE TABLE t AS SELECT 1 AS a")
    place = case.place()
    assert isinstance(error_of(lambda: case.chain.target(place, create=True).check()), TargetExists)


@pytest.mark.parametrize("create", [False, True])
def test_a_failure_midway_leaves_nothing(make_case: Callable[..., Case], create: bool) -> None:
    case = make_case(CRM + "SELECT lo_from_bytea(0, 'abc'); CREATE EXTENSION pgcrypto;"
                           "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC")  # fmt: skip
    taken = case.chain.take()
    place = case.place(make=not create)
    before = None if create else names_in(case, place.database)

    with pytest.raises(KeyboardInterrupt):
        case.chain.restore(taken, case.chain.target(place, create=create), spoil=give_up_at(len(taken.chunks) - 1))
    if create:
        assert not case.execute("postgres", f"SELECT 1 FROM pg_database WHERE datname = '{place.database}'")
    else:
        assert names_in(case, place.database) == before
        assert case.execute(place.database, "SELECT * FROM pg_default_acl") == []
    assert_same(taken, case.restored(taken, place, create=create))


def test_tables_that_were_altered_come_back_equal_though_they_lie_otherwise(make_case: Callable[..., Case]) -> None:
    case = make_case(
        "CREATE TABLE parent (a int); CREATE TABLE child (b text) INHERITS (parent); ALTER TABLE parent ADD c int;"
        "CREATE TABLE adopted (c int, a int, gone text); ALTER TABLE adopted DROP gone; ALTER TABLE adopted INHERIT parent;"
        "CREATE TABLE short (id int, long text); ALTER TABLE short DROP long;"
        "INSERT INTO child VALUES (1, 'x', 2); INSERT INTO adopted VALUES (3, 4); INSERT INTO short VALUES (5)"
    )
    taken = case.chain.take()
    place = case.place()
    assert_same(taken, case.restored(taken, place))
    assert case.execute(place.database, "SELECT a, b, c FROM child") == [(1, "x", 2)]
    # Once it is no child any more its columns are written as they lie again.
    case.execute(case.chain.server.database, "ALTER TABLE adopted NO INHERIT parent")
    taken = case.chain.take()
    assert_same(taken, case.restored(taken, case.place()))


def test_objects_that_belong_to_others_are_removed_from_the_schema_public_too(make_case: Callable[..., Case]) -> None:
    case = make_case(
        "CREATE TYPE span AS RANGE (SUBTYPE = float8); CREATE DOMAIN spans AS span[];"
        "CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY, s spans); INSERT INTO t (s) VALUES ('{}');"
        "CREATE AGGREGATE low(span) (SFUNC = range_intersect, STYPE = span);"
        "CREATE OPERATOR CLASS own FOR TYPE int4 USING hash AS OPERATOR 1 =, FUNCTION 1 hashint4(int4)"
    )
    taken = case.chain.take()
    place = case.place()
    with pytest.raises(KeyboardInterrupt):
        case.chain.restore(taken, case.chain.target(place), spoil=give_up_at(len(taken.chunks) - 1))
    assert names_in(case, place.database) == ["plpgsql", "public"]
    assert_same(taken, case.restored(taken, place))


def test_a_row_that_the_target_refuses_is_an_error_that_names_the_table(make_case: Callable[..., Case]) -> None:
    case = make_case(
        "CREATE FUNCTION allowed(int) RETURNS bool LANGUAGE sql AS 'SELECT true';"
        "CREATE TABLE picky (a int CHECK (public.allowed(a))); INSERT INTO picky VALUES (1);"
        "CREATE OR REPLACE FUNCTION allowed(int) RETURNS bool LANGUAGE sql AS 'SELECT false'"
    )
    taken = case.chain.take()
    place = case.place()
    error = error_of(lambda: case.restored(taken, place))
    assert isinstance(error, TargetError)
    assert "picky" in str(error)
    assert names_in(case, place.database) == ["plpgsql", "public"]


def test_an_object_that_the_target_refuses_is_named(make_case: Callable[..., Case]) -> None:
    case = make_case(
        "CREATE TABLE parent (a int PRIMARY KEY); CREATE TABLE child (a int); INSERT INTO child VALUES (1);"
        "ALTER TABLE child ADD CONSTRAINT broken FOREIGN KEY (a) REFERENCES parent NOT VALID;"
        "UPDATE pg_constraint SET convalidated = true WHERE conname = 'broken'"
    )
    taken = case.chain.take()
    place = case.place()
    error = error_of(lambda: case.restored(taken, place))
    assert isinstance(error, TargetError)
    assert "public.child ADD CONSTRAINT broken FOREIGN KEY" in error.what
    assert "broken" in error.why
    assert names_in(case, place.database) == ["plpgsql", "public"]


def test_workers_of_a_failed_restore_serve_the_next(
    make_case: Callable[..., Case], workers: ProcessWorkers, tmp_path: Path
) -> None:
    """All have a session of the first, which its end closes; of the second restore one of them places nothing."""
    case = make_case("CREATE TABLE small AS SELECT 1 AS id")
    taken = case.chain.take()
    alive = tmp_path / "alive"
    alive.touch()
    first = data.Session(case.place(), "given-up", alive)
    workers.each(data.place, data.Loads(first, ()), b"")
    with case.host.connect() as connection:
        end_sessions(connection, first.token)
    assert_same(taken, case.restored(taken, case.place()))


@pytest.mark.parametrize("create", [False, True])
def test_what_a_killed_restore_left_is_removed_by_the_next(
    make_case: Callable[..., Case], create: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    taken = case.chain.take()
    place = case.place(make=not create)

    child = os.fork()
    if child == 0:
        try:
            with ProcessWorkers(1) as pool:
                chain = PgChain(case.chain.server, case.chain.scratch, pool)

                def kill(_: Restore, placed: int) -> None:
                    if placed == len(taken.chunks) - 1:
                        os.kill(os.getpid(), signal.SIGKILL)

                chain.restore(taken, chain.target(place, create=create), spoil=kill)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert MARK in names_in(case, place.database)
    assert case.chain.target(place, create=create).check()
    assert len(list(tmp_path.glob("crmbackup-private-*"))) == 1
    assert_same(taken, case.restored(taken, place, create=create))
    assert list(tmp_path.glob("crmbackup-private-*")) == []


def test_two_restores_to_one_database_do_not_mix(make_case: Callable[..., Case]) -> None:
    case = make_case("CREATE TABLE t AS SELECT 1 AS a")
    taken = case.chain.take()
    place = case.place()
    errors: list[CrmBackupError] = []

    def second(_: Restore, placed: int) -> None:
        if placed == len(taken.chunks) - 1:
            errors.append(error_of(lambda: case.chain.target(place).check()))
            errors.append(error_of(lambda: restore_unchecked(case, taken, place)))

    case.chain.restore(taken, case.chain.target(place), spoil=second)
    assert [(type(error), "another restore" in error.what) for error in errors] == [(TargetError, True)] * 2
    assert case.execute(place.database, "SELECT a FROM t") == [(1,)]


def test_a_view_over_an_unreachable_server_does_not_prevent_a_restore(make_case: Callable[..., Case]) -> None:
    case = make_case(
        "CREATE EXTENSION postgres_fdw; CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host"
        " '/nowhere'); CREATE USER MAPPING FOR CURRENT_USER SERVER other; CREATE TABLE t AS SELECT 1 AS a;"
        "CREATE FOREIGN TABLE far (a int) SERVER other; CREATE VIEW near AS SELECT a FROM far;"
        "CREATE MATERIALIZED VIEW copied AS SELECT a FROM near WITH NO DATA;"
        "UPDATE pg_class SET relispopulated = true WHERE relname = 'copied'"
    )
    taken = case.chain.take()
    place = case.place()
    case.chain.restore(taken, case.chain.target(place))
    assert [event.code for event in case.chain.events if isinstance(event, Warned)] == ["matview-empty"]
    assert case.execute(place.database, "SELECT a FROM t") == [(1,)]
    assert case.execute(place.database, "SELECT count(*) FROM pg_matviews WHERE NOT ispopulated") == [(1,)]


def test_a_large_chunk_that_is_refused_at_its_first_row_ends_the_restore(make_case: Callable[..., Case]) -> None:
    case = make_case(
        "CREATE TABLE t (a int, b text); ALTER TABLE t ALTER b SET STORAGE EXTERNAL;"
        "INSERT INTO t SELECT i, repeat(md5(i::text), 100000) FROM generate_series(1, 8) i;"
    )
    taken = case.chain.take()
    place = case.place()
    case.restored(taken, place, content="schema")
    case.execute(place.database, "ALTER TABLE t ADD CHECK (a > 1)")
    error = error_of(lambda: case.restored(taken, place, content="data"))
    assert isinstance(error, TargetError)
    assert "public.t" in error.why
    assert case.execute(place.database, "SELECT count(*) FROM t") == [(0,)]


def test_views_work_while_a_database_is_restored_and_asked(make_case: Callable[..., Case], pg18: TestServer) -> None:
    """The source is read with views barred, as by pg_dump. Checks, materialised views and questions may need them."""
    case = make_case(
        """CREATE TABLE kinds AS SELECT 'call' AS kind; CREATE VIEW known AS TABLE kinds;
        CREATE MATERIALIZED VIEW numbers AS SELECT count(*) AS n FROM known;
        CREATE FUNCTION is_known(text) RETURNS bool LANGUAGE sql AS 'SELECT count(*) >= 0 FROM public.known';
        CREATE TABLE events (kind text CHECK (is_known(kind))); INSERT INTO events VALUES ('call')""",
        pg18,
    )
    taken = case.chain.take()
    place = case.place()
    assert_same(taken, case.restored(taken, place))
    assert case.chain.target(place).query("SELECT n FROM numbers") == 1
    assert case.chain.target(place).query("SELECT count(*) FROM known") == 1
