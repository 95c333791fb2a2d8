"""Tables and acts of extensions: what is in a snapshot, what comes back, what a drill keeps out; on real servers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest

from crmbackup.core.errors import TargetError
from crmbackup.engines.base import IsolatedTarget
from crmbackup.engines.postgres.acting import ACTING
from crmbackup.engines.postgres.target import PostgresTargetEngine
from crmbackup.operations.compare import compare_schema, compare_tables
from crmbackup.reports.drill import Outcome, SchemaResult, TableResult, judge_validation
from tests.postgres import TestServer, pg12, pg15, pg18
from tests.support_postgres import Taken, assert_same
from tests.support_postgres_cases import Case, extension_in, make_case, workers
from tests.support_sqlite import error_of

__all__ = ["make_case", "pg12", "pg15", "pg18", "workers"]

#: What matters here of the real one, which cannot be had where its library is not preloaded.
PG_CRON = """
    CREATE SCHEMA cron;
    CREATE TABLE cron.job (jobid bigserial PRIMARY KEY, command text, username text DEFAULT CURRENT_USER);
    CREATE TABLE cron.job_run_details (jobid bigint, status text);
    ALTER TABLE cron.job ENABLE ROW LEVEL SECURITY;
    CREATE POLICY cron_job_policy ON cron.job USING (username = CURRENT_USER);
    CREATE FUNCTION cron.schedule(text) RETURNS bigint LANGUAGE sql AS
        'INSERT INTO cron.job (command) VALUES ($1) RETURNING jobid';
    SELECT pg_catalog.pg_extension_config_dump('cron.job', '');
    SELECT pg_catalog.pg_extension_config_dump('cron.job_run_details', '');
    SELECT pg_catalog.pg_extension_config_dump('cron.job_jobid_seq', '');
"""
USES_IT = """
    CREATE EXTENSION pg_cron; COMMENT ON EXTENSION pg_cron IS 'runs jobs'; GRANT USAGE ON SCHEMA cron TO pg_monitor;
    GRANT SELECT ON cron.job TO pg_monitor; GRANT UPDATE (command) ON cron.job TO pg_monitor;
    GRANT EXECUTE ON FUNCTION cron.schedule TO pg_monitor; REVOKE ALL ON FUNCTION cron.schedule FROM PUBLIC;
    ALTER DEFAULT PRIVILEGES IN SCHEMA cron GRANT SELECT ON TABLES TO pg_monitor;
    CREATE TABLE mine (id serial PRIMARY KEY, a int); INSERT INTO mine (a) SELECT generate_series(1, 50);
    GRANT SELECT ON mine TO PUBLIC; COMMENT ON TABLE mine IS 'said of it';
    SELECT cron.schedule('VACUUM'), cron.schedule('DELETE FROM mine')
"""
#: What the server drops with it, and what it does not: nobody but the one who calls it knows what a function's text names.
LEANS_ON_IT = """;
    CREATE VIEW jobs AS SELECT jobid, command FROM cron.job; GRANT SELECT ON jobs TO PUBLIC; COMMENT ON VIEW jobs IS 'all';
    CREATE VIEW "number of jobs" AS SELECT count(*) FROM jobs;
    CREATE MATERIALIZED VIEW kept_jobs AS SELECT * FROM jobs; CREATE UNIQUE INDEX ON kept_jobs (jobid);
    CREATE MATERIALIZED VIEW sums AS SELECT sum(a) FROM mine;
    ALTER TABLE mine ADD job bigint REFERENCES cron.job;
    CREATE FUNCTION newest() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT max(jobid) FROM cron.job; END;
    CREATE FUNCTION any_job() RETURNS cron.job LANGUAGE sql AS 'SELECT * FROM cron.job LIMIT 1';
    CREATE FUNCTION says() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM cron.job); END';
    CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
    ALTER FUNCTION tell() DEPENDS ON EXTENSION pg_cron;
    CREATE TRIGGER told AFTER UPDATE ON mine FOR EACH ROW EXECUTE FUNCTION tell();
    CREATE RULE tells AS ON UPDATE TO mine DO ALSO SELECT cron.schedule('x'); COMMENT ON RULE tells ON mine IS 'of jobs';
    CREATE POLICY idle ON mine USING (NOT EXISTS (SELECT FROM cron.job));
    CREATE POLICY even ON mine USING (a % 2 = 0);
"""
LEANING = (
    "function public.any_job()",
    "function public.newest()",
    "function public.tell()",
    "policy idle on public.mine",
    "public.kept_jobs",
    "rule tells on public.mine",
    "table constraint mine_job_fkey on public.mine",
    "trigger told on public.mine",
    'view public."number of jobs"',
    "view public.jobs",
)


class Judged(NamedTuple):
    """What a drill says of tables and definitions."""

    tables: Sequence[TableResult]
    schema: SchemaResult
    validation: Outcome

    @property
    def wrong(self) -> list[str]:
        """Names of tables that fail it."""
        return [table.name for table in self.tables if table.status not in ("match", "left-out")]


@contextmanager
def drill(case: Case, taken: Taken, *, beside: bool = False) -> Iterator[IsolatedTarget]:
    """A snapshot, restored as for a drill. beside: on the source's server."""
    engine = PostgresTargetEngine(None, None, drill_server=case.host.server("postgres") if beside else None)
    layout, properties = taken.image.layout, taken.info.properties
    with engine.isolated(Path(tempfile.gettempdir()), layout, properties, case.chain.events.append) as place:
        case.chain.restore(taken, place.target)
        yield place


def judged(case: Case, taken: Taken, place: IsolatedTarget, spoil: str = "SELECT 1") -> Judged:
    """What a drill says, after some SQL."""
    with psycopg.connect(**dict(place.target.server.keywords), autocommit=True) as connection:  # type: ignore[attr-defined]
        connection.execute(spoil.encode())
    found = case.chain.verify(taken, place.target)
    tables = compare_tables(taken.image.tables, found.tables, dict(found.left_out))
    schema = compare_schema(taken.info.schema, found)
    return Judged(tables, schema, judge_validation(tables, schema, (), ()))


def test_a_drill_goes_without_extensions_that_act_and_says_so(make_case: Callable[..., Case], pg18: TestServer) -> None:
    """The private server could not make them. All else is compared, and what is wrong with it fails the drill."""
    with extension_in(pg18, "pg_cron", PG_CRON):
        case = make_case(USES_IT, pg18)
        taken = case.chain.take()
        assert taken.record("cron.job").rows == 2
        assert_same(taken, case.restored(taken, case.place()))
        with drill(case, taken) as place:
            assert any("pg_cron" in line for line in place.isolation)
            first = judged(case, taken, place)
            assert [(table.name, table.status) for table in first.tables] == [
                ("cron.job", "left-out"),
                ("cron.job_run_details", "left-out"),
                ("public.mine", "match"),
                ("(sequences)", "match"),
            ]
            assert "extension pg_cron acts by itself" in (first.tables[0].detail or "")
            assert "without cron.job_jobid_seq" in (first.tables[3].detail or "")
            assert (first.schema.ok, first.validation) == (True, "passed")
            moved = judged(case, taken, place, "SELECT setval('mine_id_seq', 99)")
            assert (moved.wrong, moved.schema.ok, moved.validation) == (["(sequences)"], True, "failed")
            fewer = judged(case, taken, place, "DELETE FROM mine WHERE id = 7")
            assert (fewer.wrong, fewer.schema.ok) == (["public.mine", "(sequences)"], True)
            assert not judged(case, taken, place, "REVOKE SELECT ON mine FROM PUBLIC").schema.ok
        for name in case.names:
            pg18.drop_database(name)


def test_a_drill_goes_without_definitions_that_lean_on_such_an_extension(
    make_case: Callable[..., Case], pg18: TestServer
) -> None:
    with extension_in(pg18, "pg_cron", PG_CRON):
        case = make_case(USES_IT + LEANS_ON_IT, pg18)
        taken = case.chain.take()
        assert_same(taken, case.restored(taken, case.place()))
        with drill(case, taken) as place:
            found = judged(case, taken, place)
            left_out = {table.name for table in found.tables if table.status == "left-out"}
            assert left_out == {"cron.job", "cron.job_run_details", "public.kept_jobs"}
            assert (found.wrong, found.schema.ok, found.validation) == ([], True, "passed")
            reasons = dict(case.chain.verify(taken, place.target).left_out)
            assert [name for name in LEANING if "cannot be without pg_cron" not in reasons[name]] == []
            assert len(reasons) == len(LEANING) + len(
                ("extension pg_cron", "cron.job", "cron.job_run_details", "sequences")
            )
            assert not judged(case, taken, place, "DROP POLICY even ON mine").schema.ok
            assert not judged(case, taken, place, "DROP FUNCTION says").schema.ok
            assert not judged(case, taken, place, "DROP MATERIALIZED VIEW sums").schema.ok
        for name in case.names:
            pg18.drop_database(name)


def test_rows_that_cannot_be_without_such_an_extension_end_a_drill(
    make_case: Callable[..., Case], pg18: TestServer
) -> None:
    """Nothing is said to be proved that is not."""
    with extension_in(pg18, "pg_cron", PG_CRON):
        case = make_case(
            """CREATE EXTENSION pg_cron; CREATE TABLE free AS SELECT 1 AS a; CREATE TABLE typed (j cron.job);
            CREATE TABLE given (a bigint DEFAULT cron.schedule('x')); CREATE SEQUENCE cron.numbers;
            CREATE TABLE checked (a text CHECK (cron.schedule(a) > 0));
            CREATE DOMAIN job AS text CHECK (cron.schedule(VALUE) > 0); CREATE TABLE uses_domain (a job);
            CREATE TABLE below () INHERITS (given); CREATE TABLE cron.inside (a int)""",
            pg18,
        )
        taken = case.chain.take()
        assert_same(taken, case.restored(taken, case.place()))
        error = error_of(lambda: drill(case, taken).__enter__())
        assert isinstance(error, TargetError)
        assert sorted(error.why.removeprefix("cannot be without: ").split(", ")) == [
            "sequence cron.numbers",
            "table cron.inside",
            "table public.below",
            "table public.checked",
            "table public.given",
            "table public.typed",
            "table public.uses_domain",
        ]
        for name in case.names:
            pg18.drop_database(name)


@pytest.mark.parametrize("server", ["pg12", "pg15"])
def test_what_leans_on_a_real_extension(
    make_case: Callable[..., Case], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    """As if pg_trgm acted by itself."""
    monkeypatch.setitem(ACTING, "pg_trgm", "trgm")  # type: ignore[misc]
    case = make_case(
        """CREATE SCHEMA trgm; CREATE EXTENSION pg_trgm SCHEMA trgm; CREATE TABLE names (id int PRIMARY KEY, name text);
        INSERT INTO names VALUES (1, 'Anna'), (2, 'Ole');
        CREATE INDEX alike ON names USING gin (name trgm.gin_trgm_ops); CREATE INDEX plain ON names (name);
        CREATE VIEW near AS SELECT id, trgm.similarity(name, 'Ana') FROM names; CREATE VIEW all_of_them AS TABLE names""",
        request.getfixturevalue(server),
    )
    taken = case.chain.take()
    with drill(case, taken, beside=True) as place:
        found = judged(case, taken, place)
        assert (found.wrong, found.schema.ok, found.validation) == ([], True, "passed")
        names = {name for name, _ in case.chain.verify(taken, place.target).left_out}
        assert names == {"extension pg_trgm", "index public.alike", "view public.near"}
        assert not judged(case, taken, place, "DROP INDEX plain").schema.ok


def test_rows_of_users_in_tables_of_an_extension(make_case: Callable[..., Case], pg18: TestServer) -> None:
    """What the extension brings is there again by CREATE EXTENSION; what users added is in the snapshot."""
    script = """
        CREATE TABLE settings (key text PRIMARY KEY, value text, own bool DEFAULT true);
        CREATE TABLE jobs (id serial PRIMARY KEY, what text);
        CREATE TABLE inner_state AS SELECT 'never carried' AS v;
        INSERT INTO settings VALUES ('colour', 'grey', false);
        SELECT pg_catalog.pg_extension_config_dump('settings', 'WHERE own');
        SELECT pg_catalog.pg_extension_config_dump('jobs', '');
        SELECT pg_catalog.pg_extension_config_dump('jobs_id_seq', '');
    """
    with extension_in(pg18, "crm_tools", script):
        case = make_case(
            "CREATE TABLE mine AS SELECT 1 AS a; CREATE EXTENSION crm_tools; INSERT INTO settings VALUES ('size', 'L');"
            "INSERT INTO jobs (what) VALUES ('mail'), ('call'); INSERT INTO inner_state VALUES ('changed')",
            pg18,
        )
        taken = case.chain.take()
        assert taken.record("public.settings").rows == 1
        place = case.place()
        assert_same(taken, case.restored(taken, place))
        assert case.execute(place.database, "SELECT key, own FROM settings ORDER BY 1") == [
            ("colour", False),
            ("size", True),
        ]
        assert case.execute(place.database, "INSERT INTO jobs (what) VALUES ('next') RETURNING id") == [(3,)]
        assert case.execute(place.database, "SELECT v FROM inner_state") == [("never carried",)]
        case.execute(case.names[0], "UPDATE jobs SET what = 'post' WHERE id = 1")
        following = case.chain.take()
        assert not following.record("public.jobs").carried
        assert following.record("public.mine").carried
        for name in case.names:
            pg18.drop_database(name)
