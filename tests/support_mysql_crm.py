"""A CRM database with all kinds of objects that MariaDB has, and the backup user that docs/mysql.md tells to make."""

from __future__ import annotations

import re
from pathlib import Path

from crmbackup.engines.mysql.connection import quoted
from tests.mariadb import MariadbServer

PAGE = Path(__file__).parents[1] / "docs" / "mysql.md"
PASSWORD = "correct-horse battery:staple"

SETUP = (
    """CREATE TABLE accounts (id int AUTO_INCREMENT PRIMARY KEY, name varchar(100) NOT NULL,
        made timestamp(6) DEFAULT current_timestamp(6), KEY (name))""",
    """CREATE TABLE contacts (id char(36) CHARACTER SET ascii PRIMARY KEY, account int, mail varchar(100),
        domain varchar(100) AS (substring_index(mail, '@', -1)) STORED, photo blob, flags bit(5), kind enum('a', 'b'),
        secret int INVISIBLE DEFAULT 7, FOREIGN KEY (account) REFERENCES accounts (id))""",
    """CREATE TABLE deals (id int, amount double, closed date, note text CHARACTER SET latin1, KEY (id))
        PARTITION BY HASH (id) PARTITIONS 3""",
    "CREATE TABLE audit (n int, what text) WITH SYSTEM VERSIONING",
    "CREATE TABLE notes (id int PRIMARY KEY, place point, extra json) ENGINE=MyISAM",
    "CREATE SEQUENCE numbers START 100 INCREMENT 5 CACHE 10",
    r"""INSERT INTO accounts (name, made) SELECT concat('Müller & Söhne \\ \t \n', seq), '2026-01-01' + INTERVAL seq MINUTE
        FROM seq_1_to_3000""",
    """INSERT INTO contacts (id, account, mail, photo, flags, kind) SELECT uuid(), 1 + seq % 3000,
        concat(seq, '@example.org'), unhex(repeat(md5(seq), 9)), seq % 32, 1 + seq % 2 FROM seq_1_to_9000""",
    "INSERT INTO deals SELECT seq, seq / 3, '2026-01-01', char(0xE9, 0x81 USING latin1) FROM seq_1_to_500",
    "SET sql_mode = ''",
    "INSERT INTO deals (id, closed) VALUES (0, '0000-00-00')",
    "INSERT INTO audit VALUES (1, 'one'), (2, 'two')",
    "UPDATE audit SET what = 'three' WHERE n = 2",
    "DELETE FROM audit WHERE n = 1",
    r"""INSERT INTO notes VALUES (1, POINT(1, 2.5), '{"a": "\\n"}')""",
    "SELECT NEXT VALUE FOR numbers",
    "CREATE FUNCTION initials(t text) RETURNS varchar(10) DETERMINISTIC RETURN concat('ß', left(t, 1))",
    "SET sql_mode = 'ANSI_QUOTES,PIPES_AS_CONCAT'",
    """CREATE PROCEDURE counting(OUT x int) BEGIN SELECT count(*) INTO x FROM "accounts"; SELECT 'a' || ';'; END""",
    "SET sql_mode = ''",
    "CREATE TRIGGER first BEFORE INSERT ON accounts FOR EACH ROW BEGIN SET NEW.name = concat(NEW.name, 'é'); END",
    "CREATE TRIGGER then_this BEFORE INSERT ON accounts FOR EACH ROW FOLLOWS first SET NEW.name = concat(NEW.name, '!')",
    """CREATE EVENT nightly ON SCHEDULE EVERY 1 DAY STARTS '2026-01-01 02:00:00' ON COMPLETION PRESERVE ENABLE COMMENT 'x'
        DO DELETE FROM accounts WHERE id < 0""",
    "SET time_zone = 'Europe/Berlin'",
    "CREATE EVENT far ON SCHEDULE EVERY 1 WEEK STARTS '2026-07-01 02:30:00' DO DELETE FROM accounts WHERE id < -1",
    "CREATE VIEW b_second AS SELECT id, initials(name) AS i FROM accounts",
    "CREATE VIEW a_first AS SELECT * FROM b_second",
)
#: What a day does: rows go, change and come, and a sequence moves.
WORKDAY = (
    "UPDATE accounts SET name = concat('new-', name) WHERE id = 7",
    "DELETE FROM deals WHERE id = 17",
    "INSERT INTO accounts (name) VALUES ('late')",
    "INSERT INTO audit VALUES (3, 'new')",
    "SELECT NEXT VALUE FOR numbers",
)


def run(server: MariadbServer, database: str, *statements: str) -> None:
    """Each in a transaction of its own, as root."""
    with server.connect(database) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def right_to_routines(server: MariadbServer) -> tuple[str, str]:
    """What the page says that shows the routines of others: a right, and on what."""
    return ("SHOW CREATE ROUTINE", "*.*") if server.version.number >= (11, 3) else ("SELECT", "`mysql`.`proc`")


def documented_user(server: MariadbServer, *databases: str) -> None:
    """The user crmbackup as the page says for MariaDB of this version, with rights on databases: on crm, if none is named."""
    block = re.findall(r"```sql\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)[0]
    statements = [" ".join(part.split()) for part in block.replace("'...'", f"'{PASSWORD}'").split(";") if part.strip()]
    assert len(statements) == 4
    right, place = right_to_routines(server)
    statements[2] = f"GRANT {right} ON {place} TO 'crmbackup'@'%'"
    of_one = [statement for statement in statements if "`crm`.*" in statement]
    others = [statement for statement in statements if statement not in of_one]
    given = [each.replace("`crm`", quoted(name)) for name in databases or ("crm",) for each in of_one]
    run(server, "", "DROP USER IF EXISTS 'crmbackup'@'%'", *others, *given)
