"""Snapshots of SQLite databases that other processes write to all the time are whole."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from itertools import cycle
from pathlib import Path
from random import Random

import apsw
import pytest

from crmbackup.core.errors import SourceLocked
from crmbackup.operations.workers import ProcessWorkers
from tests.support_sqlite import (
    Chain,
    connect,
    drop_side_files,
    error_of,
    execute,
    image_of,
    public_directory,
    running,
    without_rights,
)

TAKES = int(os.environ.get("CRMBACKUP_SQLITE_TAKES", "6"))
ACCOUNTS, STAMPS, START = 40, 60, 1000
CHECKPOINTS = ("PASSIVE", "FULL", "RESTART", "TRUNCATE")


def make(path: Path, mode: str, page_size: int = 1024) -> None:
    """A ledger whose sum is constant, a log without gaps, and stamps on as many pages that always change together."""
    execute(
        path,
        f"PRAGMA page_size = {page_size}",
        f"PRAGMA journal_mode = {mode}",
        "CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)",
        "CREATE TABLE log(n INTEGER PRIMARY KEY, source, target, amount, note TEXT)",
        "CREATE TABLE stamps(id INTEGER PRIMARY KEY, n INTEGER, filler BLOB)",
        "CREATE INDEX by_note ON log(note)",
        f"WITH s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < {ACCOUNTS})"
        f" INSERT INTO accounts SELECT i, {START} FROM s",
        f"WITH s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < {STAMPS})"
        f" INSERT INTO stamps SELECT i, 0, randomblob({page_size}) FROM s",
        "INSERT INTO log VALUES(0, NULL, NULL, 0, 'begin')",
    )


def transfer(db: apsw.Connection, random: Random) -> None:
    """One part of a transaction that keeps all the promises."""
    source, target = random.sample(range(1, ACCOUNTS + 1), 2)
    amount = random.randint(1, 50)
    db.execute("UPDATE accounts SET balance = balance - ? WHERE id = ?", (amount, source))
    db.execute("UPDATE accounts SET balance = balance + ? WHERE id = ?", (amount, target))
    note = "x" * random.randint(0, 3000)
    db.execute("INSERT INTO log SELECT max(n) + 1, ?, ?, ?, ? FROM log", (source, target, amount, note))
    db.execute("UPDATE stamps SET n = n + 1")


def write(path: Path, seed: int) -> None:
    """Transactions of all kinds and sizes until killed."""
    random = Random(seed)
    with closing(connect(path)) as db:
        db.execute(f"PRAGMA wal_autocheckpoint = {random.choice((1, 20, 1000))}")
        db.execute("PRAGMA synchronous = OFF")
        db.execute("PRAGMA cache_size = 20")  # large transactions spill into the file or log before they commit
        while True:
            with suppress(apsw.BusyError):
                db.execute("BEGIN IMMEDIATE")
                for _ in range(random.choice((1, 1, 1, 3, 30))):
                    db.execute("SAVEPOINT part")
                    transfer(db, random)
                    if random.random() < 0.2:
                        db.execute("ROLLBACK TO part")
                    db.execute("RELEASE part")
                if random.random() < 0.1:
                    db.execute("DELETE FROM log WHERE n < (SELECT max(n) - 300 FROM log)")
                db.execute("ROLLBACK" if random.random() < 0.1 else "COMMIT")
            if not db.get_autocommit():
                with suppress(apsw.Error):
                    db.execute("ROLLBACK")
            if random.random() < 0.05:
                with suppress(apsw.BusyError, apsw.LockedError):
                    db.execute(f"PRAGMA wal_checkpoint({random.choice(CHECKPOINTS)})").fetchall()


def hurry(path: Path, rest: float = 0.0) -> None:
    """The smallest transactions, with `rest` seconds between them."""
    with closing(connect(path)) as db:
        db.execute("PRAGMA synchronous = OFF")
        random = Random(5)
        while True:
            with suppress(apsw.BusyError):
                db.execute("BEGIN IMMEDIATE")
                transfer(db, random)
                db.execute("DELETE FROM log WHERE n < (SELECT max(n) - 1000 FROM log)")
                db.execute("COMMIT")
            time.sleep(rest)


def check_promises(path: Path) -> int:
    """What every transaction promises holds in a restored image; gives its last number."""
    with closing(connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("SELECT sum(balance), count(*) FROM accounts").fetchall() == [(ACCOUNTS * START, ACCOUNTS)]
        ((first, last, count),) = db.execute("SELECT min(n), max(n), count(*) FROM log").fetchall()
        assert count == last - first + 1
        assert db.execute("SELECT DISTINCT n FROM stamps").fetchall() == [(last,)]
    drop_side_files(path)
    return int(last)


def last_number(path: Path) -> int:
    with closing(connect(path)) as db:
        return int(str(db.execute("SELECT max(n) FROM log").fetchall()[0][0]))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Writers must be there before worker processes are."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize(("mode", "page_size"), [("wal", 512), ("wal", 4096), ("delete", 1024), ("persist", 4096)])
def test_snapshots_between_many_writers_are_whole(tmp_path: Path, stack: ExitStack, mode: str, page_size: int) -> None:
    source = tmp_path / "crm.db"
    make(source, mode, page_size)
    for seed in range(3):
        stack.enter_context(running(write, source, seed))
    wait_for(lambda: last_number(source) > 20)
    workers = stack.enter_context(ProcessWorkers(3))
    chain = Chain(source, tmp_path, workers, busy_seconds=30)
    numbers = []
    for number in range(TAKES):
        taken = chain.take(full=number % 4 == 3)
        chain.prove(taken)
        numbers.append(check_promises(chain.restore(taken)))
        wait_for(lambda: last_number(source) > numbers[-1])
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_writer_without_a_pause_does_not_starve_us(tmp_path: Path, stack: ExitStack, mode: str) -> None:
    source = tmp_path / "crm.db"
    make(source, mode)
    stack.enter_context(running(hurry, source))
    wait_for(lambda: last_number(source) > 100)
    workers = stack.enter_context(ProcessWorkers(4))
    chain = Chain(source, tmp_path, workers, busy_seconds=10)
    for _ in range(TAKES):
        taken = chain.take()
        chain.prove(taken)
        check_promises(chain.restore(taken))


def hold(path: Path, statement: str, ready: Path) -> None:
    """Begin, write, and stay in the transaction."""
    with closing(connect(path)) as db:
        db.execute("PRAGMA cache_size = 5")
        db.execute(statement)
        if "EXCLUSIVE" not in statement:
            for _ in range(50):
                transfer(db, Random(1))
        ready.touch()
        signal.pause()


def test_a_long_write_transaction_in_wal_mode_does_not_block_us(tmp_path: Path, stack: ExitStack) -> None:
    source = tmp_path / "crm.db"
    make(source, "wal")
    stack.enter_context(running(hold, source, "BEGIN IMMEDIATE", tmp_path / "ready"))
    wait_for((tmp_path / "ready").exists)
    workers = stack.enter_context(ProcessWorkers(2))
    chain = Chain(source, tmp_path, workers, busy_seconds=0.1)
    taken = chain.take()
    chain.prove(taken, image_of(source))
    assert check_promises(chain.restore(taken)) == 0


def test_who_holds_a_rollback_database_exclusively_locks_us_out(tmp_path: Path, stack: ExitStack) -> None:
    source = tmp_path / "crm.db"
    make(source, "delete")
    stack.enter_context(running(hold, source, "BEGIN EXCLUSIVE", tmp_path / "ready"))
    wait_for((tmp_path / "ready").exists)
    workers = stack.enter_context(ProcessWorkers(2))
    chain = Chain(source, tmp_path, workers, busy_seconds=0.3)
    began = time.monotonic()
    error = error_of(chain.take)
    assert isinstance(error, SourceLocked)
    assert "busy_timeout" in error.hint
    assert 0.2 < time.monotonic() - began < 5


def test_a_reserved_lock_in_rollback_mode_does_not_lock_us_out(tmp_path: Path, stack: ExitStack) -> None:
    source = tmp_path / "crm.db"
    make(source, "delete")
    before = image_of(source)
    stack.enter_context(running(reserve, source, tmp_path / "ready"))
    wait_for((tmp_path / "ready").exists)
    workers = stack.enter_context(ProcessWorkers(2))
    chain = Chain(source, tmp_path, workers, busy_seconds=0.1)
    chain.prove(chain.take(), before)


def reserve(path: Path, ready: Path) -> None:
    with closing(connect(path)) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE accounts SET balance = balance + 1 WHERE id = 1")
        ready.touch()
        signal.pause()


@pytest.mark.parametrize("full_before", [False, True])
def test_pages_come_from_the_log_and_the_file_while_it_is_checkpointed(
    tmp_path: Path, stack: ExitStack, full_before: bool
) -> None:
    """Frames above and below what is backfilled, and a checkpoint that goes on while the snapshot is open."""
    source = tmp_path / "crm.db"
    make(source, "wal")
    execute(source, "PRAGMA wal_autocheckpoint = 0", "PRAGMA wal_checkpoint(TRUNCATE)")
    workers = stack.enter_context(ProcessWorkers(2))
    chain = Chain(source, tmp_path, workers)
    if full_before:
        chain.take()
    with closing(connect(source)) as reader, closing(connect(source)) as db:
        db.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
        commit(db, 1)
        reader.execute("BEGIN; SELECT count(*) FROM log").fetchall()
        commit(db, 2)
        # The reader keeps this checkpoint from going to the end.
        busy, frames, moved = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()[0]
        assert 0 < int(str(moved)) < int(str(frames))
        assert not busy
    expected = image_of(source)

    def meanwhile() -> None:
        with running(write_more, source) as process:
            process.join(30)
            assert process.exitcode == 0

    taken = chain.take(meanwhile=meanwhile)
    chain.prove(taken, expected)
    assert image_of(source) != expected
    chain.prove(chain.take(), image_of(source))


def commit(db: apsw.Connection, seed: int) -> None:
    db.execute("BEGIN")
    for _ in range(10):
        transfer(db, Random(seed))
    db.execute("COMMIT")


def write_more(path: Path) -> None:
    with closing(connect(path)) as db:
        db.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
        for number in range(5):
            commit(db, number)
            db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    os._exit(0)


def test_a_database_that_becomes_a_wal_database_while_we_come(tmp_path: Path, stack: ExitStack) -> None:
    source = tmp_path / "crm.db"
    make(source, "delete")
    stack.enter_context(running(change_modes, source))
    workers = stack.enter_context(ProcessWorkers(3))
    chain = Chain(source, tmp_path, workers, busy_seconds=20)
    seen = set()
    for _ in range(TAKES):
        taken = chain.take()
        seen.add(taken.info.properties["journal_mode"])
        check_promises(chain.restore(taken))
    assert seen <= {"wal", "delete"}


def change_modes(path: Path) -> None:
    random = Random(3)
    with closing(connect(path)) as db:
        for mode in cycle(("wal", "delete")):
            with suppress(apsw.BusyError, apsw.LockedError, apsw.SQLError):
                db.execute(f"PRAGMA journal_mode = {mode}").fetchall()
            with suppress(apsw.BusyError):
                db.execute("BEGIN IMMEDIATE")
                transfer(db, random)
                db.execute("COMMIT")
            if not db.get_autocommit():
                with suppress(apsw.Error):
                    db.execute("ROLLBACK")


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_busy_writers_of_a_database_that_we_may_only_read(tmp_path: Path, stack: ExitStack, mode: str) -> None:
    """They cannot be held off, only outlasted: between two commits all workers must come in."""
    directory = stack.enter_context(public_directory())
    source = directory / "crm.db"
    make(source, mode)
    with ProcessWorkers(1) as workers:
        chain = Chain(source, tmp_path, workers)
        chain.prove(chain.take())  # loads every module
    for side in directory.glob("crm.db*"):
        side.chmod(0o644)
    stack.enter_context(running(hurry, source, 0.02))
    wait_for(lambda: last_number(source) > 50)
    for _ in range(TAKES // 2):
        shutil.rmtree(directory / "scratch")
        (directory / "scratch").mkdir()
        (directory / "scratch").chmod(0o777)
        outcome, detail = without_rights(source, workers=4, busy_seconds=20)
        assert (outcome, detail) == ("ok", str(ACCOUNTS))
