"""Values of every type, and rows under every kind of key, come back as they were, by fulls and by incrementals."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import pytest

from crmbackup.engines.base import RestoreOptions
from crmbackup.engines.mysql.connection import connect, execute
from crmbackup.engines.mysql.engine import MysqlSource, Settings
from crmbackup.engines.mysql.protocol import ColumnQuery
from crmbackup.engines.mysql.target import MysqlTargetEngine
from crmbackup.operations.workers import ProcessWorkers
from tests.chains import Chain, Taken
from tests.mariadb import MariadbServer, mariadb  # noqa: F401 - a fixture
from tests.support_mysql import checksums, fill, rows_of

#: The name holds what names may: a quote of each kind, a dot, a space, other letters.
SOURCE, BACK = "va.lü`es \"'", "values_%s ba`\\ck"
PIECE = 2048

TYPES = (
    (
        "CREATE TABLE types (id INT PRIMARY KEY, f FLOAT, d DOUBLE, n DECIMAL(65,30), b1 BIT(1), b64 BIT(64), y YEAR, t TIME(6),"
        " dt DATETIME(3), ts TIMESTAMP(6) NULL, e ENUM('', 'a', '1'), s SET('x', 'y', 'z'), j JSON, g GEOMETRY, u UUID,"
        " i4 INET4, i6 INET6, vb VARBINARY(300), lb LONGBLOB, c CHAR(10) CHARACTER SET utf16, l VARCHAR(30) CHARACTER SET latin1,"
        " gv INT AS (length(vb) + 1) VIRTUAL, gs VARCHAR(40) AS (concat('g', l)) STORED, hidden INT INVISIBLE DEFAULT 5)"
    ),
    (
        "INSERT INTO types (id, f, d, n, b1, b64, y, t, dt, ts, e, s, j, g, u, i4, i6, vb, lb, c, l) VALUES"
        " (1, 0.1, 0.1, -0.000000000000000000000000000001, 1, 18446744073709551615, 1901, '-838:59:59.999999',"
        "  '0000-00-00 00:00:00.000', '1970-01-02 00:00:01.000001', '', '', '{\"a\": \"\\\\\\\\\\\\t\\\\n\"}',"
        "  ST_GeomFromText('POINT(1 2)', 4326), '93da2e35-e932-11f1-a988-02fc00000001', '10.0.0.9', '::1',"
        "  X'00090A5C0D1A27', REPEAT(X'00095C0A', 5000), '😀ab', 'é€'),"
        " (2, 3.4028235e38, -1.7976931348623157e308, 99999999999999999999999999999999999.999999999999999999999999999999, 0, 0, 0,"
        "  '838:59:59', '9999-12-31 23:59:59.999', NULL, 'a', 'x,y,z', 'null', NULL, NULL, NULL, NULL, '', '', ' ', ''),"
        " (3, 1.17549e-38, 4.9e-324, 0, NULL, 1, 2155, '00:00:00', '2024-02-31 00:00:00', NULL, 'bad', 'z', NULL,"
        "  ST_GeomFromText('GEOMETRYCOLLECTION EMPTY'), NULL, NULL, 'ffff::', NULL, NULL, NULL, NULL),"
        " (4, -0.0, 123456789.123456789, 1, 1, 2, NULL, NULL, NULL, NULL, 3, 'x', '[]', NULL, NULL, NULL, NULL, '\\\\N', '\\\\N',"
        "  NULL, '\\\\N')"
    ),
)
#: Values that are as long as a row may be, and nothing but what must be escaped.
LONG = (
    "CREATE TABLE long_texts (id INT PRIMARY KEY, v VARCHAR(16000) CHARACTER SET utf8mb4)",
    "CREATE TABLE long_bytes (v VARBINARY(60000))",
    "INSERT INTO long_texts VALUES (1, 'short'), (2, REPEAT('\\\\\t\n😀', 4000)), (3, NULL), (4, '\t')",
    "INSERT INTO long_bytes VALUES (REPEAT(X'5C090A00', 15000)), (X'5C4E'), (NULL)",
)
#: Column of a key, and an expression over `seq` that gives its values, the odd ones among them.
KEYS = {
    "k_int": ("INT", "CAST(seq AS SIGNED) - 150"),
    "k_unsigned": ("BIGINT UNSIGNED", "IF(seq = 1, 0, 18446744073709551615 - seq * 3)"),
    "k_decimal": ("DECIMAL(30,10)", "(CAST(seq AS SIGNED) - 150) / 7"),
    "k_datetime": ("DATETIME(6)", "IF(seq = 1, 0, '2020-01-01' + INTERVAL seq * 37 MICROSECOND)"),
    "k_date": ("DATE", "IF(seq = 1, '0000-00-00', '2020-01-01' + INTERVAL seq DAY)"),
    # As the mode ALLOW_INVALID_DATES lets applications write them.
    "k_invalid": ("DATE", "CONCAT('2024-', LPAD(1 + seq DIV 31, 2, '0'), '-', LPAD(1 + seq % 31, 2, '0'))"),
    "k_guid": ("CHAR(36) CHARACTER SET latin1", "INSERT(MD5(seq), 9, 0, '-')"),
    "k_binary": ("BINARY(16)", "UNHEX(MD5(seq))"),
    "k_varbinary": ("VARBINARY(20)", "CONCAT(X'5C090A00', seq)"),
    "k_folded": ("VARCHAR(40) COLLATE utf8mb4_general_ci", "CONCAT(ELT(seq % 3 + 1, 'Äb', 'aB', '\\t\\\\\\n'), seq)"),
    "k_uca": ("VARCHAR(40) COLLATE utf8mb4_uca1400_ai_ci", "CONCAT(ELT(seq % 3 + 1, 'É', 'e', '日'), seq)"),
    "k_nopad": ("VARCHAR(40) COLLATE utf8mb4_nopad_bin", "CONCAT(seq DIV 3, REPEAT(' ', seq % 3))"),
    "k_float": ("DOUBLE", "seq / 3"),
    "k_time": ("TIME(3)", "SEC_TO_TIME(seq - 100.5)"),
    "k_enum": ("ENUM('b', 'a', 'c')", "ELT(seq % 3 + 1, 'a', 'b', 'c')"),
}


def statements() -> Iterator[str]:
    yield "SET SESSION sql_mode = 'NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES'"
    yield from TYPES
    yield from LONG
    for name, (kind, value) in KEYS.items():
        yield f"CREATE TABLE {name} (k {kind} NOT NULL, n INT NOT NULL, v VARCHAR(200), PRIMARY KEY (k, n))"
        yield f"INSERT INTO {name} SELECT {value}, seq, REPEAT(CHAR(65 + seq % 26), 100) FROM seq_1_to_300"


CHANGES = (
    *(f"UPDATE {name} SET v = 'changed' WHERE n < 40 AND v LIKE 'C%'" for name in KEYS),
    *(f"DELETE FROM {name} ORDER BY k, n LIMIT 3" for name in KEYS),
    *(f"UPDATE {name} SET n = n + 1000 ORDER BY k DESC, n LIMIT 2" for name in KEYS),
    "UPDATE types SET f = 2.5 WHERE id = 1",
)


@pytest.fixture(scope="module")
def chain(mariadb: MariadbServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:  # noqa: F811
    fill(mariadb, SOURCE, tuple(statements()))
    server = mariadb.server(SOURCE)
    with ProcessWorkers(2) as workers:
        yield Chain(
            lambda: MysqlSource(server, Settings(piece=PIECE, key=bytes(32))),
            tmp_path_factory.mktemp("values"),
            workers,
        )
    mariadb.drop_database(SOURCE)


def everything(server: MariadbServer, database: str) -> dict[str, list[tuple[object, ...]]]:
    """All rows, by a client that knows nothing of ours; what a client converts is asked for in hexadecimal digits."""
    exact = "SELECT id, HEX(f + 0E0), d, HEX(b64), HEX(g), u, i4, i6, HEX(c), HEX(l), gv, gs, hidden, e + 0 FROM types"
    found = {name: rows_of(server, database, f"SELECT HEX(k), n, v FROM {name} ORDER BY k, n") for name in KEYS}
    return {**found, "types": rows_of(server, database, f"{exact} ORDER BY id")}


def same(server: MariadbServer, chain: Chain, taken: Taken) -> None:
    where = MysqlTargetEngine(None, None).target(server.url(quote(BACK)), RestoreOptions(create=True))
    try:
        chain.restore(taken, where)
        assert everything(server, BACK) == everything(server, SOURCE)
        assert checksums(server, BACK) == checksums(server, SOURCE)
        found = where.verify(chain.workers, taken.image.tables, taken.info.properties, lambda _: None)
        assert [table.checksum for table in found.tables] == [table.checksum for table in taken.image.tables]
    finally:
        server.drop_database(BACK)


def test_values_and_keys_of_every_kind(mariadb: MariadbServer, chain: Chain) -> None:  # noqa: F811
    full = chain.take()
    same(mariadb, chain, full)
    with mariadb.connect(SOURCE, init_command="SET sql_mode = ''") as connection, connection.cursor() as cursor:
        for text in CHANGES:
            assert cursor.execute(text), text
        connection.commit()
    incremental = chain.take()
    assert 0 < incremental.new < full.new / 2
    same(mariadb, chain, incremental)


def test_lines_of_every_length_are_read_as_they_are(mariadb: MariadbServer) -> None:  # noqa: F811
    """The borders are those of the protocol's lengths, of what is taken from the socket at once, and of a packet."""
    lengths = [
        0,
        1,
        250,
        251,
        65535,
        65536,
        262_143,
        300_000,
        3,
        (1 << 24) - 6,
        (1 << 24) - 5,
        (1 << 24) - 4,
        7,
        1 << 24,
        2,
    ]
    sql = " UNION ALL ".join(f"SELECT IF({size} = 7, NULL, REPEAT('{size % 10}', {size}))" for size in lengths)
    with mariadb.connect() as admin, admin.cursor() as cursor:
        cursor.execute("SET GLOBAL max_allowed_packet = 64 * 1024 * 1024")
        try:
            with connect(mariadb.server()) as connection:
                lists = [found.rows for found in ColumnQuery(connection, sql).lines(100_000)]
                assert execute(connection, "SELECT 1") == [(1,)]
        finally:
            cursor.execute("SET GLOBAL max_allowed_packet = DEFAULT")
    expected = [None if size == 7 else str(size % 10).encode() * size for size in lengths]
    assert [row for rows in lists for row in rows] == expected
    assert all(sum(map(len, filter(None, rows[:-1]))) < 200_000 for rows in lists)
