"""Bringing parts of a PostgreSQL database back, without the source's roles, and in drills; on real servers."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from crmbackup.core.errors import CrmBackupError, TargetDenied, TargetError, TargetExists, UsageError
from crmbackup.core.events import Warned
from crmbackup.engines.base import RestoreOptions
from crmbackup.engines.postgres.connection import Server
from crmbackup.engines.postgres.target import PostgresTargetEngine
from tests.postgres import TestServer
from tests.support_postgres import assert_same, different, differing_kinds
from tests.support_postgres_cases import CRM, Case, give_up_at, make_case, names_in, workers
from tests.support_sqlite import error_of

__all__ = ["make_case", "workers"]


def test_one_table_comes_back_with_what_it_needs(make_case: Callable[..., Case]) -> None:
    case = make_case()
    taken = case.chain.take()
    place = case.place()
    lines = case.chain.target(place, tables=("contacts",)).describe(taken.image.layout)
    assert any("1 table with 3004 rows" in line for line in lines)
    along = next(line for line in lines if line.startswith("definitions that come along: "))
    assert along.removeprefix("definitions that come along: ").split(", ") == [
        "function crm.stamp()", "schema crm", "type crm.email", "type crm.stage"
    ]  # fmt: skip
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


def test_a_view_that_needs_the_key_of_a_table_is_no_part_of_it(make_case: Callable[..., Case]) -> None:
    case = make_case(
        "CREATE TABLE one (id int PRIMARY KEY, name text); CREATE TABLE other (id int);"
        "CREATE VIEW sums AS SELECT one.id, name, count(*) FROM one JOIN other ON other.id = one.id GROUP BY one.id;"
        "INSERT INTO one VALUES (1, 'x')"
    )
    taken = case.chain.take()
    place = case.place()
    case.restored(taken, place, tables=("one",))
    assert names_in(case, place.database) == ["plpgsql", "public", "public.one"]
    assert_same(taken, case.restored(taken, case.place()))


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


@pytest.mark.parametrize("key", ["stage[]", "kind", "edges", "pair"])
@pytest.mark.parametrize("expression", [False, True])
def test_partitions_by_the_hash_of_what_holds_enums(make_case: Callable[..., Case], key: str, expression: bool) -> None:
    value = {
        "stage[]": "ARRAY[s, 'a']::stage[]",
        "kind": "s::kind",
        "edges": "edges(s, 'd')",
        "pair": "ROW(i, s)::pair",
    }[key]
    case = make_case(
        "CREATE TYPE stage AS ENUM ('a', 'b', 'c', 'd'); CREATE DOMAIN kind AS stage; CREATE TYPE pair AS (n int, s stage);"
        " CREATE TYPE edges AS RANGE (SUBTYPE = stage);"
        f" CREATE FUNCTION same({key}) RETURNS {key} LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN $1; END';"
        f" CREATE TABLE t (id int, k {key}) PARTITION BY HASH ({'(public.same(k))' if expression else 'k'});"
        " CREATE TABLE t_0 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        " CREATE TABLE t_1 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 1);"
        f" INSERT INTO t SELECT i, {value} FROM generate_series(1, 100) i,"
        " LATERAL (SELECT (enum_range(NULL::stage))[i % 4 + 1]) AS e(s)"
    )
    taken = case.chain.take()
    place = case.place()
    found = case.restored(taken, place)
    assert different(taken.image.tables, found.tables) == []
    assert case.execute(place.database, "SELECT count(*), sum(id) FROM t") == [(100, 5050)]


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


def test_roles_that_a_failed_restore_made_are_removed_again(make_case: Callable[..., Case]) -> None:
    """Only those: a role that was there before stays."""
    made, kept = (f"{word}_{secrets.token_hex(4)}" for word in ("made", "kept"))
    case = make_case(
        f"CREATE ROLE {made}; CREATE ROLE {kept}; CREATE TABLE t AS SELECT 1 AS a; ALTER TABLE t OWNER TO {made};"
        f"CREATE TABLE u (a int); ALTER TABLE u OWNER TO {kept}; ALTER DEFAULT PRIVILEGES FOR ROLE {made}"
        f" GRANT SELECT ON TABLES TO {kept}"
    )
    taken = case.chain.take()
    case.execute(case.names[0], f"DROP OWNED BY {made}; DROP ROLE {made}")
    roles = f"SELECT rolname FROM pg_roles WHERE rolname IN ('{made}', '{kept}')"
    try:
        for create in (True, False):
            target = case.chain.target(case.place(make=not create), create=create, roles="create")
            with pytest.raises(KeyboardInterrupt):
                case.chain.restore(taken, target, spoil=give_up_at(len(taken.chunks) - 1))
            assert case.execute("postgres", roles) == [(kept,)]
        assert_same(taken, case.restored(taken, case.place(), roles="create"))
    finally:
        for name in case.names:
            case.host.drop_database(name)
        case.execute("postgres", f"DROP ROLE IF EXISTS {made}; DROP ROLE {kept}")


def test_an_extension_that_the_server_lacks_is_refused_by_the_plan(make_case: Callable[..., Case]) -> None:
    """Before anything is fetched; but not for a table that does not need it, and not for rows alone."""
    case = make_case(
        "CREATE EXTENSION hstore; CREATE TABLE with_it AS SELECT 'a=>1'::hstore AS h; CREATE TABLE without AS SELECT 1 AS a"
    )
    taken = case.chain.take()
    layout = dict(taken.image.layout)
    layout["extensions"] = {key: name.replace("hstore", "no_such") for key, name in layout["extensions"].items()}
    place = case.place()
    for options in ({}, {"tables": ("with_it",)}):
        error = error_of(lambda options=options: case.chain.target(place, **options).describe(layout))  # type: ignore[misc]
        assert isinstance(error, TargetError)
        assert error.why == "no_such"
        assert "install" in error.hint
    case.chain.target(place, tables=("without",)).describe(layout)
    case.chain.target(place, content="data").describe(layout)


def test_rows_that_break_a_foreign_key_come_back_with_the_key_for_new_rows(
    make_case: Callable[..., Case], pg12: TestServer
) -> None:
    definition = """
        CREATE TABLE parent (a int PRIMARY KEY); CREATE TABLE child (a int); INSERT INTO child VALUES (1);
        CREATE TABLE "good; child" (a int CONSTRAINT "it ""holds"";
            -- here" REFERENCES parent);
        CREATE TABLE parted (a int) PARTITION BY LIST (a); CREATE TABLE part_1 PARTITION OF parted FOR VALUES IN (1);
        INSERT INTO parted VALUES (1);
        ALTER TABLE child ADD CONSTRAINT "böse" FOREIGN KEY (a) REFERENCES parent NOT VALID;
        COMMENT ON CONSTRAINT "böse" ON child IS 'said of it';
        INSERT INTO parent VALUES (1); ALTER TABLE parted ADD CONSTRAINT whole FOREIGN KEY (a) REFERENCES parent;
        COMMENT ON CONSTRAINT whole ON parted IS 'said of the other';
        UPDATE pg_constraint SET convalidated = true WHERE conname = 'böse';
        CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'rows stay'; END$$;
        CREATE TRIGGER never BEFORE TRUNCATE ON child EXECUTE FUNCTION never();
        SET session_replication_role = replica; DELETE FROM parent
    """
    case = make_case(definition, pg12, encoding="LATIN1", locale="C")
    taken = case.chain.take()
    place = case.place(make=False)
    refused = error_of(lambda: case.restored(taken, place, create=True))
    assert any(key in refused.why for key in ("böse", "whole"))  # the first of those that are made side by side
    assert "--foreign-keys not-valid" in refused.hint
    case.chain.restore(taken, case.chain.target(place, create=True, foreign_keys="not-valid"))
    warned = [event.text for event in case.chain.events if isinstance(event, Warned)]
    assert ["böse is NOT VALID" in warned[0], "whole is left out" in warned[1], len(warned)] == [True, True, 2]
    assert case.execute(
        place.database,
        "SELECT conname, convalidated, obj_description(oid, 'pg_constraint') FROM pg_constraint WHERE contype = 'f'"
        ' ORDER BY conname COLLATE "C"',
    ) == [("böse", False, "said of it"), ('it "holds";\n            -- here', True, None)]
    assert case.execute(place.database, "SELECT a FROM child UNION ALL SELECT a FROM parted") == [(1,), (1,)]
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        case.execute(place.database, "INSERT INTO child VALUES (2)")

    # A drill names all of them, and finds all else as in the source: rows, definitions, comments on the keys.
    case.chain.events.clear()
    engine = PostgresTargetEngine(None, None, drill_server=case.host.server("postgres"))
    with engine.isolated(case.chain.scratch, taken.image.layout, taken.info.properties, print) as drilled:
        case.chain.restore(taken, drilled.target)
        found = case.chain.verify(taken, drilled.target)
    assert different(taken.image.tables, found.tables) == []
    assert differing_kinds(taken, found) == []
    (broken,) = [check for check in found.checks if not check.ok]
    assert broken.name == "foreign_key_check"
    assert broken.detail == (
        '"public"."child" "böse": 1 rows without the row they refer to,'
        ' "public"."parted" "whole": 1 rows without the row they refer to'
    )
    assert [event for event in case.chain.events if isinstance(event, Warned)] == []


def test_rows_alone_need_the_right_to_switch_triggers_off(make_case: Callable[..., Case]) -> None:
    role = f"owner_{secrets.token_hex(4)}"
    case = make_case("CREATE TABLE t AS SELECT 1 AS a")
    taken = case.chain.take()
    case.execute("postgres", f"CREATE ROLE {role} LOGIN")
    try:
        place = case.place(make=False)
        case.host.create_database(place.database, owner=role, template="template0")
        mine = Server(tuple(sorted({**dict(place.keywords), "user": role}.items())))
        case.restored(taken, mine, content="schema", roles="ignore")
        error = error_of(lambda: case.restored(taken, mine, content="data", roles="ignore"))
        assert isinstance(error, TargetDenied)
        assert "GRANT SET ON PARAMETER session_replication_role" in error.hint
        case.execute("postgres", f"GRANT SET ON PARAMETER session_replication_role TO {role}")
        case.restored(taken, mine, content="data", roles="ignore")
        assert case.execute(place.database, "SELECT a FROM t") == [(1,)]
    finally:
        for name in case.names:
            case.host.drop_database(name)
        case.execute("postgres", f"DROP OWNED BY {role}; DROP ROLE {role}")


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
