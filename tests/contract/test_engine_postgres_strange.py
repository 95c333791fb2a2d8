"""What is strange and yet usual in databases of CRMs: functions that need a search_path, settings of roles, views that stay
empty; on real servers.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crmbackup.core.errors import SourceUnavailable, TargetError
from crmbackup.core.events import Warned
from crmbackup.engines.base import Restore
from crmbackup.engines.postgres.connection import Server, _refuse_shared, source_errors
from crmbackup.engines.postgres.restore_clean import make_droppable
from crmbackup.engines.postgres.restore_functions import _calls
from crmbackup.engines.postgres.target import PostgresTargetEngine
from crmbackup.operations.workers import ProcessWorkers
from tests.postgres import TestServer
from tests.support_postgres import PgChain, assert_same, different
from tests.support_postgres_cases import Case, make_case, workers
from tests.support_sqlite import error_of

__all__ = ["make_case", "workers"]

#: As found in databases that search without accents: the wrapper names what it calls without a schema.
UNACCENT = """
CREATE EXTENSION unaccent;
CREATE FUNCTION plain(text) RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT unaccent('unaccent', $1)$$;
CREATE FUNCTION slow_plain(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$BEGIN RETURN plain($1); END$$;
CREATE FUNCTION is_plain(text) RETURNS bool LANGUAGE sql AS $$SELECT plain($1) = $1$$;
CREATE TABLE partners (id serial, name text, code text CHECK (is_plain(code)), what regclass DEFAULT 'partners');
INSERT INTO partners (name, code) SELECT 'Élodie ' || i, i FROM generate_series(1, 500) i;
CREATE INDEX ON partners (plain(name));
CREATE INDEX ON partners (slow_plain(name)) WHERE plain(name) <> '';
CREATE FUNCTION any_plain(anyelement) RETURNS text LANGUAGE sql IMMUTABLE AS $$SELECT plain($1::text)$$;
CREATE UNIQUE INDEX ON partners (any_plain(id));
CREATE STATISTICS told ON plain(name), id FROM partners;
"""


@pytest.fixture
def odd(pg15: TestServer) -> Iterator[str]:
    """A superuser whose sessions begin with what nobody should have set."""
    name = f"odd_{secrets.token_hex(4)}"
    with pg15.connect() as connection:
        connection.execute(f"CREATE ROLE {name} SUPERUSER LOGIN")
        for setting in (
            "array_nulls = off",
            "client_encoding = 'LATIN1'",
            "idle_session_timeout = '200ms'",
            "search_path = 'nowhere'",
        ):
            connection.execute(f"ALTER ROLE {name} SET {setting}")
        yield name
        connection.execute(f"DROP ROLE {name}")


def by(server: Server, user: str) -> Server:
    return Server(tuple({**dict(server.keywords), "user": user}.items()))


def test_settings_of_a_role_change_nothing(
    make_case: Callable[..., Case], workers: ProcessWorkers, odd: str, tmp_path: Path
) -> None:
    case = make_case(
        "CREATE TABLE lists (words text[]); INSERT INTO lists VALUES (ARRAY['a', NULL]), (ARRAY['NULL']);"
        "COMMENT ON TABLE lists IS 'żółć €'"
    )
    chain = PgChain(by(case.chain.server, odd), tmp_path, workers)
    taken = chain.take()
    target = chain.target(by(case.place(), odd))

    def rest(_: Restore, __: int) -> None:
        time.sleep(0.7)

    chain.restore(taken, target, spoil=rest)
    assert_same(taken, chain.verify(taken, target))


def test_functions_of_indexes_and_checks_that_need_a_search_path(make_case: Callable[..., Case]) -> None:
    case = make_case(UNACCENT)
    case.chain.prove(case.chain.take())
    case.execute(case.names[0], "UPDATE partners SET name = 'Zoë' WHERE id = 7")
    taken = case.chain.take()
    place = case.place()
    assert_same(taken, case.restored(taken, place))
    assert case.execute(place.database, "SELECT count(*) FROM partners WHERE plain(name) = 'Zoe'") == [(1,)]
    assert case.execute(place.database, "SELECT proname FROM pg_proc WHERE proconfig IS NOT NULL") == []


def test_a_function_of_an_extension_that_was_made_immutable(make_case: Callable[..., Case]) -> None:
    case = make_case(
        "CREATE SCHEMA ext; CREATE EXTENSION unaccent SCHEMA ext; ALTER FUNCTION ext.unaccent(text) IMMUTABLE;"
        "CREATE TABLE partners (name text); INSERT INTO partners VALUES ('Élodie'), ('a, (b');"
        "CREATE INDEX ON partners (ext.unaccent(name || ', (''' || lower(name)))"
    )
    taken = case.chain.take()
    case.chain.prove(taken)
    place = case.place()
    assert_same(taken, case.restored(taken, place))
    rows = case.execute(
        place.database,
        "SELECT oid::regprocedure::text, provolatile::text FROM pg_proc WHERE proname = 'unaccent' ORDER BY 1",
    )
    assert rows == [("ext.unaccent(regdictionary,text)", "s"), ("ext.unaccent(text)", "i")]


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("(e.f((name)::text))", [1]),
        ("(e.f('e.d'::regdictionary, (a)::text))", [2]),
        ("(e.f(ARRAY[a, b], g(c, d), 'x, (''y'), e.f(\"q,\"))", [3, 1]),
        ("(e.fg(a)), (\"e.f\"(b)), (be.f(c))", []),
    ],
)  # fmt: skip
def test_calls_are_told_by_their_arguments(text: str, counts: list[int]) -> None:
    assert list(_calls(text.encode(), b"e.f")) == counts


def test_a_filled_view_over_one_that_is_not_filled_comes_back_empty(make_case: Callable[..., Case]) -> None:
    case = make_case(
        "CREATE TABLE t (a int); INSERT INTO t VALUES (1);"
        "CREATE MATERIALIZED VIEW below AS TABLE t; CREATE VIEW between AS TABLE below;"
        "CREATE MATERIALIZED VIEW above AS TABLE between; CREATE MATERIALIZED VIEW beside AS TABLE t;"
        "REFRESH MATERIALIZED VIEW below WITH NO DATA"
    )
    taken = case.chain.take()
    assert "materialized view public.above" in dict(taken.image.not_covered)
    case.chain.prove(taken)
    place = case.place()
    assert_same(taken, case.restored(taken, place))
    assert case.execute(place.database, "SELECT relname FROM pg_class WHERE relkind = 'm' AND relispopulated") == [
        ("beside",)
    ]


def test_a_view_over_a_function_that_needs_the_path_of_the_database(make_case: Callable[..., Case]) -> None:
    case = make_case(
        "CREATE SCHEMA crm; CREATE TABLE crm.t (a int); INSERT INTO crm.t VALUES (1), (2); SET search_path = crm;"
        "CREATE FUNCTION total() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT count(*) FROM t';"
        "CREATE MATERIALIZED VIEW totals AS SELECT total() AS total"
    )
    case.execute(case.names[0], f'ALTER DATABASE "{case.names[0]}" SET search_path = crm, public')
    taken = case.chain.take()
    case.chain.prove(taken)
    place = case.place(make=False)
    assert_same(taken, case.restored(taken, place, create=True))
    assert case.execute(place.database, "SELECT total FROM totals") == [(2,)]


def test_a_view_that_cannot_be_filled_any_more_stays_empty_but_fails_a_drill(make_case: Callable[..., Case]) -> None:
    case = make_case(
        "CREATE TABLE t (a int); INSERT INTO t VALUES (1); CREATE MATERIALIZED VIEW ones AS TABLE t;"
        "CREATE UNIQUE INDEX ON ones (a); CREATE MATERIALIZED VIEW more AS TABLE ones; INSERT INTO t VALUES (1)"
    )
    taken = case.chain.take()
    with pytest.raises(TargetError, match=r"public\.ones"):
        case.chain.prove(taken)
    place = case.place()
    case.chain.events.clear()
    case.chain.restore(taken, case.chain.target(place))
    warnings = [event for event in case.chain.events if isinstance(event, Warned)]
    assert [(event.code, event.text.split()[2]) for event in warnings] == [
        ("matview-empty", "public.ones"),
        ("matview-empty", "public.more"),
    ]
    assert case.execute(place.database, "SELECT count(*) FROM t") == [(2,)]


def test_a_locale_that_the_server_lacks_is_told(
    make_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case("CREATE TABLE t AS SELECT 1 AS a")
    taken = case.chain.take()
    taken.image.layout["database"]["collate"] = "xx_XX.UTF-8"  # type: ignore[index]
    target = case.chain.target(case.place(make=False), create=True)
    error = error_of(lambda: case.chain.restore(taken, target))
    assert (type(error), "locale" in error.what, "--create" in error.hint) == (TargetError, True, True)


def test_a_drill_goes_by_the_sequences_that_the_backup_could_read(
    make_case: Callable[..., Case], workers: ProcessWorkers, pg15: TestServer, tmp_path: Path
) -> None:
    case = make_case(
        "CREATE TABLE one (id serial); CREATE TABLE other (id serial); INSERT INTO one SELECT FROM generate_series(1, 5)"
    )
    role = f"reader_{secrets.token_hex(4)}"
    with pg15.connect(case.names[0]) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN")
        connection.execute(f"GRANT SELECT ON one, other, other_id_seq TO {role}")
        chain = PgChain(by(case.chain.server, role), tmp_path, workers)
        taken = chain.take()
        connection.execute(f"DROP OWNED BY {role}")
        connection.execute(f"DROP ROLE {role}")
    (warning,) = [event for event in chain.events if isinstance(event, Warned)]
    assert (warning.code, "public.one_id_seq" in warning.text) == ("sequence-unread", True)
    place = case.place()
    target = chain.target(place, roles="ignore")
    chain.restore(taken, target)
    found = chain.verify(taken, target)
    assert different(taken.image.tables, found.tables) == []
    (record,) = [record for record in found.tables if record.name == "(sequences)"]
    assert "public.one_id_seq" in record.reason


def test_triggers_that_act_on_replicas_refuse_rows_alone(make_case: Callable[..., Case]) -> None:
    case = make_case(
        "CREATE TABLE log (what text); CREATE TABLE t (a int) PARTITION BY RANGE (a);"
        "CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (1) TO (9); INSERT INTO t VALUES (1);"
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN INSERT INTO public.log VALUES ('x'); RETURN NEW; END$$;"
        "CREATE TRIGGER noted BEFORE INSERT ON t_1 FOR EACH ROW EXECUTE FUNCTION note();"
        "CREATE TRIGGER quiet BEFORE INSERT ON t_1 FOR EACH ROW EXECUTE FUNCTION note();"
        "CREATE TRIGGER later AFTER UPDATE ON t_1 FOR EACH ROW EXECUTE FUNCTION note();"
        "ALTER TABLE t_1 ENABLE ALWAYS TRIGGER noted; ALTER TABLE t_1 ENABLE ALWAYS TRIGGER later"
    )
    taken = case.chain.take()
    place = case.place()
    case.chain.restore(taken, case.chain.target(place, content="schema"))
    target = case.chain.target(place, content="data")
    with pytest.raises(TargetError) as raised:
        case.chain.restore(taken, target)
    assert raised.value.why == "ENABLE ALWAYS or ENABLE REPLICA: noted on public.t_1"
    case.execute(place.database, "ALTER TABLE t_1 DISABLE TRIGGER noted")
    case.chain.restore(taken, target)
    assert case.execute(place.database, "SELECT (SELECT count(*) FROM t), (SELECT count(*) FROM log)") == [(1, 0)]


def test_comments_on_what_a_table_has_from_its_parent_are_said_to_be_lost(make_case: Callable[..., Case]) -> None:
    case = make_case(
        "CREATE TABLE q (a int PRIMARY KEY);"
        "CREATE TABLE p (a int CONSTRAINT positive CHECK (a > 0) REFERENCES q, PRIMARY KEY (a)) PARTITION BY RANGE (a);"
        "CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (1) TO (9);"
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        "CREATE TRIGGER stamp BEFORE INSERT ON p FOR EACH ROW EXECUTE FUNCTION f();"
        "COMMENT ON CONSTRAINT positive ON p IS 'kept'; COMMENT ON CONSTRAINT p_1_pkey ON p_1 IS 'kept';"
        "COMMENT ON CONSTRAINT positive ON p_1 IS 'lost'; COMMENT ON TRIGGER stamp ON p_1 IS 'lost';"
        "COMMENT ON CONSTRAINT p_a_fkey ON p_1 IS 'lost'"
    )
    taken = case.chain.take()
    lost = sorted(what for what, _ in taken.image.not_covered if what.startswith("comment "))
    assert lost == [
        "comment on table constraint p_a_fkey on public.p_1",
        "comment on table constraint positive on public.p_1",
        "comment on trigger stamp on public.p_1",
    ]
    place = case.place()
    assert_same(taken, case.restored(taken, place))
    assert case.execute(place.database, "SELECT DISTINCT description FROM pg_description WHERE objoid >= 16384") == [
        ("kept",)
    ]


#: Neither a restore nor what removes one may wake it.
LOUD = """
CREATE TABLE t AS SELECT 1 AS a;
CREATE FUNCTION loud() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'no definitions'; END$$;
CREATE SUBSCRIPTION sub CONNECTION 'host=127.0.0.1' PUBLICATION p WITH (connect = false);
CREATE EVENT TRIGGER loud ON ddl_command_start EXECUTE FUNCTION loud();
ALTER EVENT TRIGGER loud ENABLE ALWAYS
"""


@pytest.fixture
def quiet(pg15: TestServer) -> Iterator[list[str]]:
    """Databases that are made droppable again."""
    names: list[str] = []
    yield names
    for name in names:
        with pg15.connect(name) as connection:
            make_droppable(connection)


def test_event_triggers_that_always_act_do_not_act_on_a_restore(
    make_case: Callable[..., Case], quiet: list[str]
) -> None:
    case = make_case(LOUD)
    quiet.append(case.names[0])
    taken = case.chain.take()
    place = case.place(make=False)
    assert_same(taken, case.restored(taken, place, create=True))
    quiet.append(place.database)
    rows = case.execute(place.database, "SELECT evtenabled::text FROM pg_event_trigger")
    assert rows == [("A",)]


def test_a_drill_beside_others_drops_a_database_with_subscriptions(
    make_case: Callable[..., Case], quiet: list[str], pg15: TestServer
) -> None:
    case = make_case(LOUD)
    quiet.append(case.names[0])
    taken = case.chain.take()
    engine = PostgresTargetEngine(None, None, drill_server=pg15.server())
    with engine.isolated(case.chain.scratch, taken.image.layout, taken.info.properties, print) as place:
        case.chain.restore(taken, place.target)
        assert_same(taken, case.chain.verify(taken, place.target))
    assert place.gone()


def test_limits_of_connections(make_case: Callable[..., Case], pg15: TestServer, tmp_path: Path) -> None:
    role = f"owner_{secrets.token_hex(4)}"
    with pg15.connect() as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN CREATEDB")
    case = make_case("CREATE TABLE t AS SELECT 1 AS a", owner=role)
    name = case.names[0]
    case.execute(name, f"ALTER TABLE t OWNER TO {role}; ALTER DATABASE {name} CONNECTION LIMIT 1")
    try:
        taken = case.chain.take()
        engine = PostgresTargetEngine(None, None, drill_server=by(pg15.server(), role))
        with engine.isolated(tmp_path, taken.image.layout, taken.info.properties, print) as place:
            case.chain.restore(taken, place.target)
            assert_same(taken, case.chain.verify(taken, place.target))
        error = error_of(PgChain(by(case.chain.server, role), tmp_path, case.chain.workers).take)
        assert (type(error), "limits.jobs" in error.hint) == (SourceUnavailable, True)
    finally:
        pg15.drop_database(name)
        with pg15.connect() as connection:
            connection.execute(f"DROP ROLE {role}")


def test_a_database_is_made_where_nobody_gets_into_the_one_called_postgres(
    make_case: Callable[..., Case], pg15: TestServer
) -> None:
    role = f"maker_{secrets.token_hex(4)}"
    case = make_case("CREATE TABLE t AS SELECT 1 AS a")
    taken = case.chain.take()
    with pg15.connect() as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN CREATEDB")
        connection.execute("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
        try:
            place = by(case.place(make=False), role)
            found = case.restored(taken, place, create=True, roles="ignore")
            assert different(taken.image.tables, found.tables) == []
        finally:
            connection.execute("GRANT CONNECT ON DATABASE postgres TO PUBLIC")
            pg15.drop_database(place.database)
            connection.execute(f"DROP ROLE {role}")


def test_sessions_that_a_pooler_shares_are_refused(pg15: TestServer) -> None:
    server = pg15.server()
    with pg15.connect() as one, pg15.connect() as other:
        _refuse_shared(one, other)  # as a pool of sessions has them
        with pytest.raises(SourceUnavailable) as raised, source_errors(server):
            _refuse_shared(one, one)
    assert "pool_mode = session" in raised.value.hint
