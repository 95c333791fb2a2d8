"""Clients that write to a database while it is backed up, and what they saw of that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pymysql

from scripts import schema_rows_mysql as generated
from scripts.mysql_life import Life
from tests.mariadb import MariadbServer
from tests.support_mysql_crm import documented_user

_SETUP = (
    "CREATE TABLE purses (id int PRIMARY KEY, amount bigint NOT NULL, note varchar(100))",
    """CREATE TABLE visits (id char(36) CHARACTER SET ascii PRIMARY KEY, purse int, at timestamp(6),
        FOREIGN KEY (purse) REFERENCES purses (id))""",
    "CREATE TABLE log (id bigint AUTO_INCREMENT PRIMARY KEY, purse int, what text)",
    # The number of the last big transaction stands in all of its rows, or in none.
    "CREATE TABLE big (id int PRIMARY KEY, number int NOT NULL, pad char(60) NOT NULL)",
    "INSERT INTO purses SELECT seq, 1000, repeat(md5(seq), 3) FROM seq_1_to_100000",
    "INSERT INTO visits SELECT uuid(), seq, now() FROM seq_1_to_100000",
    "INSERT INTO big SELECT seq, 0, md5(seq) FROM seq_1_to_20000",
)
_ASSERTIONS = (
    '{name: sum, sql: "SELECT sum(amount) FROM purses", expect: 100000000}',
    '{name: visits, sql: "SELECT count(*) FROM visits", expect: 100000}',
    '{name: big, sql: "SELECT count(DISTINCT number) FROM big", expect: 1}',
    '{name: log, sql: "SELECT count(*) FROM log l LEFT JOIN purses p ON p.id = l.purse WHERE p.id IS NULL", expect: 0}',
)
_BIG_EVERY = 5.0
_RETRIED = {1205, 1213}


@dataclass
class Writer:
    """What one client did. waits: how long its slowest statement took in seconds, by what went on meanwhile."""

    commits: int = 0
    retries: int = 0
    waits: dict[str, float] = field(default_factory=dict)


class Writers:
    """So many clients with transactions of a few statements, one of them with a big one now and then, until they are told
    to stop.
    """

    def __init__(self, server: MariadbServer, clients: int) -> None:
        self._server = server
        self._over = threading.Event()
        self._errors: list[Exception] = []
        self.phase = "alone"
        self.writers = [Writer() for _ in range(clients)]
        self.big = Writer()
        small = [self._thread(self._small, number) for number in range(clients)]
        self._threads = [*small, self._thread(self._large, clients)]

    def _thread(self, work: Callable[[int], None], number: int) -> threading.Thread:
        def guarded() -> None:
            try:
                work(number)
            except Exception as error:  # noqa: BLE001  (it is raised where the clients are waited for)
                self._errors.append(error)

        return threading.Thread(target=guarded)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    @property
    def commits(self) -> int:
        return sum(writer.commits for writer in self.writers)

    def slowest(self, phase: str) -> float:
        """Of the small transactions' statements; in seconds."""
        return max(writer.waits.get(phase, 0.0) for writer in self.writers)

    def _run(self, writer: Writer, cursor: pymysql.cursors.Cursor, sql: str) -> int:
        phase, began = self.phase, time.monotonic()
        changed = cursor.execute(sql)
        waited = time.monotonic() - began
        if waited > writer.waits.get(phase, 0.0):
            writer.waits[phase] = waited
        return int(changed)

    def _small(self, number: int) -> None:
        writer, step, clients = self.writers[number], number, len(self.writers)
        with self._server.connect("busy", autocommit=False) as connection, connection.cursor() as cursor:
            while not self._over.is_set():
                step += clients
                one, two = 1 + step * 7919 % 100000, 1 + step * 104729 % 100000
                gone = f"DELETE FROM visits WHERE id > '{step * 40503 % 65536:04x}' ORDER BY id LIMIT 1"
                try:
                    self._run(writer, cursor, f"UPDATE purses SET amount = amount - {step % 9} WHERE id = {one}")
                    self._run(writer, cursor, f"UPDATE purses SET amount = amount + {step % 9} WHERE id = {two}")
                    if self._run(writer, cursor, gone):
                        self._run(writer, cursor, f"INSERT INTO visits VALUES (uuid(), {one}, now(6))")
                    self._run(writer, cursor, f"INSERT INTO log (purse, what) VALUES ({one}, 'moved to {two}')")
                    if step % 7 == 0:
                        self._run(writer, cursor, "SAVEPOINT s")
                        self._run(writer, cursor, f"UPDATE purses SET amount = 0 WHERE id = {two}")
                        self._run(writer, cursor, "ROLLBACK TO s")
                    self._run(writer, cursor, "ROLLBACK" if step % 11 == 0 else "COMMIT")
                    writer.commits += step % 11 != 0
                except pymysql.OperationalError as error:
                    if error.args[0] not in _RETRIED:
                        raise
                    connection.rollback()
                    writer.retries += 1

    def _large(self, number: int) -> None:
        with self._server.connect("busy", autocommit=False) as connection, connection.cursor() as cursor:
            while not self._over.wait(_BIG_EVERY if self.big.commits else 0):
                self._run(self.big, cursor, "UPDATE big SET number = number + 1, pad = md5(number * 7 + id)")
                self._run(self.big, cursor, "COMMIT")
                self.big.commits += 1


def try_writers(server: MariadbServer, clients: int, seconds: float, work: Path, *, log: bool) -> str:
    """One full and five incremental snapshots under writers, and a drill of each. Raises SystemExit."""
    server.create_database("busy")
    documented_user(server, "busy")
    with server.connect("busy") as connection:
        for statement in _SETUP:
            generated.execute(connection, statement)
    life = Life(server, "busy", work, log=log, more=f"drill: {{assertions: [{', '.join(_ASSERTIONS)}]}}\n")
    during = []
    with Writers(server, clients) as writers:
        for kind in ("full", *["incremental"] * 5):
            writers.phase = "alone"
            time.sleep(seconds)
            writers.phase, before, began = "snapshot", writers.commits, time.monotonic()
            life.backup(kind)
            during.append(f"{writers.commits - before} in {time.monotonic() - began:.1f} s")
            if writers.commits == before:
                raise SystemExit(f"no writer could commit while {kind} {len(during)} was taken")
        writers.phase = "alone"
    kinds = life.drills()
    server.drop_database("busy")
    retries = sum(writer.retries for writer in writers.writers)
    return (
        f"{life.way}: {writers.commits} transactions ({', '.join(during)} of a snapshot), {writers.big.commits} big ones,"
        f" {retries} retries; the slowest statement took {writers.slowest('snapshot'):.2f} s during snapshots and"
        f" {writers.slowest('alone'):.2f} s between them, of the big ones {writers.big.waits.get('snapshot', 0):.2f} and"
        f" {writers.big.waits.get('alone', 0):.2f} s; {len(kinds)} drills passed: {', '.join(kinds)}"
    )
