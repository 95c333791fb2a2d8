"""A snapshot among those who kill its sessions, migrate all the time, make and drop tables, or keep transactions open.

It is exact, or it fails with a code that says why; and nobody waits for long behind it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pymysql
import pytest

from crmbackup.core.clock import SystemClock
from crmbackup.core.errors import SourceChanged, SourceLocked, SourceUnavailable
from crmbackup.core.secrets import Secret
from crmbackup.engines.mysql import engine as engine_module
from crmbackup.engines.mysql import joining, reader
from crmbackup.engines.mysql.engine import MysqlSource, Settings
from crmbackup.operations.workers import ProcessWorkers
from tests.chains import Chain
from tests.mariadb import MariadbServer, mariadb
from tests.support_mariadb import Witnessed, content, run
from tests.support_mysql import fill, rows_of

__all__ = ["mariadb"]

SETUP = (
    "CREATE TABLE a (id INT PRIMARY KEY, v VARCHAR(200))",
    "CREATE TABLE b (id INT PRIMARY KEY, v VARCHAR(200))",
    "CREATE TABLE m (id INT PRIMARY KEY) ENGINE=MyISAM",
    "INSERT INTO a SELECT seq, repeat('a', 100) FROM seq_1_to_1000",
    "INSERT INTO b SELECT seq, repeat('b', 100) FROM seq_1_to_1000",
    "INSERT INTO m SELECT seq FROM seq_1_to_1000",
)


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessWorkers]:
    with ProcessWorkers(2) as found:
        yield found


@pytest.fixture
def server(mariadb: MariadbServer) -> Iterator[MariadbServer]:
    fill(mariadb, "crm", SETUP)
    yield mariadb
    mariadb.drop_database("crm")


def chain_of(server: MariadbServer, scratch: Path, workers: ProcessWorkers, **settings: Any) -> Chain:
    return Chain(lambda: MysqlSource(server.server("crm"), Settings(**settings)), scratch, workers)


def sessions_of(server: MariadbServer) -> list[int]:
    """Of the snapshot that is open: its view, what keeps tables locked, what asks for definitions, then its workers."""
    found = rows_of(server, "", "SELECT id FROM information_schema.processlist WHERE db = 'crm' ORDER BY id")
    return [number for (number,) in found]


def test_a_killed_session_fails_the_snapshot_whichever_it_is(
    server: MariadbServer, tmp_path: Path, workers: ProcessWorkers
) -> None:
    """Without the second, tables that belong to no snapshot would be read while they change."""
    for place in (0, 1, 2, 4):
        chain = chain_of(server, tmp_path / str(place), workers)

        def kill(place: int = place) -> None:
            numbers = sessions_of(server)
            rows_of(server, "", f"KILL {numbers[place]}")

        with pytest.raises(SourceUnavailable):
            chain.take(meanwhile=kill)
        assert content(chain.take())["m"].total() == 1000


@contextmanager
def repeating(server: MariadbServer, *statements: str) -> Iterator[threading.Event]:
    """A client that runs statements over and over without a pause; gives what is set once it is at it."""
    over, begun = threading.Event(), threading.Event()

    def work() -> None:
        with server.connect("crm") as connection, connection.cursor() as cursor:
            cursor.execute("SET lock_wait_timeout = 1")
            while not over.is_set():
                for statement in statements:
                    with suppress(pymysql.Error):
                        cursor.execute(statement)
                begun.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert begun.wait(60)
        yield begun
    finally:
        over.set()
        thread.join()


def test_migrations_without_a_pause(server: MariadbServer, tmp_path: Path, workers: ProcessWorkers) -> None:
    """What gets in between two of them is exact."""
    chain = Witnessed(server.server("crm"), tmp_path, workers, Settings())
    with repeating(server, "ALTER TABLE b ADD COLUMN x INT", "ALTER TABLE b DROP COLUMN x", "TRUNCATE b"):
        chain.take().check()


def test_a_migration_that_comes_before_every_try_to_lock_its_tables(
    server: MariadbServer, tmp_path: Path, workers: ProcessWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, names = joining.read_tables, ["b", "c"]

    def then_renamed(*values: Any) -> Any:
        found = real(*values)
        rows_of(server, "crm", f"RENAME TABLE {names[0]} TO {names[1]}")
        names.reverse()
        return found

    monkeypatch.setattr(joining, "read_tables", then_renamed)
    with pytest.raises(SourceChanged, match="were changed while") as error:
        chain_of(server, tmp_path, workers, lock_seconds=0.5).take()
    assert "migration" in error.value.hint


def test_scratch_tables_of_an_application_do_not_matter(
    server: MariadbServer, tmp_path: Path, workers: ProcessWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is made after the snapshot's moment is no part of it, and may go before its end."""
    with repeating(server, "CREATE TABLE scratch (id INT)", "DROP TABLE scratch"):
        Witnessed(server.server("crm"), tmp_path / "a", workers, Settings()).take().check()
    rows_of(server, "crm", "DROP TABLE IF EXISTS scratch")

    real = engine_module.MysqlSnapshot

    def late(*values: Any, **more: Any) -> Any:
        with server.connect("crm") as connection:
            run(
                connection,
                "CREATE TABLE scratch (id INT)",
                "CREATE TRIGGER t BEFORE INSERT ON scratch FOR EACH ROW SET NEW.id = 1",
            )
        return real(*values, **more)

    monkeypatch.setattr(engine_module, "MysqlSnapshot", late)
    taken = chain_of(server, tmp_path / "b", workers).take(
        meanwhile=lambda: rows_of(server, "crm", "DROP TABLE scratch") and None
    )
    assert [table.name for table in taken.image.tables] == ["a", "b", "m"]
    assert taken.info.schema["objects"] == {"table": 3}


def test_no_query_and_no_open_transaction_holds_a_snapshot_back(
    server: MariadbServer, tmp_path: Path, workers: ProcessWorkers
) -> None:
    """With the documented rights: a query that runs, and one that has changed rows without committing."""
    with server.connect("crm") as slow, server.connect("crm", autocommit=False) as idle:
        run(idle, "INSERT INTO b VALUES (5000, 'not committed')")
        query = threading.Thread(target=lambda: suppress_killed(slow, "SELECT SLEEP(600) FROM a LIMIT 1"))
        query.start()
        try:
            seen = Witnessed(server.server("crm"), tmp_path, workers, Settings()).take()
        finally:
            rows_of(server, "", f"KILL {slow.thread_id()}")
            query.join()
        idle.rollback()
    seen.check()
    assert seen.rows["b"].total() == 1000


def suppress_killed(connection: Any, sql: str) -> None:
    with suppress(pymysql.Error):
        run(connection, sql)


class Resting(SystemClock):
    """Instead of sleeping it lets writers work, and remembers for how long it should have slept."""

    def __init__(self, server: MariadbServer) -> None:
        self.server = server
        self.rests: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.rests.append(seconds)
        with self.server.connect("crm") as writer:
            run(writer, "SET lock_wait_timeout = 1", *["REPLACE INTO a VALUES (1, 'written')"] * 20)


def test_writers_go_on_while_tables_cannot_be_locked(
    server: MariadbServer, tmp_path: Path, workers: ProcessWorkers
) -> None:
    """Without RELOAD, behind a transaction that stays open: they wait a second, then have four for themselves."""
    run_as_root = ("CREATE OR REPLACE USER low@localhost IDENTIFIED BY 'x'", "GRANT ALL ON crm.* TO low@localhost")
    with server.connect() as root:
        run(root, *run_as_root)
    clock = Resting(server)
    source = MysqlSource(replace(server.server("crm"), user="low", password=Secret("x")), Settings(lock_seconds=1.5))
    try:
        with server.connect("crm", autocommit=False) as idle:
            run(idle, "INSERT INTO b VALUES (5000, 'not committed')")
            with (
                pytest.raises(SourceLocked) as error,
                source.open_snapshot(workers, None, tmp_path, clock, lambda _: None),
            ):
                pass
            idle.rollback()
    finally:
        rows_of(server, "", "DROP USER low@localhost")
    assert clock.rests
    assert min(clock.rests) >= 4
    assert "RELOAD" in error.value.hint
    assert "transactions" in error.value.why


def test_definitions_are_locked_or_must_not_have_changed(
    server: MariadbServer, tmp_path: Path, workers: ProcessWorkers
) -> None:
    statements = (
        "ALTER TABLE a COMMENT = 'other'",
        "CREATE TRIGGER late BEFORE INSERT ON a FOR EACH ROW SET @a = 1",
        "DROP TRIGGER early",
        "ALTER TABLE m COMMENT = 'other'",
    )
    rows_of(server, "crm", "CREATE TRIGGER early BEFORE INSERT ON b FOR EACH ROW SET @a = 1")
    rows_of(server, "crm", "CREATE OR REPLACE VIEW v AS SELECT 1 AS x")

    def alter() -> None:
        with server.connect("crm") as connection:
            run(connection, "SET lock_wait_timeout = 0")
            for text in statements:
                with pytest.raises(pymysql.Error, match="Lock wait timeout"):
                    run(connection, text)

    try:
        chain = chain_of(server, tmp_path, workers)
        assert chain.take(meanwhile=alter).info.schema["objects"] == {"table": 3, "view": 1, "trigger": 1}
        with pytest.raises(SourceChanged, match="definitions") as error:
            chain.take(meanwhile=lambda: rows_of(server, "crm", "CREATE OR REPLACE VIEW v AS SELECT 2 AS x") and None)
        assert error.value.why == "view v"
    finally:
        workers.each(reader.leave)  # a run's processes would have ended
        rows_of(server, "crm", "DROP TRIGGER early")
        rows_of(server, "crm", "DROP VIEW v")
