"""Ranges that the server sends as it did for the parent are the parent's chunks; all others are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pymysql
import pytest

from crmbackup.engines.mysql.connection import Connection, connect, execute
from crmbackup.engines.mysql.engine import MysqlSource, Settings
from crmbackup.engines.mysql.protocol import ColumnQuery, Sent
from crmbackup.operations.workers import ProcessWorkers
from tests.chains import Chain, Taken
from tests.mariadb import MariadbServer, mariadb
from tests.support_mariadb import run

__all__ = ["mariadb"]

KEY = bytes(range(32))
ROWS = 6000
PIECE = 32 * 1024
#: Rows that a query of the second test gives.
LENGTH = 2950


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessWorkers]:
    with ProcessWorkers(2) as found:
        yield found


def test_what_changed_is_read_and_nothing_else(
    mariadb: MariadbServer,
    tmp_path: Path,
    workers: ProcessWorkers,
) -> None:
    server = mariadb.create_database("unchanged")
    chain = Chain(
        lambda: MysqlSource(server, Settings(piece=PIECE, key=KEY, binlog=False)), tmp_path / "chain", workers
    )
    witness = Chain(lambda: MysqlSource(server, Settings(piece=PIECE)), tmp_path / "witness", workers)

    def taken() -> Taken:
        """An incremental that holds what a full one by itself does."""
        found, expected = chain.take(), witness.take(full=True)
        assert found.full_because == ""
        assert [rows(found)] == [rows(expected)]
        assert found.image.tables == expected.image.tables
        assert found.image.digest == expected.image.digest
        return found

    def rows(found: Taken) -> list[bytes]:
        parts = found.image.layout["definitions"]
        return sorted(b"".join(chunk for n, chunk in enumerate(found.chunks) if n not in parts).splitlines())

    with mariadb.connect("unchanged") as admin:
        run(
            admin,
            "CREATE TABLE t(id INT PRIMARY KEY, a VARCHAR(200), b VARCHAR(20) NOT NULL)",
            f"INSERT INTO t SELECT seq * 2, if(seq % 7, repeat('a', 20 + seq % 150), NULL), 'b' FROM seq_1_to_{ROWS}",
            # Where chunks end depends on the server's estimates, which it makes some time after the rows came.
            "ANALYZE TABLE t",
        )
        full = chain.take(full=True)
        parts = len(full.chunks) - len(full.image.layout["definitions"])
        assert parts > 8
        still = taken()
        # If the last one is small it is read: rows behind it would go with it.
        assert (still.kept, still.new) in [(parts, 0), (parts - 1, 0)]
        for text, changed in (
            ("UPDATE t SET b = 'c' WHERE id = 3000", 1),
            # As many bytes as before, in another order.
            ("UPDATE t SET b = if(id = 5000, 'x', 'y') WHERE id IN (5000, 5002)", 1),
            ("DELETE FROM t WHERE id = 8", 1),
            ("INSERT INTO t VALUES (6001, 'new', 'b')", 1),
            ("UPDATE t SET a = NULL WHERE id = 7002", 1),
            ("UPDATE t SET a = repeat('l', 200) WHERE id BETWEEN 9000 AND 9100", 1),
            (f"INSERT INTO t VALUES ({ROWS * 3}, 'last', 'b')", 0),
        ):
            run(admin, text)
            found = taken()
            assert found.new >= 1
            assert found.kept >= parts - changed - 1, text
        run(admin, "DELETE FROM t WHERE id <= 4000")
        taken()
        run(admin, "DELETE FROM t")
        assert taken().kept == 0
        run(admin, f"INSERT INTO t SELECT seq, 'a', 'b' FROM seq_1_to_{ROWS}")
        taken()


@pytest.fixture
def connection(mariadb: MariadbServer) -> Iterator[Connection]:
    with connect(mariadb.server("mysql")) as found:
        yield found


def lines(query: ColumnQuery) -> tuple[list[bytes | None], list[Sent | None]]:
    found = list(query.lines(1 << 30))
    return [row for each in found for row in each.rows], [each.sent for each in found]


def sql(text: str, count: int = LENGTH) -> str:
    return f"SELECT {text} FROM seq_1_to_100000 s WHERE seq <= {count}"


SAME = "REPEAT('x', seq % 300)"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (SAME, LENGTH - 1),
        (SAME, LENGTH + 1),
        (SAME, 0),
        (SAME, 1),
        (f"IF(seq = {LENGTH}, REPEAT('y', seq % 300), {SAME})", LENGTH),
        (f"IF(seq = 1, 'y', {SAME})", LENGTH),
        # A value with the bytes of the packet that ends a result, and of an error.
        (f"IF(seq = {LENGTH // 2}, X'05000004FE00000200', {SAME})", LENGTH),
        (f"IF(seq = {LENGTH // 2}, CONCAT(X'09000001FF1504233432303030', 'no'), {SAME})", LENGTH),
    ],
)
def test_other_rows_are_noticed_and_all_of_them_read(connection: Connection, text: str, count: int) -> None:
    _, [sent] = lines(ColumnQuery(connection, sql(SAME), KEY))
    assert sent
    room = bytearray()
    assert ColumnQuery(connection, sql(SAME), KEY).is_still(sent, room)
    query = ColumnQuery(connection, sql(text, count), KEY)
    assert not query.is_still(sent, room)
    found, _ = lines(query)
    assert found == [row[0] for row in execute(connection, sql(f"CAST({text} AS BINARY)", count))]
    assert ColumnQuery(connection, sql(SAME), KEY).is_still(sent, room)
    assert execute(connection, "SELECT 1") == [(1,)]


def test_another_key_gives_other_digests(connection: Connection) -> None:
    _, [sent] = lines(ColumnQuery(connection, sql(SAME), KEY))
    _, [other] = lines(ColumnQuery(connection, sql(SAME), bytes(32)))
    assert sent
    assert other
    assert (sent.size, sent.digest) != (other.size, other.digest)


@pytest.mark.parametrize("at", [1, LENGTH // 2, LENGTH])
def test_an_error_amid_the_rows_is_told(connection: Connection, at: int) -> None:
    _, [sent] = lines(ColumnQuery(connection, sql(SAME), KEY))
    assert sent
    failing = f"IF(seq = {at}, (SELECT t.seq FROM seq_1_to_2 t WHERE t.seq <= s.seq + 1), {SAME})"
    query = ColumnQuery(connection, sql(failing), KEY)
    assert not query.is_still(sent, bytearray())
    with pytest.raises(pymysql.Error, match="more than 1 row"):
        lines(query)
    assert execute(connection, "SELECT 1") == [(1,)]


def test_a_lost_connection_is_told(mariadb: MariadbServer, connection: Connection) -> None:
    _, [sent] = lines(ColumnQuery(connection, sql(SAME), KEY))
    assert sent
    # More than fits into what the system holds between the two: the server is in the middle of it.
    query = ColumnQuery(connection, sql("REPEAT('z', 300)", 100_000), KEY)
    with mariadb.connect() as admin:
        run(admin, f"KILL {connection.thread_id()}")

    def read() -> None:
        assert not query.is_still(Sent(sent.size * 1000, sent.digest), bytearray())
        lines(query)

    with pytest.raises(pymysql.Error):
        read()
