"""What is as large, as long or as odd as the server lets it be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from crmbackup.core.errors import TargetError
from crmbackup.engines.base import RestoreOptions
from crmbackup.engines.mysql.engine import MysqlSource, Settings
from crmbackup.engines.mysql.protocol import load
from crmbackup.engines.mysql.target import MysqlTargetEngine
from crmbackup.engines.mysql.zones import make_zones
from crmbackup.operations.workers import ProcessWorkers
from tests.chains import Chain
from tests.mariadb import MariadbServer, mariadb
from tests.support_mysql import checksums, fill, rows_of

__all__ = ["mariadb"]

#: Columns that InnoDB allows, keys beside the primary one, and bytes of a row that the server allows.
COLUMNS, KEYS, ROW = 1017, 64, 65_535
LIMITS = (
    f"CREATE TABLE many_columns (id INT PRIMARY KEY, {', '.join(f'c{n} INT' for n in range(1, COLUMNS))})",
    # Beside its 65,527 bytes a row has two for the length, one for NULLs, and four for the key, and one is missing.
    f"CREATE TABLE wide (id INT PRIMARY KEY, v VARBINARY({ROW - 7}))",
    "CREATE TABLE many_keys (id INT PRIMARY KEY, "
    + ", ".join(f"c{n} INT, {'UNIQUE ' if n % 2 else ''}KEY k{n} (c{n})" for n in range(KEYS - 1))
    + ")",
    "CREATE TABLE texts (id INT PRIMARY KEY, a VARCHAR(20) CHARACTER SET ascii, l TEXT CHARACTER SET latin1)",
    f"INSERT INTO many_columns (id, c1, c{COLUMNS - 1}) SELECT seq, seq, -seq FROM seq_1_to_300",
    f"INSERT INTO wide SELECT seq, REPEAT(CHAR(seq), {ROW - 7}) FROM seq_1_to_60",
    "INSERT INTO many_keys (id, c1, c62) SELECT seq, seq, seq FROM seq_1_to_300",
)
#: Bytes that mean nothing in their column's character set. In those of several bytes the server stores none.
INVALID = b"1\t\xe9\xff\t\x81\x8d\n2\t\x80\\n\t\x9d\n"


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessWorkers]:
    with ProcessWorkers(2) as found:
        yield found


def test_tables_and_bytes_at_the_limits_come_back(
    mariadb: MariadbServer, tmp_path: Path, workers: ProcessWorkers
) -> None:
    fill(mariadb, "limits", LIMITS)
    server = mariadb.server("limits")
    with mariadb.connect("limits", init_command="SET sql_mode = ''") as connection:
        text = "LOAD DATA LOCAL INFILE 'x' INTO TABLE texts CHARACTER SET binary"
        assert load(connection, text, INVALID).rows == 2
    stored = "SELECT HEX(a), HEX(l) FROM texts ORDER BY id"
    assert rows_of(mariadb, "limits", stored) == [("E9FF", "818D"), ("800A", "9D")]
    chain = Chain(lambda: MysqlSource(server, Settings()), tmp_path, workers)
    taken = chain.take()
    where = MysqlTargetEngine(None, None).target(mariadb.url("limits_back"), RestoreOptions(create=True))
    try:
        chain.restore(taken, where)
        assert rows_of(mariadb, "limits_back", stored) == rows_of(mariadb, "limits", stored)
        assert checksums(mariadb, "limits_back") == checksums(mariadb, "limits")
        found = where.verify(workers, taken.image.tables, taken.info.properties, lambda _: None)
        assert [table.checksum for table in found.tables] == [table.checksum for table in taken.image.tables]
        assert found.schema["digest"] == taken.info.schema["digest"]
    finally:
        mariadb.drop_database("limits_back")
        mariadb.drop_database("limits")


def test_a_row_longer_than_the_servers_packet_is_read_all_the_same(
    mariadb: MariadbServer, tmp_path: Path, workers: ProcessWorkers
) -> None:
    """MariaDB sends what it would not take. What it cannot make a line of is read as it is."""
    fill(
        mariadb,
        "long",
        (
            "CREATE TABLE t (id INT PRIMARY KEY, b LONGBLOB)",
            "INSERT INTO t VALUES (1, REPEAT('x\\t', 1500000)), (2, 'y')",
        ),
    )
    server = mariadb.server("long")
    (before,) = rows_of(mariadb, "", "SELECT @@GLOBAL.max_allowed_packet")[0]
    try:
        rows_of(mariadb, "", "SET GLOBAL max_allowed_packet = 1048576")
        taken = Chain(lambda: MysqlSource(server, Settings()), tmp_path, workers).take()
    finally:
        rows_of(mariadb, "", f"SET GLOBAL max_allowed_packet = {before}")
        mariadb.drop_database("long")
    assert taken.table("t").rows == 2
    assert b"".join(taken.chunks[1:]) == b"1\t" + b"x\\t" * 1_500_000 + b"\n2\ty\n"


def test_a_time_zone_that_the_target_does_not_know_is_told_before_anything_is_made(
    mariadb: MariadbServer, tmp_path: Path, workers: ProcessWorkers
) -> None:
    with mariadb.connect("mysql") as admin:
        make_zones(admin, ["Europe/Berlin"])
    ((zone,),) = rows_of(mariadb, "mysql", "SELECT max(time_zone_id) FROM time_zone_name")
    rows_of(mariadb, "mysql", f"INSERT INTO time_zone_name VALUES ('Test/Gone', {zone})")
    fill(mariadb, "zoned", (
        "CREATE TABLE t (id INT PRIMARY KEY)",
        "SET time_zone = 'Test/Gone'",
        "CREATE EVENT e ON SCHEDULE EVERY 1 DAY DO DELETE FROM t",
    ))  # fmt: skip
    chain = Chain(lambda: MysqlSource(mariadb.server("zoned"), Settings()), tmp_path, workers)
    try:
        taken = chain.take()
        rows_of(mariadb, "mysql", "DELETE FROM time_zone_name WHERE name = 'Test/Gone'")
        mariadb.restart()  # it remembers those that it used
        where = MysqlTargetEngine(None, None).target(mariadb.url("zoned_back"), RestoreOptions(create=True))
        with pytest.raises(TargetError, match="time zones") as error:
            chain.restore(taken, where)
        assert error.value.why == "Test/Gone"
        assert rows_of(mariadb, "", "SHOW DATABASES LIKE 'zoned_back'") == []
    finally:
        mariadb.drop_database("zoned")
