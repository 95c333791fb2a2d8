"""Sources that refuse, hold locks, change while they are read, or go away: an exact snapshot or a clear error."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from crmbackup.core.errors import (
    SourceChanged,
    SourceDenied,
    SourceEmpty,
    SourceError,
    SourceLocked,
    SourceMissing,
    SourceUnavailable,
)
from crmbackup.engines.postgres import engine, joining
from crmbackup.engines.postgres.catalog import UNSUPPORTED, Listed, list_tables
from crmbackup.engines.postgres.connection import APPLICATION
from tests.support_postgres_sources import Chain, Cluster, Connection, cluster_of

SMALL = "CREATE TABLE small(id int, v text); INSERT INTO small SELECT i, 'v' || i FROM generate_series(1, 50) i"
OTHER = "CREATE TABLE other AS SELECT 1 AS one"
CRM = (
    "CREATE SCHEMA crm",
    "CREATE TABLE crm.contacts(id serial PRIMARY KEY, v text)",
    "INSERT INTO crm.contacts(v) SELECT 'c' FROM generate_series(1, 20)",
    "CREATE TABLE crm.secret AS SELECT 1 AS one",
)
WAIT = 20.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with cluster_of(15) as cluster:
        with cluster.server.connect() as connection:
            connection.execute("CREATE ROLE reader LOGIN IN ROLE pg_read_all_data")
            connection.execute("CREATE ROLE granted LOGIN")
        yield cluster


def blocked(chain: Chain, count: int = 1) -> None:
    """Wait until that many sessions of the database wait for a lock."""
    deadline = time.monotonic() + WAIT
    with chain.connect() as connection:
        while True:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ).fetchone()
            if row and row[0] >= count:
                return
            assert time.monotonic() < deadline
            time.sleep(0.01)


class Beside:
    """A statement in a session of its own, run beside; `done` waits for it."""

    def __init__(self, chain: Chain, statement: str) -> None:
        self._connection = chain.connect()
        self._thread = threading.Thread(target=self._connection.execute, args=(statement.encode(),))
        self._thread.start()

    def done(self) -> None:
        self._thread.join(WAIT)
        assert not self._thread.is_alive()
        self._connection.close()


@pytest.mark.parametrize("role", ["reader", "granted"])
def test_a_role_that_may_only_read_is_enough(cluster: Cluster, role: str) -> None:
    chain = cluster.chain(
        *CRM,
        "GRANT USAGE ON SCHEMA crm TO granted",
        "GRANT SELECT ON ALL TABLES IN SCHEMA crm TO granted",
        "GRANT SELECT ON ALL SEQUENCES IN SCHEMA crm TO granted",
    ).become(user=role)
    taken = chain.take()
    assert taken.record("(sequences)").rows == 1
    assert chain.take().read == {}
    chain.sql("DELETE FROM crm.contacts WHERE id = 3")
    assert set(chain.take().read) == {"crm.contacts"}


def test_a_missing_right_is_told_with_what_helps(cluster: Cluster) -> None:
    chain = cluster.chain(*CRM, "GRANT USAGE ON SCHEMA crm TO granted", "GRANT SELECT ON crm.contacts TO granted")
    error = chain.become(user="granted").refused(SourceDenied)
    assert error.why == "crm.secret"
    assert 'GRANT SELECT ON ALL TABLES IN SCHEMA "crm" TO granted' in error.hint
    assert "GRANT pg_read_all_data TO granted" in error.hint
    chain.sql("GRANT SELECT ON crm.secret TO granted", "REVOKE USAGE ON SCHEMA crm FROM granted")
    error = chain.refused(SourceDenied)
    assert 'GRANT USAGE ON SCHEMA "crm" TO granted' in error.hint


def test_the_statements_that_help_can_be_run_whatever_the_names(cluster: Cluster) -> None:
    chain = cluster.chain(
        """CREATE SCHEMA "o'd ""d" """,
        """CREATE TABLE "o'd ""d".t AS SELECT 1 AS a""",
        'CREATE ROLE "backup-role" LOGIN',
    )
    try:
        error = chain.become(user="backup-role").refused(SourceDenied)
        chain.sql(*error.hint.partition("or: ")[2].split("; "))
        assert chain.take().record("""\"o'd \"\"d\".t""").rows == 1
    finally:
        chain.sql('DROP OWNED BY "backup-role"', 'DROP ROLE "backup-role"')


def test_a_sequence_without_right_is_listed(cluster: Cluster) -> None:
    chain = cluster.chain(
        *CRM, "GRANT USAGE ON SCHEMA crm TO granted", "GRANT SELECT ON ALL TABLES IN SCHEMA crm TO granted"
    )
    taken = chain.become(user="granted").take()
    assert "sequence crm.contacts_id_seq" in dict(taken.image.not_covered)


def test_large_objects_without_right_fail(cluster: Cluster) -> None:
    chain = cluster.chain(SMALL, "SELECT lo_from_bytea(4711, 'x')").become(user="reader")
    error = chain.refused(SourceDenied)
    assert "large objects: permission denied for large object 4711" in error.why


def test_row_level_security_never_filters(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = cluster.chain(SMALL, "ALTER TABLE small ENABLE ROW LEVEL SECURITY").become(user="reader")
    monkeypatch.setattr(chain.snapshots, "_look", lambda snapshot: {})  # the test's own reading would fail as well
    error = chain.refused(SourceDenied)
    assert "row-level security may hide rows of 1 of 1 tables" in error.what
    assert error.why == "public.small"
    assert "ALTER ROLE reader BYPASSRLS" in error.hint
    chain.sql("CREATE POLICY part ON small USING (id < 10)")
    chain.refused(SourceDenied)
    chain.sql("ALTER TABLE small DISABLE ROW LEVEL SECURITY")
    changing(monkeypatch, chain, "ALTER TABLE small ENABLE ROW LEVEL SECURITY")
    assert "table public.small: query would be affected" in chain.refused(SourceDenied).why
    monkeypatch.undo()
    chain.become(user="postgres")
    assert chain.take().record("public.small").rows == 50


def changing(monkeypatch: pytest.MonkeyPatch, chain: Chain, *statements: str) -> None:
    """Run statements once, after the tables were listed and before they are locked."""
    waiting = list(statements)

    def listed(connection: Connection) -> list[Listed]:
        tables = list_tables(connection)
        chain.sql(*waiting)
        waiting.clear()
        return tables

    monkeypatch.setattr(joining, "list_tables", listed)


@pytest.mark.parametrize(
    ("change", "tables", "rows"),
    [
        ("DROP TABLE small", 1, None),
        ("CREATE TABLE third AS SELECT 3 AS c", 3, 50),
        ("ALTER TABLE small ADD COLUMN more int DEFAULT 5", 2, 50),
        ("ALTER TABLE small RENAME TO renamed", 2, None),
        ("TRUNCATE small", 2, 0),
        ("DROP TABLE small; CREATE TABLE small AS SELECT 'new' AS v", 2, 1),
        ("DROP TABLE small; CREATE VIEW small AS SELECT 1 AS v", 1, None),
        ("DROP SCHEMA crm CASCADE", 2, 50),
    ],
)
def test_tables_that_change_between_listing_and_lock(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, change: str, tables: int, rows: int | None
) -> None:
    chain = cluster.chain(SMALL, OTHER, *(CRM if "crm" in change else ()))
    changing(monkeypatch, chain, change)
    taken = chain.take()
    assert len(taken.layout.tables) == tables
    if rows is not None:
        assert taken.record("public.small").rows == rows


@pytest.mark.parametrize(
    "change", ["TRUNCATE small", "ALTER TABLE small ADD COLUMN w int DEFAULT 1", "DROP TABLE small"]
)
def test_changes_of_shape_wait_until_all_is_read(cluster: Cluster, change: str) -> None:
    """They queue behind the snapshot; nothing of the snapshot may then queue behind them."""
    chain = cluster.chain(SMALL, OTHER)
    waiting: list[Beside] = []

    def meanwhile() -> None:
        defined(chain)
        waiting.append(Beside(chain, change))
        blocked(chain)

    taken = chain.take(meanwhile=meanwhile)
    assert taken.record("public.small").rows == 50
    chain.leave()
    waiting[0].done()
    chain.take()


def test_a_table_that_came_after_the_listing_is_locked_too(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the snapshot: emptied before it is read, it would be empty in there."""
    chain = cluster.chain(SMALL)
    changing(monkeypatch, chain, "CREATE TABLE third AS SELECT 3 AS c")
    waiting: list[Beside] = []

    def meanwhile() -> None:
        defined(chain)
        waiting.append(Beside(chain, "TRUNCATE third"))
        blocked(chain)

    assert chain.take(meanwhile=meanwhile).record("public.third").rows == 1
    chain.leave()
    waiting[0].done()


def defined(chain: Chain) -> None:
    """Wait until pg_dump has ended: it locks tables as well."""
    assert chain.snapshots.open
    chain.snapshots.open._archiving._process.wait()


@pytest.fixture
def migrating(cluster: Cluster, tmp_path: Path) -> Iterator[Chain]:
    """A database in which a migration comes between our locks and those of pg_dump, the first time."""
    programs = tmp_path / "programs"
    programs.mkdir()
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    wrapper = programs / "pg_dump"
    real = engine.find_program("pg_dump", at_least=15).path
    wrapper.write_text(
        f'#!/bin/sh\nif [ "$1" != --version ] && [ -p {gate} ]; then read line < {gate}; rm {gate}; fi\nexec {real} "$@"\n'
    )
    wrapper.chmod(0o755)
    chain = cluster.chain(SMALL).settings(lock_seconds=30.0, programs=programs)
    waiting: list[Beside] = []

    def migrate() -> None:
        with gate.open("w") as stream:  # once pg_dump is started, which comes after our locks
            waiting.append(Beside(chain, "ALTER TABLE small ADD COLUMN w int"))
            blocked(chain)
            stream.write("go\n")

    helper = threading.Thread(target=migrate)
    helper.start()
    yield chain
    helper.join()
    waiting[0].done()


def test_a_migration_that_comes_before_pg_dump_goes_first(migrating: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """pg_dump would wait for it, it for us, and we for pg_dump: all locks are given back, and all begins anew."""
    monkeypatch.setattr(engine, "LOCK_WAIT", 0.5)
    taken = migrating.take()
    assert taken.layout.tables[0].columns == ("id", "v", "w")


def test_pg_dump_behind_a_migration_gives_up_in_time(migrating: Chain) -> None:
    error = migrating.settings(lock_seconds=0.5).refused(SourceLocked)
    assert "pg_dump could not lock" in str(error)


def test_a_table_that_is_locked_for_long(cluster: Cluster) -> None:
    chain = cluster.chain(SMALL).settings(lock_seconds=1.0)
    with chain.connect(autocommit=False) as session:
        session.execute("LOCK TABLE small IN ACCESS EXCLUSIVE MODE")
        error = chain.refused(SourceLocked)
        assert "lock timeout" in error.why
        assert "migration" in error.hint
    assert chain.take().record("public.small").rows == 50


def test_a_lock_that_goes_away_in_time(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many short waits, so that those who come after the one that we wait for are not held up for long."""
    monkeypatch.setattr(joining, "LOCK_WAIT", 0.2)
    chain = cluster.chain(SMALL).settings(lock_seconds=30.0)
    session = chain.connect(autocommit=False)
    session.execute("LOCK TABLE small IN ACCESS EXCLUSIVE MODE")
    session.execute("DELETE FROM small WHERE id = 1")
    helper = threading.Thread(target=lambda: (blocked(chain), session.commit(), session.close()))
    helper.start()
    assert chain.take().record("public.small").rows == 49
    helper.join()


def test_an_enum_label_renamed_while_reading(cluster: Cluster) -> None:
    """Types are not locked: rows would come with either label, and definitions with one of them."""
    chain = cluster.chain("CREATE TYPE stage AS ENUM ('a', 'b'); CREATE TABLE deals AS SELECT 'a'::stage AS s", SMALL)
    error = chain.refused(SourceChanged, meanwhile=lambda: chain.sql("ALTER TYPE stage RENAME VALUE 'a' TO 'z'"))
    assert "stage" in error.why
    chain.take(meanwhile=lambda: chain.sql("ALTER TYPE stage ADD VALUE 'c'"))


def end_backends(chain: Chain, state: str) -> None:
    chain.sql(
        f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = '{APPLICATION}'"
        f" AND datname = current_database() AND state = 'idle in transaction' AND query ~ '{state}'"
    )


@pytest.mark.parametrize("query", ["LOCK TABLE", "description|settings|locale"])
def test_backends_that_are_ended_midway(cluster: Cluster, query: str) -> None:
    """First those of the workers, then the one that holds the snapshot."""
    chain = cluster.chain(SMALL, OTHER)
    chain.take()

    def meanwhile() -> None:
        defined(chain)  # else pg_dump may be the first to notice
        end_backends(chain, query)

    error = chain.refused(SourceUnavailable, meanwhile=meanwhile)
    assert "cannot be reached" in str(error)
    assert chain.take().read == {}


def test_the_server_restarts_midway(cluster: Cluster) -> None:
    chain = cluster.chain(SMALL)
    chain.refused(SourceUnavailable, meanwhile=cluster.server.restart)
    chain.take()


def test_addresses_that_lead_nowhere(cluster: Cluster, tmp_path: Path) -> None:
    chain = cluster.chain(SMALL)
    name = chain.name
    assert "does not exist" in str(chain.become(dbname="nowhere").refused(SourceMissing))
    assert "nobody_here" in chain.become(dbname=name, user="nobody_here").refused(SourceDenied).why
    chain.become(user="postgres", host=str(tmp_path)).refused(SourceUnavailable)
    chain.become(host="127.0.0.1", port="1").refused(SourceUnavailable)


def test_a_wrong_password(cluster: Cluster) -> None:
    chain = cluster.chain(SMALL, "CREATE ROLE locked LOGIN PASSWORD 'right'")
    rules = cluster.server.directory / "pg_hba.conf"
    before = rules.read_text()
    rules.write_text("local all locked scram-sha-256\n" + before)
    chain.sql("SELECT pg_reload_conf()")
    error = chain.become(user="locked", passfile="/dev/null").refused(SourceDenied)
    assert "no password supplied" in error.why
    assert "source.password" in error.hint
    with closing(chain.connect()) as connection:
        connection.execute("SELECT 1")
    rules.write_text(before)


def test_a_version_that_is_not_known(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = cluster.chain(SMALL)
    monkeypatch.setattr(engine, "OLDEST", 16)
    error = chain.refused(SourceError)
    assert "is PostgreSQL 15" in str(error)
    assert "upgrade the server" in error.hint


def test_nothing_to_back_up(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = cluster.chain("CREATE VIEW v AS SELECT 1 AS one", "CREATE EXTENSION citext")
    chain.refused(SourceEmpty)
    monkeypatch.setitem(UNSUPPORTED, "citext", "for a test")  # type: ignore[misc]
    assert "citext: for a test" in chain.refused(SourceError).why


def test_values_of_many_megabytes(cluster: Cluster) -> None:
    chain = cluster.chain("CREATE TABLE big(v text)", "ALTER TABLE big ALTER v SET STORAGE EXTERNAL")
    chain.sql(
        "INSERT INTO big SELECT repeat('0123456789', 20000000) UNION ALL SELECT repeat('x', 3000000) FROM generate_series(1, 9)"
    )
    taken = chain.snapshots.take()
    assert taken.content() == taken.seen
    sizes = sorted(len(chunk) for chunk in taken.chunks)
    assert sizes[-1] <= 200_000_001 + 8 * 1024 * 1024
    assert sizes[-2] <= 11_000_010
