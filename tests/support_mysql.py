"""Databases for tests of the MySQL engine, and what they hold when compared from outside of the product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crmbackup.engines.mysql.connection import quoted
from tests.mariadb import MariadbServer

#: Everything a CRM's database may hold, strange names included. `{other}` is a name that needs quotes.
OTHER = "it`s, a \"name\" (with 'quotes'), 100%s.\\ é"
#: As long as a name may be.
LONGEST = "n" * 63 + "é"
TRAPS: tuple[str, ...] = (
    "CREATE SEQUENCE numbers START WITH 100 INCREMENT BY 5 MAXVALUE 100000 CACHE 10",
    "CREATE SEQUENCE backwards START WITH -1 INCREMENT BY -1 MINVALUE -100 MAXVALUE -1 CYCLE",
    (
        "CREATE TABLE accounts (id INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY, name VARCHAR(100) NOT NULL DEFAULT"
        " 'a, b) `c` ''d''' COMMENT 'comma, ) and \\\\ and \\n', parent INT UNSIGNED, number INT DEFAULT NEXT VALUE FOR numbers,"
        " UNIQUE KEY name_u (name), KEY by_parent (parent), FULLTEXT KEY words (name),"
        " CONSTRAINT itself FOREIGN KEY (parent) REFERENCES accounts (id) ON DELETE SET NULL)"
    ),
    (
        "CREATE TABLE contacts (id CHAR(36) NOT NULL PRIMARY KEY, account INT UNSIGNED, birth DATE DEFAULT '0000-00-00',"
        " seen TIMESTAMP NULL DEFAULT CURRENT_TIMESTAMP ON UPDATE CURRENT_TIMESTAMP, amount DECIMAL(20,6), ratio FLOAT, big DOUBLE,"
        " flags BIT(12), kind ENUM('lead','it''s','') , tags SET('a','b','c'), raw BLOB, place POINT, extra JSON,"
        " latin VARCHAR(50) CHARACTER SET latin1, shout VARCHAR(60) AS (UPPER(latin)) PERSISTENT,"
        " secret INT INVISIBLE DEFAULT 7, CONSTRAINT amount_ok CHECK (amount > -5),"
        " KEY by_account (account), KEY mixed (kind, birth DESC), KEY part (latin(10)),"
        " CONSTRAINT of_account FOREIGN KEY (account) REFERENCES accounts (id) ON UPDATE CASCADE)"
    ),
    # A cycle of foreign keys.
    "CREATE TABLE ring_a (id INT PRIMARY KEY, b INT, KEY (b)) ENGINE=InnoDB",
    "CREATE TABLE ring_b (id INT PRIMARY KEY, a INT, KEY (a), CONSTRAINT to_a FOREIGN KEY (a) REFERENCES ring_a (id))",
    "ALTER TABLE ring_a ADD CONSTRAINT to_b FOREIGN KEY (b) REFERENCES ring_b (id)",
    f"CREATE TABLE {quoted(OTHER)} ({quoted(OTHER)} INT NOT NULL, {quoted('ключ')} TEXT, KEY {quoted(OTHER)} ({quoted(OTHER)}))",
    f"CREATE TABLE {quoted(LONGEST)} ({quoted(LONGEST)} INT PRIMARY KEY, CONSTRAINT {quoted(LONGEST)} CHECK (1))",
    "CREATE SEQUENCE `50% of.it`",
    "CREATE TABLE counted (a INT NOT NULL, n INT NOT NULL AUTO_INCREMENT, KEY first (a), KEY second (n)) AUTO_INCREMENT=1000",
    "CREATE TABLE old_rows (id INT PRIMARY KEY, v VARCHAR(20)) WITH SYSTEM VERSIONING",
    (
        "CREATE TABLE log_lines (at DATETIME NOT NULL, line TEXT) PARTITION BY RANGE (TO_DAYS(at))"
        " (PARTITION p0 VALUES LESS THAN (TO_DAYS('2020-01-01')), PARTITION p1 VALUES LESS THAN MAXVALUE)"
    ),
    "CREATE TABLE moving (id INT PRIMARY KEY, v TEXT) ENGINE=MyISAM",
    "CREATE TABLE nothing (id INT PRIMARY KEY)",
    "CREATE TABLE gone (id INT, label TEXT)",
    "INSERT INTO accounts (name, parent) VALUES ('root', NULL), ('tab\\there\\nline\\\\', 1), ('\\0 nul', 2)",
    "INSERT INTO accounts (id, name, number) VALUES (0, 'zero', NULL)",
    (
        "INSERT INTO contacts (id, account, birth, amount, ratio, big, flags, kind, tags, raw, place, extra, latin) VALUES"
        " ('a-1', 1, '0000-00-00', 1.5, 0.1, 1e300, b'101', 'it''s', 'a,c', X'00FF0A095C', POINT(1,2), '{\"a\": [1]}', 'é'),"
        " ('a-2', 2, '2024-02-30', -4, 3.4e38, -0.0, b'0', '', '', '', NULL, NULL, NULL)"
    ),
    "INSERT INTO ring_a VALUES (1, NULL), (2, NULL)",
    "INSERT INTO ring_b VALUES (1, 1), (2, 2)",
    "UPDATE ring_a SET b = id",
    f"INSERT INTO {quoted(OTHER)} VALUES (1, 'x'), (1, 'x'), (2, NULL)",
    "INSERT INTO counted (a) VALUES (1), (2)",
    "INSERT INTO old_rows VALUES (1, 'first'), (2, 'second')",
    "UPDATE old_rows SET v = 'changed' WHERE id = 1",
    "DELETE FROM old_rows WHERE id = 2",
    "INSERT INTO log_lines VALUES ('2019-05-05 10:00:00', 'old'), ('2024-05-05 10:00:00', 'new')",
    "INSERT INTO moving VALUES (1, 'my'), (2, 'isam')",
    "SELECT NEXT VALUE FOR numbers",
    "CREATE FUNCTION doubled(x INT) RETURNS INT DETERMINISTIC RETURN x * 2",
    "CREATE PROCEDURE show_it(IN which VARCHAR(20)) BEGIN SELECT which; /* ; ' */ END",
    "CREATE VIEW z_early AS SELECT id, name, doubled(id) AS twice FROM accounts WHERE id > 0",
    "CREATE VIEW a_late AS SELECT id, name FROM z_early",
    "CREATE SQL SECURITY INVOKER VIEW lost AS SELECT g.id, label AS word FROM gone g",
    "CREATE VIEW over_lost AS SELECT word FROM lost",
    "DROP TABLE gone",
    # A table called as the database is: what `crm`.`x` means depends on where it stands.
    "CREATE TABLE crm (crm INT PRIMARY KEY, at DATE, n INT DEFAULT NEXTVAL(crm.numbers))",
    (
        "CREATE VIEW same_name AS SELECT crm.crm, EXTRACT(YEAR FROM crm.at) AS y, crm.doubled(crm.n) AS d FROM crm"
        " WHERE crm.crm IN (SELECT EXTRACT(DAY FROM crm.birth) FROM contacts crm)"
    ),
    (
        "CREATE VIEW with_another AS SELECT crm.account, c.at FROM crm c JOIN mysql.plugin p LEFT JOIN"
        " (contacts crm JOIN accounts a ON crm.account = a.id) ON EXTRACT(DAY FROM crm.birth) = LASTVAL(crm.numbers)"
    ),
    "INSERT INTO crm VALUES (1, '2024-05-05', 2)",
    "CREATE TRIGGER second BEFORE INSERT ON accounts FOR EACH ROW SET NEW.name = CONCAT(NEW.name, '!')",
    "CREATE TRIGGER first BEFORE INSERT ON accounts FOR EACH ROW PRECEDES second SET NEW.name = TRIM(NEW.name)",
    "CREATE EVENT nightly ON SCHEDULE EVERY 1 DAY STARTS '2020-01-01 03:00:00' COMMENT 'it''s DO' DO DELETE FROM nothing",
    "SET sql_mode = 'ANSI_QUOTES,PIPES_AS_CONCAT'",
    "CREATE PROCEDURE ansi() SELECT 'a' || \"name\" FROM accounts",
    "SET NAMES latin1",
)


def fill(server: MariadbServer, name: str, statements: Sequence[str] = TRAPS) -> None:
    """Make a database and run statements in it, all in one session."""
    server.create_database(name)
    with server.connect(name, init_command="SET sql_mode = ''") as connection, connection.cursor() as cursor:
        for text in statements:
            cursor.execute(text)


def rows_of(server: MariadbServer, database: str, sql: str) -> list[tuple[Any, ...]]:
    """All rows of a query."""
    with server.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def checksums(server: MariadbServer, database: str) -> dict[str, int]:
    """CHECKSUM TABLE ... EXTENDED of every table."""
    names = rows_of(
        server, database, "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() AND table_type"
        " IN ('BASE TABLE', 'SYSTEM VERSIONED') ORDER BY 1"
    )  # fmt: skip
    return {name: rows_of(server, database, f"CHECKSUM TABLE {quoted(name)} EXTENDED")[0][1] for (name,) in names}
