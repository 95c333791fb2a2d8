"""When the binary log of MariaDB says what changed, when it is not trusted, and that what is then taken is right."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from crmbackup.engines.mysql import binlog
from crmbackup.engines.mysql.binlog import Event
from crmbackup.engines.mysql.connection import Connection
from crmbackup.engines.mysql.engine import Settings
from crmbackup.operations.workers import ProcessWorkers
from tests.mariadb import MariadbServer, mariadb, running_mariadb
from tests.support_mariadb import Seen, Witnessed, run

__all__ = ["mariadb"]

SETUP = (
    "CREATE TABLE a(id INT PRIMARY KEY, v VARCHAR(100))",
    "CREATE TABLE b(id CHAR(36) PRIMARY KEY, v VARCHAR(100))",
    "CREATE TABLE c(id INT, v VARCHAR(100))",
    "INSERT INTO a SELECT seq, repeat('a', 80) FROM seq_1_to_400",
    "INSERT INTO b SELECT insert(md5(seq), 9, 0, '-'), repeat('b', 80) FROM seq_1_to_400",
    "INSERT INTO c SELECT seq, repeat('c', 80) FROM seq_1_to_400",
)
CHANGE = "UPDATE a SET v = concat(v, 'x') WHERE id = 200"


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessWorkers]:
    with ProcessWorkers(2) as found:
        yield found


class Case:
    """A chain over a database, and a session that works in it."""

    def __init__(self, server: MariadbServer, scratch: Path, workers: ProcessWorkers) -> None:
        self.server = server
        self.chain = Witnessed(server.create_database("crm"), scratch, workers, Settings(piece=1024))
        with self.session() as session:
            run(session, *SETUP, "FLUSH BINARY LOGS")
            # A file of the log that is no older than the snapshot is not trusted: wait for the clock's next second.
        self.next_second()
        self.take(full=True)

    def session(self) -> Connection:
        return self.server.connect("crm")

    def next_second(self) -> None:
        """Until the server's clock shows another one."""
        with self.session() as session:
            now = run(session, "SELECT UNIX_TIMESTAMP()")
            while run(session, "SELECT UNIX_TIMESTAMP()") == now:
                time.sleep(0.02)

    def do(self, *statements: str) -> None:
        with self.session() as session:
            run(session, *statements)

    def take(self, *, full: bool = False) -> Seen:
        """Exact, whatever was read for it."""
        seen = self.chain.take(full=full)
        seen.check()
        return seen

    def carried(self) -> set[str]:
        """Tables of which a new snapshot reads nothing."""
        return {table.name for table in self.take().taken.image.tables if table.carried}


@pytest.fixture
def case(mariadb: MariadbServer, workers: ProcessWorkers, tmp_path: Path) -> Case:
    return Case(mariadb, tmp_path, workers)


def test_only_what_changed_is_read(case: Case) -> None:
    assert case.carried() == {"a", "b", "c"}
    case.do(
        CHANGE,
        "FLUSH BINARY LOGS",
        "UPDATE b SET v = 'y' WHERE id = insert(md5(7), 9, 0, '-')",
        "CREATE DATABASE IF NOT EXISTS elsewhere",
    )
    seen = case.take()
    assert case.chain.why() == ""
    assert seen.taken.table("c").carried
    # A chunk of each table, and perhaps one that grew: of some 35 that each has.
    assert seen.taken.read_bytes < 12 * 1024


@pytest.mark.parametrize("missing", [False, True])
def test_ends_that_are_told_for_transactions_only_are_no_gap_but_a_missing_event_is(
    case: Case, monkeypatch: pytest.MonkeyPatch, missing: bool
) -> None:
    """MariaDB tells the ends of events within transactions no more, from 11.7 on."""
    real = binlog.events

    def events(packets: Iterator[bytes]) -> Iterator[Event]:
        for event in real(packets):
            inside = event.kind == binlog.TABLE_MAP or event.kind in binlog.ROWS
            if not (missing and event.kind in binlog.ROWS):
                yield event._replace(end=0) if inside else event

    monkeypatch.setattr(binlog, "events", events)
    case.do(CHANGE)
    assert case.carried() == (set() if missing else {"b", "c"})
    assert ("the binary log has a gap" in case.chain.why()) == missing


#: What each statement makes be read of the tables that there are then.
STATEMENTS = {
    "INSERT INTO c VALUES (1, 'no key')": {"c"},
    "CREATE VIEW w AS SELECT 1": set(),
    "CREATE TEMPORARY TABLE t SELECT * FROM a": set(),
    "OPTIMIZE TABLE a": set(),
    "SET STATEMENT binlog_format = STATEMENT FOR UPDATE b SET v = 's' LIMIT 1": {"a", "b", "c"},
    "ALTER TABLE a ADD COLUMN w INT DEFAULT 3": {"a"},
    "TRUNCATE b": {"b"},
    "RENAME TABLE a TO x, b TO a, x TO b": {"a", "b"},
    "CREATE TABLE d(parent INT, FOREIGN KEY (parent) REFERENCES b(id) ON DELETE CASCADE)": {"b", "d"},
}


def test_what_a_statement_may_have_changed_is_read_as_a_whole(case: Case) -> None:
    for statement, read in STATEMENTS.items():
        case.do(statement)
        tables = {table.name: table for table in case.take().taken.image.tables}
        assert {name for name, table in tables.items() if not table.carried} == read, statement
        assert bool(case.chain.why()) == bool(read)


def test_rows_that_foreign_keys_change_are_read_though_no_log_has_them(case: Case) -> None:
    case.do(
        "CREATE TABLE child(id INT PRIMARY KEY, v VARCHAR(100), parent INT,"
        " FOREIGN KEY (parent) REFERENCES a(id) ON DELETE CASCADE ON UPDATE CASCADE)",
        "CREATE TABLE grandchild(id INT PRIMARY KEY, parent INT, FOREIGN KEY (parent) REFERENCES child(id) ON DELETE SET NULL)",
        "INSERT INTO child SELECT id, v, id FROM a",
        "INSERT INTO grandchild SELECT id, id FROM a",
    )
    case.take()
    case.do(CHANGE)
    assert {"child", "grandchild"} <= case.carried()
    case.do("UPDATE a SET id = 9000 WHERE id = 5")
    assert "child" not in case.carried()
    case.do("DELETE FROM a WHERE id = 17")
    assert case.carried() == {"b", "c"}
    assert "foreign keys change it" in case.chain.why()


def test_rows_that_foreign_keys_change_with_a_key_of_beginnings_are_read(case: Case) -> None:
    case.do(
        "CREATE TABLE parent(id INT, name VARCHAR(100) NOT NULL, code INT NOT NULL UNIQUE, PRIMARY KEY (id, name(10)))",
        "CREATE TABLE child(id INT PRIMARY KEY, v VARCHAR(100), parent INT,"
        " FOREIGN KEY (parent) REFERENCES parent(id) ON UPDATE CASCADE)",
        "INSERT INTO parent SELECT id, v, id FROM a",
        "INSERT INTO child SELECT id, v, id FROM a",
    )
    case.take()
    case.do("UPDATE parent SET id = 9000 WHERE id = 5", "UPDATE child SET v = 'changed' WHERE id = 300")
    case.take()
    assert "foreign keys change it" in case.chain.why()


@pytest.mark.parametrize("first", ["other.first", "crm.a"])
def test_rows_that_foreign_keys_change_through_another_database_are_read(case: Case, first: str) -> None:
    case.do(
        "CREATE DATABASE other",
        "CREATE TABLE other.first(id INT PRIMARY KEY)",
        f"CREATE TABLE other.second(id INT PRIMARY KEY, FOREIGN KEY (id) REFERENCES {first}(id) ON DELETE CASCADE)",
        "CREATE TABLE child(id INT PRIMARY KEY, v VARCHAR(100), parent INT,"
        " FOREIGN KEY (parent) REFERENCES other.second(id) ON DELETE CASCADE)",
        "INSERT INTO other.first SELECT id FROM a",
        "INSERT INTO other.second SELECT id FROM a",
        "INSERT INTO child SELECT id, v, id FROM a",
    )
    try:
        case.take()
        # A write that the log has, elsewhere in the table.
        case.do(f"DELETE FROM {first} WHERE id = 17", "UPDATE child SET v = 'changed' WHERE id = 300")
        case.take()
        assert "foreign keys change it" in case.chain.why()
    finally:
        case.do("SET foreign_key_checks = 0", "DROP DATABASE other")


def test_a_transaction_counts_when_it_commits(case: Case) -> None:
    with case.session() as session:
        run(session, "BEGIN", CHANGE)
        assert case.carried() == {"a", "b", "c"}
        run(session, "COMMIT")
    seen = case.take()
    assert not seen.taken.table("a").carried
    assert case.chain.why() == ""


def test_a_prepared_transaction_counts_when_it_commits(case: Case) -> None:
    with case.session() as session:
        run(session, "XA START 'x'", CHANGE, "XA END 'x'", "XA PREPARE 'x'")
        case.take()
        run(session, "XA COMMIT 'x'")
    case.take()
    assert "XA transaction" in case.chain.why()


def test_writes_that_were_kept_out_of_the_log_are_noticed_where_nothing_else_was_written(case: Case) -> None:
    case.next_second()
    case.do("SET sql_log_bin = 0", CHANGE)
    case.take()
    assert "a: it was written to, and the binary log does not say what" in case.chain.why()


def test_a_log_that_was_purged_or_started_over_is_not_used(case: Case) -> None:
    with case.session() as session:
        run(session, CHANGE, "FLUSH BINARY LOGS")
        [(file, *_)] = run(session, "SHOW MASTER STATUS")
        # What somebody still reads, such as the last snapshot's connection that is just ending, is not purged.
        while len(run(session, f"PURGE BINARY LOGS TO '{file}'", "SHOW BINARY LOGS")) > 1:
            time.sleep(0.02)
    case.take()
    assert "is gone" in case.chain.why()
    case.do(CHANGE, "RESET MASTER", CHANGE)
    case.take()
    assert "all tables are read" in case.chain.why()


def test_a_server_that_was_restarted_or_killed_or_became_another_is_not_trusted(
    workers: ProcessWorkers, tmp_path: Path
) -> None:
    with running_mariadb() as server:
        case = Case(server, tmp_path, workers)
        case.do(CHANGE)
        server.crash()
        server.start()
        case.next_second()
        case.take()
        assert "crashed or was restarted" in case.chain.why()
        case.do(CHANGE)
        server.restart()
        case.next_second()
        case.take()
        assert "restarted" in case.chain.why()
        case.do("SET GLOBAL server_id = 77", CHANGE)
        case.take()
        assert "another server" in case.chain.why()


def test_a_user_who_may_not_read_the_log_still_gets_incrementals(case: Case) -> None:
    case.do("CREATE OR REPLACE USER reader@localhost", "GRANT ALL ON crm.* TO reader@localhost")
    server = replace(case.server.server("crm"), user="reader")
    chain = Witnessed(server, case.chain.scratch / "reader", case.chain.workers, Settings(piece=1024))
    chain.take(full=True).check()
    case.do(CHANGE)
    seen = chain.take()
    seen.check()
    assert "no binary log" in chain.why()
    assert [warned.code for warned in seen.taken.warnings] == ["locks-of-tables"]
    assert seen.taken.new < 4
