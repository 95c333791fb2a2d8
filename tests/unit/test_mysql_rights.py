"""What SHOW GRANTS means for a backup, on both products, without a server."""

from __future__ import annotations

import pytest

from crmbackup.engines.mysql.connection import Version
from crmbackup.engines.mysql.rights import missing_grants, parse_grants

OLD, NEW = Version("mariadb", (10, 11, 6)), Version("mariadb", (11, 4, 2))
MYSQL = Version("mysql", (8, 4, 0))
MYSQL_LINES = [
    "GRANT RELOAD, PROCESS, REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO `b`@`%`",
    "GRANT SHOW_ROUTINE ON *.* TO `b`@`%`",
    "GRANT SELECT, LOCK TABLES, SHOW VIEW, EVENT, TRIGGER ON `crm`.* TO `b`@`%`",
]
MARIADB_LINES = [
    "GRANT RELOAD, PROCESS ON *.* TO `b`@`%` IDENTIFIED BY PASSWORD '*B6'",
    "GRANT SELECT, LOCK TABLES, SHOW VIEW, EVENT, TRIGGER ON `crm`.* TO `b`@`%`",
    "GRANT SELECT ON `mysql`.`proc` TO `b`@`%`",
]


def missing(
    lines: list[str], version: Version = OLD, database: str = "crm", *, jobs: int = 2, users: bool = False
) -> list[tuple[str, str]]:
    rights = parse_grants(lines)
    return [(right, where) for _, right, where in missing_grants(rights, database, version, jobs=jobs, users=users)]


def test_documented_users_lack_nothing() -> None:
    assert missing(MARIADB_LINES) == []
    assert missing(MYSQL_LINES, MYSQL) == []
    assert missing(["GRANT ALL PRIVILEGES ON *.* TO `root`@`localhost` WITH GRANT OPTION"], NEW, users=True) == []
    assert missing(["GRANT `backup` TO `b`@`%`", *MARIADB_LINES]) == []


def test_the_owner_of_a_database_may_back_it_up() -> None:
    """It sees which routines there are, and their bodies if it made them."""
    assert missing(["GRANT ALL PRIVILEGES ON `crm`.* TO `crm`@`localhost`"]) == []
    reader = "GRANT SELECT, SHOW VIEW, EVENT, TRIGGER, LOCK TABLES, EXECUTE ON `crm`.* TO `b`@`%`"
    assert missing([reader], MYSQL) == []


def test_each_version_is_asked_for_the_right_that_it_has() -> None:
    assert missing(MARIADB_LINES[:2]) == [("SELECT", "`mysql`.`proc`")]
    assert missing(MARIADB_LINES[:2], NEW) == [("SHOW CREATE ROUTINE", "*.*")]
    assert missing(MARIADB_LINES, NEW) == []
    assert missing([MYSQL_LINES[0], MYSQL_LINES[2]], MYSQL) == [("SHOW_ROUTINE", "*.*")]
    assert missing([MYSQL_LINES[0], MYSQL_LINES[2]], Version("mysql", (8, 0, 11))) == [("SELECT", "*.*")]


@pytest.mark.parametrize(
    ("pattern", "database", "fits"),
    [
        ("crm", "crm", True),
        ("crm\\_%", "crm_test", True),
        ("crm\\_%", "crmXtest", False),
        ("c_m", "crm", True),
        ("Crm", "crm", False),
        ("a``b.*", "a`b.*", True),
        ("crm", "crm2", False),
    ],
)
def test_grants_on_patterns(pattern: str, database: str, fits: bool) -> None:
    grant = f"GRANT SELECT, SHOW VIEW, TRIGGER, EVENT ON `{pattern}`.* TO `b`@`%`"
    lines = [MARIADB_LINES[0], MARIADB_LINES[2], grant]
    assert (missing(lines, database=database) == []) == fits


def test_what_does_not_suffice() -> None:
    parts = ["GRANT SELECT ON `crm`.`contacts` TO `b`@`%`", "GRANT SELECT (`id`, `name`), INSERT ON `crm`.* TO `b`@`%`"]
    assert ("SELECT", "`crm`.*") in missing([*parts, MARIADB_LINES[0]])
    assert ("SELECT", "`mysql`.*") in missing(MARIADB_LINES, users=True)
    everywhere = ["GRANT SELECT, RELOAD, SHOW VIEW, TRIGGER, EVENT ON *.* TO `b`@`%`"]
    assert missing(everywhere, MYSQL, users=True) == []
    assert missing([*everywhere, "REVOKE SELECT ON `crm`.* FROM `b`@`%`"], MYSQL) == [("SELECT", "`crm`.*")]


def test_one_worker_needs_no_lock() -> None:
    lines = [MARIADB_LINES[1].replace("LOCK TABLES, ", ""), MARIADB_LINES[2]]
    assert missing(lines, jobs=1) == []
    assert missing(lines, jobs=2) == [("RELOAD", "*.*")]
    assert missing(MARIADB_LINES[1:], jobs=2) == []
