"""An incremental is exact: it holds what its snapshot saw, whatever went on before and meanwhile.

What other sessions did is drawn by hypothesis; every snapshot of the chain is compared, row by row, with what an
independent session saw of the very same moment.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crmbackup.engines.postgres.connection import Server, parse_server
from crmbackup.operations.workers import ProcessWorkers
from tests.postgres import TestServer, running_server
from tests.support_postgres_snapshots import Snapshots

Connection = psycopg.Connection[tuple[Any, ...]]

EXAMPLES = int(os.environ.get("CRMBACKUP_POSTGRES_EXAMPLES", "12"))
SESSIONS = 4
ROWS = 400
#: Tables of the model: updated in place (HOT), with TOAST and no key, and a partition.
TABLES = ("hot", "wide", "part_one")

SETUP = f"""
DROP SCHEMA IF EXISTS crm CASCADE;
CREATE SCHEMA crm;
CREATE TABLE crm.hot(id int PRIMARY KEY, v text) WITH (fillfactor = 60, autovacuum_enabled = off);
CREATE TABLE crm.wide(id int, v text) WITH (autovacuum_enabled = off);
ALTER TABLE crm.wide ALTER v SET STORAGE EXTERNAL;
CREATE TABLE crm.part(id int, v text) PARTITION BY RANGE (id);
CREATE TABLE crm.part_one PARTITION OF crm.part FOR VALUES FROM (0) TO (1000000) WITH (autovacuum_enabled = off);
CREATE INDEX wide_id ON crm.wide(id);
INSERT INTO crm.hot SELECT i, repeat('h', 60) || i FROM generate_series(1, {ROWS * 3}) i;
INSERT INTO crm.wide SELECT i, repeat(md5(i::text), 90) FROM generate_series(1, {ROWS // 4}) i;
INSERT INTO crm.part SELECT i, md5(i::text) FROM generate_series(1, {ROWS * 2}) i;
"""


@pytest.fixture(scope="module", params=[15, 12, 18], ids="pg{}".format)
def cluster(request: pytest.FixtureRequest) -> Iterator[tuple[TestServer, ProcessWorkers]]:
    with ProcessWorkers(2) as workers, running_server(request.param) as server:
        server.create_database("crm")
        yield server, workers


def server_of(cluster: TestServer) -> Server:
    return parse_server(cluster.conninfo("crm"))


class Model:
    """Some sessions with transactions of their own. What fails (a lock, a broken transaction) simply did not happen."""

    def __init__(self, cluster: TestServer, stack: ExitStack) -> None:
        self._cluster = cluster
        self._sessions = [stack.enter_context(self._connect()) for _ in range(SESSIONS)]
        self._admin = stack.enter_context(self._connect())
        self._admin.execute(SETUP.encode())
        self._prepared: list[str] = []
        stack.callback(self.close)

    def _connect(self) -> Connection:
        connection = self._cluster.connect("crm")
        connection.execute("SET lock_timeout = '20ms'")
        return connection

    def act(self, session: int, action: str, number: int) -> None:
        """One step of one session, or of the administrator."""
        table = f"crm.{TABLES[number % len(TABLES)]}"
        connection = self._sessions[session]
        in_transaction = connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE
        with suppress(psycopg.Error):
            if action == "begin":
                if not in_transaction:
                    connection.execute("BEGIN")
            elif action == "prepare":
                if in_transaction:
                    name = f"p{len(self._prepared)}"
                    done = connection.execute(f"PREPARE TRANSACTION '{name}'".encode())
                    if done.statusmessage != "ROLLBACK":  # what becomes of a transaction that failed before
                        self._prepared.append(name)
            elif action == "finish":
                if self._prepared:
                    word = "COMMIT" if number % 2 else "ROLLBACK"
                    self._admin.execute(f"{word} PREPARED '{self._prepared.pop()}'".encode())
            elif action in ADMIN:
                self._admin.execute(ADMIN[action].format(table=table, n=number).encode())
            else:
                text = ROW[action].format(table=table, n=number, low=number % ROWS, high=number % ROWS + number % 7)
                connection.execute(text.encode())

    def close(self) -> None:
        for name in self._prepared:
            self._admin.execute(f"ROLLBACK PREPARED '{name}'".encode())


ROW = {
    "insert": "INSERT INTO {table} SELECT 100000 + {n} * 50 + i, repeat('x', {n}) FROM generate_series(1, {n} % 40) i",
    "update": "UPDATE {table} SET v = 'u' || {n} WHERE id BETWEEN {low} AND {high}",
    "grow": "UPDATE {table} SET v = repeat(md5('{n}'), 80) WHERE id BETWEEN {low} AND {high}",
    "touch": "UPDATE {table} SET v = v WHERE id = {low}",
    "delete": "DELETE FROM {table} WHERE id BETWEEN {low} AND {high}",
    "swap": "DELETE FROM {table} WHERE id = {low}; INSERT INTO {table} VALUES ({low}, 'swapped')",
    "lock": "SELECT 1 FROM {table} WHERE id BETWEEN {low} AND {high} FOR UPDATE",
    "savepoint": "SAVEPOINT s",
    "back": "ROLLBACK TO s",
    "release": "RELEASE s",
    "commit": "COMMIT",
    "rollback": "ROLLBACK",
}
ADMIN = {
    "vacuum": "VACUUM {table}",
    "freeze": "VACUUM (FREEZE) {table}",
    "vacuum-full": "VACUUM FULL {table}",
    "truncate": "TRUNCATE {table}",
    "cluster": "CLUSTER crm.hot USING hot_pkey",
    "add-column": "ALTER TABLE crm.hot ADD COLUMN IF NOT EXISTS extra{n} text DEFAULT 'd{n}'",
    "drop-column": "ALTER TABLE crm.hot DROP COLUMN IF EXISTS extra{n}",
    "type": "ALTER TABLE crm.wide ALTER v TYPE varchar",
    "recreate": "DROP TABLE crm.wide; CREATE TABLE crm.wide(id int, v text); INSERT INTO crm.wide VALUES ({n}, 'new')",
    "fill": "INSERT INTO crm.part SELECT i, 'late' FROM generate_series(5000, 5000 + {n}) i",
}
ACTIONS = ["begin", "prepare", "finish", *ROW, *ADMIN]
STEP = st.tuples(
    st.integers(0, SESSIONS - 1),
    st.one_of(st.sampled_from(["begin", *ROW]), st.sampled_from(ACTIONS)),
    st.integers(0, 2000),
)
ROUND = st.tuples(st.lists(STEP, max_size=30), st.lists(STEP, max_size=8))


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(rounds=st.lists(ROUND, min_size=2, max_size=4))
def test_every_snapshot_holds_what_its_transaction_saw(
    cluster: tuple[TestServer, ProcessWorkers],
    tmp_path: Path,
    rounds: list[tuple[list[tuple[int, str, int]], list[tuple[int, str, int]]]],
) -> None:
    server, workers = cluster
    shutil.rmtree(tmp_path / "chain", ignore_errors=True)
    with ExitStack() as stack:
        model = Model(server, stack)
        chain = Snapshots(server_of(server), tmp_path / "chain", workers)
        taken = chain.take(full=True)
        assert taken.content() == taken.seen
        for before, during in rounds:
            for step in before:
                model.act(*step)

            def meanwhile(steps: list[tuple[int, str, int]] = during) -> None:
                for step in steps:
                    model.act(*step)

            taken = chain.take(meanwhile=meanwhile)
            assert taken.full_because == ""
            assert taken.content() == taken.seen
            for table in taken.layout.tables:
                assert taken.record(table.label).rows == sum(taken.seen[table.label].values())
