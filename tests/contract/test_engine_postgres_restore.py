"""Bringing PostgreSQL databases back, on real servers: all of it, parts of it, and nothing when it fails."""

from __future__ import annotations

import os
import secrets
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from crmbackup.core.errors import CrmBackupError, TargetError, TargetExists, UsageError
from crmbackup.core.events import Warned
from crmbackup.engines.base import Restore, RestoreOptions, Verification
from crmbackup.engines.postgres.connection import Server
from crmbackup.engines.postgres.restore_clean import MARK
from crmbackup.engines.postgres.target import PostgresTargetEngine
from crmbackup.operations.workers import ProcessWorkers
from tests.postgres import TestServer, pg12, pg15, pg18
from tests.support_postgres import PgChain, Taken, assert_same, different
from tests.support_sqlite import error_of

__all__ = ["pg12", "pg15", "pg18"]

CRM = """
CREATE SCHEMA crm;
CREATE TYPE crm.stage AS ENUM ('lead', 'customer', 'lost');
CREATE DOMAIN crm.email AS text CHECK (VALUE ~ '@');
CREATE FUNCTION crm.stamp() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.changed := '2020-01-01'; RETURN NEW; END$$;
CREATE TABLE crm.companies (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE);
CREATE TABLE crm.contacts (
    id serial PRIMARY KEY, company int REFERENCES crm.companies, name text, mail crm.email, stage crm.stage,
    changed timestamptz DEFAULT now(), shout text GENERATED ALWAYS AS (upper(name)) STORED, raw bytea, amount numeric);
CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON crm.contacts FOR EACH ROW EXECUTE FUNCTION crm.stamp();
CREATE INDEX by_name ON crm.contacts (lower(name));
ALTER TABLE crm.contacts ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON crm.contacts USING (name <> 'hidden');
COMMENT ON TABLE crm.contacts IS 'people';
INSERT INTO crm.companies (name) SELECT 'company ' || i FROM generate_series(1, 20) i;
INSERT INTO crm.contacts (company, name, mail, stage, raw, amount)
    SELECT i % 20 + 1, E'a\\tb\\\\n ' || i, 'x@y', 'lead', decode(md5(i::text), 'hex'), i / 7.0
      FROM generate_series(1, 3000) i;
INSERT INTO crm.contacts (name) VALUES (NULL), (''), (E'\\\\.'), (E'\\r\\n');
SELECT setval('crm.contacts_id_seq', 9000, false);
CREATE VIEW crm.names AS SELECT name FROM crm.contacts;
CREATE MATERIALIZED VIEW crm.z_counts AS SELECT company, count(*) AS n FROM crm.contacts GROUP BY 1;
CREATE UNIQUE INDEX ON crm.z_counts (company);
CREATE MATERIALIZED VIEW crm.a_total AS SELECT sum(n) AS n FROM crm.z_counts;
CREATE MATERIALIZED VIEW crm.unfilled AS SELECT 1 AS one WITH NO DATA;
CREATE TABLE crm.empty (a int, b int);
CREATE TABLE crm.nothing ();
INSERT INTO crm.nothing SELECT FROM generate_series(1, 5);
CREATE TABLE crm.base (a int); CREATE TABLE crm.heir (b text) INHERITS (crm.base);
INSERT INTO crm.base VALUES (1), (2); INSERT INTO crm.heir VALUES (3, 'x');
CREATE TABLE crm.deals (id int, stage crm.stage) PARTITION BY HASH (stage);
CREATE TABLE crm.deals_0 PARTITION OF crm.deals FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE crm.deals_1 PARTITION OF crm.deals FOR VALUES WITH (MODULUS 2, REMAINDER 1);
INSERT INTO crm.deals SELECT i, (ARRAY['lead', 'customer', 'lost']::crm.stage[])[i % 3 + 1] FROM generate_series(1, 99) i;
CREATE TABLE crm.events (at date, what text) PARTITION BY RANGE (at);
CREATE TABLE crm.events_1 PARTITION OF crm.events FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE crm.events_x PARTITION OF crm.events DEFAULT;
INSERT INTO crm.events VALUES ('2024-05-05', 'a'), ('2030-01-01', 'b');
CREATE TABLE crm.twin_1 (a int, b text); CREATE TABLE crm.twin_2 (a int, b text);
INSERT INTO crm.twin_1 SELECT i, 'same' FROM generate_series(1, 10) i; INSERT INTO crm.twin_2 TABLE crm.twin_1;
CREATE UNLOGGED TABLE crm.scratch AS SELECT 1 AS one;
"""

HOSTILE = '''
CREATE SCHEMA "we ird; DROP
x";
CREATE TABLE "we ird; DROP
x"."a ""b"" \\ 'c' %s" (" id " int, "ä,(""" text, "select" text);
INSERT INTO "we ird; DROP
x"."a ""b"" \\ 'c' %s" VALUES (1, 'ü', NULL), (2, '', E'\\\\');
CREATE SEQUENCE "we ird; DROP
x"."q'""\\";
SELECT nextval('"we ird; DROP
x"."q''""\\"');
'''


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessWorkers]:
    with ProcessWorkers(2) as pool:
        yield pool


class Case:
    """One source database on a server, and places to restore to."""

    def __init__(self, server: TestServer, workers: ProcessWorkers, scratch: Path, definition: str, **options: Any):
        self.host = server
        self.names = [f"source_{secrets.token_hex(4)}"]
        server.create_database(self.names[0], **options)
        with server.connect(self.names[0]) as connection:
            connection.execute("SET check_function_bodies = off")
            connection.execute(definition.encode(connection.info.encoding))
        self.chain = PgChain(server.server(self.names[0]), scratch, workers)

    def execute(self, database: str, text: str) -> list[tuple[Any, ...]]:
        with self.host.connect(database) as connection:
            cursor = connection.execute(text.encode(connection.info.encoding))
            return cursor.fetchall() if cursor.description else []

    def place(self, *, make: bool = True) -> Server:
        """A fresh, empty database; or only the name of one."""
        name = f"target_{secrets.token_hex(4)}"
        self.names.append(name)
        if make:
            self.host.create_database(name, template="template0")
        return self.host.server(name)

    def restored(self, taken: Taken, place: Server, **options: Any) -> Verification:
        target = self.chain.target(place, **options)
        self.chain.restore(taken, target)
        return self.chain.verify(taken, target)


@pytest.fixture
def make_case(pg15: TestServer, workers: ProcessWorkers, tmp_path: Path) -> Iterator[Callable[..., Case]]:
    made: list[Case] = []

    def make(definition: str = CRM, server: TestServer = pg15, **options: Any) -> Case:
        scratch = tmp_path / f"case-{len(made)}"
        scratch.mkdir()
        made.append(Case(server, workers, scratch, definition, **options))
        return made[-1]

    yield make
    for case in made:
        for name in case.names:
            case.host.drop_database(name)


def names_in(case: Case, database: str) -> list[str]:
    """Everything users made."""
    rows = case.execute(
        database,
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relkind IN ('r','p','v','m','S','f')"
        " UNION ALL SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema')"
        " UNION ALL SELECT oid::text FROM pg_largeobject_metadata UNION ALL SELECT extname FROM pg_extension ORDER BY 1",
    )
    return [row[0] for row in rows]


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


def give_up_at(count: int) -> Callable[[Restore, int], None]:
    """Fails before a chunk, when so many are placed."""

    def give_up(_: Restore, placed: int) -> None:
        if placed == count:
            raise KeyboardInterrupt

    return give_up


def test_create_gives_the_database_its_encoding_settings_and_rights(make_case: Callable[..., Case]) -> None:
    case = make_case("CREATE TABLE t AS SELECT 'é'::text AS name", encoding="LATIN1", locale="C")
    source = case.names[0]
    case.execute(
        source,
        f"ALTER DATABASE {source} SET work_mem = '7MB'; COMMENT ON DATABASE {source} IS 'it''s'; REVOKE CONNECT ON"
        f" DATABASE {source} FROM PUBLIC; ALTER DATABASE {source} SET search_path = crm, public",
    )
    taken = case.chain.take()
    place = case.place(make=False)
    assert_same(taken, case.restored(taken, place, create=True))
    assert case.execute(place.database, "SHOW work_mem") == [("7MB",)]
    assert case.execute(place.database, "SHOW search_path") == [("crm, public",)]
    rows = case.execute(
        place.database,
        "SELECT pg_encoding_to_char(encoding), shobj_description(oid, 'pg_database'), EXISTS (SELECT 1 FROM"
        " aclexplode(datacl) x WHERE x.grantee = 0 AND x.privilege_type = 'CONNECT')"
        " FROM pg_database WHERE datname = current_database()",
    )
    assert rows == [("LATIN1", "it's", False)]


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
    error = error_of(lambda: _restore_unchecked(case, taken, place))
    assert isinstance(error, TargetExists)
    assert names_in(case, place.database) == before


def _restore_unchecked(case: Case, taken: Taken, place: Server) -> None:
    target = case.chain.target(place)
    with target.open_restore(taken.image.layout, taken.image.digest, case.chain.workers, print) as restore:
        for stage in restore.stages():
            for number, placement in stage.items():
                restore.place(placement, taken.chunks[number])


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


@pytest.mark.parametrize("create", [False, True])
def test_what_a_killed_restore_left_is_removed_by_the_next(make_case: Callable[..., Case], create: bool) -> None:
    case = make_case()
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
    assert_same(taken, case.restored(taken, place, create=create))


def test_one_table_comes_back_with_what_it_needs(make_case: Callable[..., Case]) -> None:
    case = make_case()
    taken = case.chain.take()
    place = case.place()
    lines = case.chain.target(place, tables=("contacts",)).describe(taken.image.layout)
    assert any("1 tables with 3004 rows" in line for line in lines)
    found = case.restored(taken, place, tables=("contacts",))
    assert [table.name for table in found.tables if table.kind == "table"] == ["crm.contacts"]
    assert found.tables[0] == next(table for table in taken.image.tables if table.name == "crm.contacts")
    there = names_in(case, place.database)
    assert "crm.companies" not in there
    assert "crm.contacts_id_seq" in there
    left_out = [event for event in case.chain.events if isinstance(event, Warned)]
    assert "contacts_company_fkey" in left_out[0].text
    assert case.execute(place.database, "SELECT count(*) FROM pg_policy") == [(1,)]
    assert case.execute(place.database, "SELECT nextval('crm.contacts_id_seq')") == [(9000,)]
    assert case.execute(
        place.database, "INSERT INTO crm.contacts (name) VALUES ('x') RETURNING shout, changed IS NULL"
    ) == [("X", False)]


def test_tables_that_are_restored_together_keep_their_foreign_keys(make_case: Callable[..., Case]) -> None:
    case = make_case()
    taken = case.chain.take()
    place = case.place()
    case.restored(taken, place, tables=("crm.contacts", "crm.companies", "crm.heir", "crm.deals_0"))
    assert case.execute(place.database, "SELECT conname FROM pg_constraint WHERE contype = 'f'") == [
        ("contacts_company_fkey",)
    ]
    assert case.execute(place.database, "SELECT a, b FROM crm.heir") == [(3, "x")]


def test_an_unknown_table_is_refused_with_similar_names(make_case: Callable[..., Case]) -> None:
    case = make_case("CREATE SCHEMA s; CREATE TABLE contacts (a int); CREATE TABLE s.contacts (a int)")
    taken = case.chain.take()
    place = case.place()
    error = error_of(lambda: case.chain.target(place, tables=("contract",)).describe(taken.image.layout))
    assert isinstance(error, UsageError)
    assert "public.contacts" in error.why
    error = error_of(lambda: case.chain.target(place, tables=("contacts",)).describe(taken.image.layout))
    assert isinstance(error, UsageError)
    assert "s.contacts" in error.why


def test_definitions_first_and_rows_later_give_the_same_database(make_case: Callable[..., Case]) -> None:
    case = make_case()
    taken = case.chain.take()
    place = case.place()
    found = case.restored(taken, place, content="schema")
    assert sum(table.rows or 0 for table in found.tables if table.kind == "table") == 0
    found = case.restored(taken, place, content="data")
    assert different(
        [table for table in taken.image.tables if table.kind != "materialized view"],
        [table for table in found.tables if table.kind != "materialized view"],
    ) == []  # fmt: skip
    assert found.schema["kinds"]["triggers"] == taken.info.schema["kinds"]["triggers"]  # type: ignore[index]
    assert isinstance(error_of(lambda: case.restored(taken, place, content="data")), TargetExists)


def test_rows_alone_that_fail_midway_leave_the_definitions(make_case: Callable[..., Case]) -> None:
    case = make_case()
    taken = case.chain.take()
    place = case.place()
    case.restored(taken, place, content="schema")
    before = names_in(case, place.database)

    with pytest.raises(KeyboardInterrupt):
        case.chain.restore(taken, case.chain.target(place, content="data"), spoil=give_up_at(5))
    assert names_in(case, place.database) == before
    case.restored(taken, place, content="data")
    assert case.execute(place.database, "SELECT count(*) FROM crm.contacts") == [(3004,)]


def test_missing_roles_are_refused_made_or_ignored(make_case: Callable[..., Case]) -> None:
    role = f"role_{secrets.token_hex(4)}"
    case = make_case(
        f"CREATE ROLE {role} LOGIN; CREATE TABLE t AS SELECT 1 AS a; ALTER TABLE t OWNER TO {role};"
        f"CREATE TABLE u (a int); GRANT SELECT ON u TO {role}"
    )
    taken = case.chain.take()
    case.execute(case.names[0], f"DROP OWNED BY {role}; DROP ROLE {role}")
    try:
        place = case.place()
        error = error_of(lambda: case.restored(taken, place))
        assert isinstance(error, TargetError)
        assert role in error.why
        assert "--roles create" in error.hint
        assert names_in(case, place.database) == ["plpgsql", "public"]
        found = case.restored(taken, place, roles="ignore")
        assert different(taken.image.tables, found.tables) == []
        made = case.place()
        assert_same(taken, case.restored(taken, made, roles="create"))
        assert case.execute("postgres", f"SELECT rolcanlogin FROM pg_roles WHERE rolname = '{role}'") == [(False,)]
    finally:
        for name in case.names:
            case.host.drop_database(name)
        case.execute("postgres", f"DROP ROLE IF EXISTS {role}")


def test_a_server_that_is_older_than_the_snapshot_is_refused(
    make_case: Callable[..., Case], pg12: TestServer, pg15: TestServer
) -> None:
    case = make_case("CREATE TABLE t AS SELECT 1 AS a")
    taken = case.chain.take()
    target = case.chain.target(pg12.server("postgres"))
    error = error_of(lambda: target.describe(taken.image.layout))
    assert isinstance(error, TargetError)
    assert "15" in str(error)


def test_the_owner_of_a_database_restores_without_being_superuser(make_case: Callable[..., Case]) -> None:
    role = f"owner_{secrets.token_hex(4)}"
    case = make_case(CRM + "CREATE EXTENSION pgcrypto; COMMENT ON EXTENSION pgcrypto IS 'mine'")
    taken = case.chain.take()
    case.execute("postgres", f"CREATE ROLE {role} LOGIN")
    try:
        place = case.place(make=False)
        case.host.create_database(place.database, owner=role, template="template0")
        keywords = {**dict(place.keywords), "user": role}
        found = case.restored(taken, Server(tuple(sorted(keywords.items()))), roles="ignore")
        assert different(taken.image.tables, found.tables) == []
        case.host.drop_database(place.database)
    finally:
        case.execute("postgres", f"DROP ROLE {role}")


def test_a_drill_keeps_a_database_from_reaching_out(make_case: Callable[..., Case]) -> None:
    case = make_case(
        "CREATE TABLE t AS SELECT 1 AS a; CREATE EXTENSION postgres_fdw;"
        "CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1');"
        "CREATE USER MAPPING FOR CURRENT_USER SERVER other OPTIONS (user 'x', password 'y');"
        "CREATE FOREIGN TABLE far (a int) SERVER other;"
        "CREATE FUNCTION loud() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no'; END$$;"
        "CREATE SUBSCRIPTION sub CONNECTION 'host=127.0.0.1' PUBLICATION p WITH (connect = false);"
        "CREATE EVENT TRIGGER loud ON ddl_command_start EXECUTE FUNCTION loud()"
    )
    try:
        taken = case.chain.take()
        engine = PostgresTargetEngine(None, None)
        layout, properties = taken.image.layout, taken.info.properties
        with engine.isolated(Path(tempfile.gettempdir()), layout, properties, case.chain.events.append) as place:
            case.chain.restore(taken, place.target)
            with psycopg.connect(**dict(place.target.server.keywords), autocommit=True) as connection:  # type: ignore[attr-defined]
                assert connection.execute("SELECT subenabled FROM pg_subscription").fetchall() == [(False,)]
                assert connection.execute("SELECT evtenabled::text FROM pg_event_trigger").fetchall() == [("D",)]
                with pytest.raises(psycopg.Error, match="handler"):
                    connection.execute("SELECT * FROM far")
            assert_same(taken, case.chain.verify(taken, place.target))
            assert place.target.query("SELECT a FROM t") == 1
        assert place.gone()
    finally:
        case.execute(
            case.names[0],
            "DROP EVENT TRIGGER IF EXISTS loud; ALTER SUBSCRIPTION sub SET (slot_name = NONE); DROP SUBSCRIPTION sub",
        )


def test_a_drill_beside_other_databases_leaves_none(make_case: Callable[..., Case]) -> None:
    case = make_case()
    taken = case.chain.take()
    engine = PostgresTargetEngine(None, None, drill_server=case.host.server("postgres"))
    before = case.execute("postgres", "SELECT datname FROM pg_database ORDER BY 1")
    with engine.isolated(case.chain.scratch, taken.image.layout, taken.info.properties, print) as place:
        assert place.empty_before
        case.chain.restore(taken, place.target)
        assert_same(taken, case.chain.verify(taken, place.target))
        assert not place.gone()
    assert place.gone()
    assert case.execute("postgres", "SELECT datname FROM pg_database ORDER BY 1") == before


def test_queries_give_values_that_compare_with_what_a_policy_says(make_case: Callable[..., Case]) -> None:
    case = make_case("CREATE TABLE t AS SELECT 1 AS a")
    target = case.chain.target(case.chain.server)
    assert target.query("SELECT count(*) FROM t") == 1
    assert target.query("SELECT sum(a)::numeric FROM t") == 1
    assert target.query("SELECT 1.5::numeric") == 1.5
    assert target.query("SELECT date '2024-05-06'") == "2024-05-06"
    assert target.query("SELECT a FROM t WHERE false") is None
    for bad in ("SELECT nothing", "DELETE FROM t", "SELECT 1/0"):
        assert isinstance(error_of(lambda text=bad: target.query(text)), CrmBackupError)  # type: ignore[misc]
    assert target.query("SELECT count(*) FROM t") == 1


def test_overwriting_is_refused(make_case: Callable[..., Case]) -> None:
    engine = PostgresTargetEngine(None, None)
    error = error_of(lambda: engine.target("postgresql://host/db", RestoreOptions(overwrite=True)))
    assert isinstance(error, UsageError)
