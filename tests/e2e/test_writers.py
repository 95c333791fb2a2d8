"""Snapshots of a database that others write to all the time."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.e2e.product import Host, content, stopped_at_end, value, write_policy

pytestmark = pytest.mark.e2e

#: Moves money between accounts, each time in one transaction that also writes it down. Ends with its standard input.
WRITER = """
import random, select, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)
connection.execute("PRAGMA synchronous = OFF")
dice = random.Random(sys.argv[2])
while not select.select([sys.stdin], [], [], 0)[0]:
    amount, here, there = dice.randrange(100), dice.randrange(200), dice.randrange(200)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE account SET money = money - ? WHERE id = ?", (amount, here))
    connection.execute("INSERT INTO transfer VALUES (NULL, ?, ?, ?, ?)", (here, there, amount, "x" * 200))
    connection.execute("UPDATE account SET money = money + ? WHERE id = ?", (amount, there))
    connection.execute("UPDATE total SET transfers = transfers + 1")
    connection.execute("COMMIT")
"""
SCHEMA = """
CREATE TABLE account (id INTEGER PRIMARY KEY, money INTEGER NOT NULL);
CREATE TABLE transfer (id INTEGER PRIMARY KEY, here, there, amount, note TEXT);
CREATE TABLE total (transfers INTEGER NOT NULL);
CREATE TABLE ballast (id INTEGER PRIMARY KEY, content BLOB);
INSERT INTO total VALUES (0);
"""
ACCOUNTS, MONEY = 200, 1000


def bank(path: Path, journal: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"PRAGMA journal_mode = {journal}")
        connection.executescript(SCHEMA)
        connection.executemany("INSERT INTO account VALUES (?, ?)", [(each, MONEY) for each in range(ACCOUNTS)])
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) "
            "INSERT INTO ballast SELECT i, randomblob(4000) FROM n"
        )


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_two_writers_during_every_snapshot(host: Host, tmp_path: Path, journal: str) -> None:
    database, identity = tmp_path / "bank.db", tmp_path / "identity.txt"
    bank(database, journal)
    inside = [f"identity: {{file: {identity}}}"]
    policy = write_policy(host.cwd / "bank.yaml", database, str(tmp_path / "repository"), inside=inside)
    host.run("init", policy, "--no-passphrase", "--identity-out", identity)
    with ExitStack() as stack:
        writers = []
        for seed in ("1", "2"):
            argv = [sys.executable, "-c", WRITER, str(database), seed]
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            writers.append(stack.enter_context(stopped_at_end(process)))
        for _ in range(3):
            seen = value(database, "SELECT transfers FROM total")
            while value(database, "SELECT transfers FROM total") == seen:
                pass
            host.run("backup", policy)
        for process in writers:
            assert process.poll() is None, process.stderr.read()
            process.communicate("\n", timeout=60)

    snapshots = host.snapshots(policy)
    assert [each["kind"] for each in snapshots] == ["full", "incremental", "incremental"]
    counts = []
    for number, snapshot in enumerate(snapshots):
        target = host.cwd / f"{number}.db"
        host.run("restore", policy, "--to", target, "--snapshot", snapshot["snapshot_id"])
        host.run("drill", policy, "--snapshot", snapshot["snapshot_id"])
        found = content(target)
        assert sum(money for _, money in found["account"]) == ACCOUNTS * MONEY
        assert found["total"] == [(len(found["transfer"]),)]
        counts.append(len(found["transfer"]))
    assert counts == sorted(set(counts)), "each snapshot is later than the one before"
