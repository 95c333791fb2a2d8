"""An incremental is exact: it holds what its snapshot saw, whatever went on before and meanwhile, with the binary log and
without it.

What other sessions did is drawn by hypothesis; every snapshot of the chain is compared, row by row, with what an
independent session saw of the very same moment.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pymysql
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from crmbackup.engines.mysql.connection import Connection
from crmbackup.engines.mysql.engine import Settings
from crmbackup.operations.workers import ProcessWorkers
from tests.mariadb import MariadbServer, mariadb
from tests.support_mariadb import Witnessed, run, sessions

__all__ = ["mariadb"]

EXAMPLES = int(os.environ.get("CRMBACKUP_MARIADB_EXAMPLES", "4"))
SESSIONS = 3
ROWS = 200
PIECE = 1024
KEY = bytes(32)
TABLES = ("ints", "guids", "pairs", "texts", "bins", "dates", "bare", "child", "grandchild")

SETUP = f"""
CREATE TABLE ints(id INT PRIMARY KEY, v VARCHAR(200), g INT AS (id + 1) VIRTUAL)
CREATE TABLE guids(v VARCHAR(200), id CHAR(36) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci PRIMARY KEY)
CREATE TABLE pairs(a SMALLINT UNSIGNED, b VARCHAR(20) COLLATE utf8mb4_unicode_ci, v VARCHAR(200), PRIMARY KEY(a, b))
CREATE TABLE texts(id VARCHAR(30) CHARACTER SET latin1 COLLATE latin1_german2_ci PRIMARY KEY, v VARCHAR(200))
CREATE TABLE bins(id BINARY(4) PRIMARY KEY, b BIT(9), v VARCHAR(200))
CREATE TABLE dates(id DATETIME(3) PRIMARY KEY, v VARCHAR(200), d DECIMAL(20, 7) DEFAULT 1.5)
CREATE TABLE bare(id INT, v VARCHAR(200), KEY(id))
CREATE TABLE child(id INT PRIMARY KEY, v VARCHAR(200), parent INT,
    FOREIGN KEY (parent) REFERENCES ints(id) ON DELETE CASCADE ON UPDATE CASCADE)
CREATE TABLE grandchild(id INT PRIMARY KEY, v VARCHAR(200), parent INT,
    FOREIGN KEY (parent) REFERENCES child(id) ON DELETE SET NULL)
INSERT INTO ints(id, v) SELECT seq, repeat('i', 60) FROM seq_1_to_{ROWS}
INSERT INTO guids SELECT repeat('g', 60), insert(md5(seq), 9, 0, '-') FROM seq_1_to_{ROWS}
INSERT INTO pairs SELECT seq DIV 20, concat(elt(1 + seq % 4, 'Ä', 'b', 'é', 'Z'), seq), repeat('p', 40) FROM seq_1_to_{ROWS}
INSERT INTO texts SELECT concat(elt(1 + seq % 5, 'ß', 'ä', 'Z', 'a', '-'), seq), repeat('t', 60) FROM seq_1_to_{ROWS}
INSERT INTO bins SELECT unhex(hex(seq * 7919)), 5, repeat('b', 60) FROM seq_1_to_{ROWS}
INSERT INTO dates(id, v) SELECT from_unixtime(seq * 86400.123), repeat('d', 60) FROM seq_1_to_{ROWS}
INSERT INTO bare SELECT seq, repeat('n', 60) FROM seq_1_to_{ROWS}
INSERT INTO child SELECT seq, repeat('c', 60), seq FROM seq_1_to_{ROWS}
INSERT INTO grandchild SELECT seq, repeat('c', 60), seq FROM seq_1_to_{ROWS}
"""

#: A key, and another one, for each table, from a number.
KEYS = {
    "ints": "id = {0}",
    "guids": "id = insert(md5({0}), 9, 0, '-')",
    "pairs": "a = {0} DIV 20",
    "texts": "id LIKE concat('%', {0})",
    "bins": "id = unhex(hex({0} * 7919))",
    "dates": "id = from_unixtime({0} * 86400.123)",
    "bare": "id = {0}",
    "child": "id = {0}",
    "grandchild": "id = {0}",
}
MOVES = {
    "ints": "id = {1} + 300",
    "guids": "id = upper(insert(md5({1} + 1000), 9, 0, '-'))",
    "pairs": "b = concat('{1}', b)",
    "texts": "id = concat(upper(left(id, 1)), {1})",
    "bins": "id = unhex(hex(concat({1})))",
    "dates": "id = from_unixtime({1} * 1000)",
    "bare": "id = {1}",
    "child": "id = {1}, parent = {0}",
    "grandchild": "id = {1} + 500, parent = NULL",
}
NEW = {
    "ints": "INTO ints(id, v) VALUES ({1} + 150, 'new{0}')",
    "guids": "INTO guids(id, v) VALUES (insert(md5({1}), 9, 0, '-'), 'new{0}')",
    "pairs": "INTO pairs(a, b, v) VALUES ({1} DIV 20, concat('É', {1}), 'new{0}')",
    "texts": "INTO texts(id, v) VALUES (concat('ae', {1}), 'new{0}')",
    "bins": "INTO bins(id, v) VALUES (unhex(hex({1})), 'new{0}')",
    "dates": "INTO dates(id, v) VALUES (from_unixtime({1} * 86400.123), 'new{0}')",
    "bare": "INTO bare(id, v) VALUES ({1}, 'new{0}')",
    "child": "INTO child(id, v, parent) VALUES ({1}, 'new{0}', {0})",
    "grandchild": "INTO grandchild(id, v, parent) VALUES ({1}, 'new{0}', {0})",
}
ROW = {
    "update": "UPDATE {table} SET v = concat('u', {0}) WHERE {key}",
    "same": "UPDATE {table} SET v = v WHERE {key}",
    "move": "UPDATE IGNORE {table} SET {move} WHERE {key}",
    "delete": "DELETE FROM {table} WHERE {key}",
    "insert": "INSERT IGNORE {new}",
    "upsert": "INSERT {new} ON DUPLICATE KEY UPDATE v = concat('d', {0})",
    "replace": "REPLACE {new}",
    "many": "UPDATE {table}, ints SET {table}.v = 'm{0}', ints.v = 'n{0}' WHERE {table}.v LIKE 'u%' AND ints.id = {0}",
    "minimal": "SET binlog_row_image = MINIMAL",
    "noblob": "SET binlog_row_image = NOBLOB",
    "savepoint": "SAVEPOINT s",
    "back": "ROLLBACK TO s",
    "commit": "COMMIT",
    "rollback": "ROLLBACK",
}
ADMIN = {
    "truncate": "TRUNCATE {table}",
    "add-column": "ALTER TABLE {table} ADD COLUMN IF NOT EXISTS extra{1} VARCHAR(9) DEFAULT 'x' FIRST",
    "drop-column": "ALTER TABLE {table} DROP COLUMN IF EXISTS extra{1}",
    "rename": "RENAME TABLE bare TO other, texts TO bare, other TO texts",
    "recreate": "CREATE OR REPLACE TABLE bare(id INT, v VARCHAR(200))",
    "temporary": "CREATE OR REPLACE TEMPORARY TABLE t SELECT * FROM ints",
    "optimize": "OPTIMIZE TABLE {table}",
    "rotate": "FLUSH BINARY LOGS",
    "compress": "SET GLOBAL log_bin_compress = 1, GLOBAL log_bin_compress_min_len = 10",
    "plain": "SET GLOBAL log_bin_compress = 0",
    "statement": "SET STATEMENT binlog_format = STATEMENT FOR UPDATE {table} SET v = 's' WHERE {key}",
}


class Model:
    """Some sessions with transactions of their own. What fails (a lock, a broken transaction) simply did not happen."""

    def __init__(self, connect: Callable[[], Connection], connections: list[Connection], admin: Connection) -> None:
        self._connect = connect
        self._sessions = connections
        self._admin = admin
        self._prepared: list[str] = []
        self._branches = 0
        for text in SETUP.strip().replace(",\n    ", ", ").splitlines():
            run(admin, text)

    def act(self, session: int, action: str, first: int, second: int) -> None:
        """One step of one session, or of the administrator."""
        table = TABLES[first % len(TABLES)]
        connection = self._sessions[session]
        with suppress(pymysql.Error):
            if action == "begin":
                if not connection.server_status & 1:
                    run(connection, "BEGIN")
            elif action == "xa":
                self._xa(table, first)
            elif action == "finish":
                if self._prepared:
                    self._decide("COMMIT" if second % 4 else "ROLLBACK")
            else:
                text = {**ROW, **ADMIN}[action]
                values = {
                    "table": table,
                    "key": KEYS[table].format(first, second),
                    "move": MOVES[table].format(first, second),
                }
                values["new"] = NEW[table].format(first, second)
                run(self._admin if action in ADMIN else connection, text.format(first, second, **values))

    def _xa(self, table: str, number: int) -> None:
        """Prepare a transaction in a session that ends then: another one can only then decide about it."""
        self._branches += 1
        name = f"b{self._branches}"
        with sessions(self._connect, 1) as [connection]:
            run(connection, f"XA START '{name}'")
            with suppress(pymysql.Error):
                run(connection, f"UPDATE {table} SET v = '{name}' WHERE {KEYS[table].format(number)}")
            run(connection, f"XA END '{name}'", f"XA PREPARE '{name}'")
            self._prepared.append(name)

    def _decide(self, word: str) -> None:
        """Commit or roll back the oldest that is prepared, if its session is gone."""
        run(self._admin, f"XA {word} '{self._prepared[0]}'")
        del self._prepared[0]

    def close(self) -> None:
        """Leave nothing prepared: it would hold locks."""
        end = time.monotonic() + 20
        while self._prepared and time.monotonic() < end:
            with suppress(pymysql.Error):
                self._decide("ROLLBACK")


ACTIONS = ["begin", "xa", "finish", *ROW, *ADMIN]
STEP = st.tuples(
    st.integers(0, SESSIONS - 1),
    st.one_of(st.sampled_from(["begin", *ROW]), st.sampled_from(["begin", *ROW]), st.sampled_from(ACTIONS)),
    st.integers(0, ROWS),
    st.integers(0, 400),
)
ROUND = st.tuples(st.lists(STEP, max_size=25), st.lists(STEP, max_size=8), st.sampled_from([True, True, False]))


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessWorkers]:
    with ProcessWorkers(2) as found:
        yield found


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    # An example takes a second: what is drawn is short enough to be read as it is.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(rounds=st.lists(ROUND, min_size=2, max_size=4))
def test_every_snapshot_holds_what_its_moment_was(
    mariadb: MariadbServer,
    workers: ProcessWorkers,
    tmp_path: Path,
    rounds: list[tuple[list[tuple[int, str, int, int]], list[tuple[int, str, int, int]], bool]],
) -> None:
    shutil.rmtree(tmp_path / "chain", ignore_errors=True)
    server = mariadb.create_database("crm")

    def connect() -> Connection:
        return mariadb.connect("crm")

    with sessions(connect, SESSIONS + 1) as [admin, *others]:
        model = Model(connect, others, admin)
        try:
            chain = Witnessed(server, tmp_path / "chain", workers, Settings(piece=PIECE, key=KEY))
            chain.take(full=True).check()
            for before, during, binlog in rounds:
                for step in before:
                    model.act(*step)

                def meanwhile(steps: list[tuple[int, str, int, int]] = during) -> None:
                    for step in steps:
                        model.act(*step)

                chain.settings = replace(chain.settings, binlog=binlog)
                seen = chain.take(meanwhile=meanwhile)
                assert seen.taken.full_because == ""
                seen.check()
        finally:
            model.close()
            run(admin, "SET GLOBAL log_bin_compress = 0")
