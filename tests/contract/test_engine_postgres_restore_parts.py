"""Bringing parts of a PostgreSQL database back, without the source's roles, and in drills; on real servers."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from crmbackup.core.errors import CrmBackupError, TargetError, TargetExists, UsageError
from crmbackup.core.events import Warned
from crmbackup.engines.base import RestoreOptions
from crmbackup.engines.postgres.connection import Server
from crmbackup.engines.postgres.target import PostgresTargetEngine
from tests.postgres import TestServer, pg12, pg15, pg18
from tests.support_postgres import assert_same, different
from tests.support_postgres_cases import CRM, Case, give_up_at, make_case, names_in, workers
from tests.support_sqlite import error_of

__all__ = ["make_case", "pg12", "pg15", "pg18", "workers"]


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


@pytest.mark.parametrize("name", ["crm.deals_0", "deals"])
def test_partitions_by_the_hash_of_an_enum_come_together(make_case: Callable[..., Case], name: str) -> None:
    case = make_case()
    taken = case.chain.take()
    place = case.place()
    # Labels of another order of numbers: rows go to other partitions than in the source.
    case.execute(place.database, "CREATE TYPE burnt AS ENUM ('a', 'b', 'c', 'd', 'e'); DROP TYPE burnt")
    found = case.restored(taken, place, tables=(name,))
    assert [table.name for table in found.tables if table.kind == "table"] == ["crm.deals_0", "crm.deals_1"]
    assert case.execute(place.database, "SELECT count(*), sum(id) FROM crm.deals") == [(99, 4950)]


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
