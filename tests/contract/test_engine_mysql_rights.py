"""The user that docs/mysql.md tells to make lacks nothing; with one right less, the message holds what gives it back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from crmbackup.core.errors import SourceDenied, SourceEmpty
from crmbackup.core.secrets import Secret
from crmbackup.engines.mysql.connection import connect, version_of
from crmbackup.engines.mysql.engine import MysqlSource, Settings
from crmbackup.engines.mysql.objects import read_objects
from tests.mariadb import MariadbServer, mariadb
from tests.support_mysql_crm import PASSWORD, documented_user, right_to_routines, run

__all__ = ["mariadb"]


@pytest.fixture
def user(mariadb: MariadbServer) -> Iterator[MariadbServer]:
    """A server with the user and a small database."""
    mariadb.create_database("crm")
    run(mariadb, "crm", "CREATE TABLE t (id int PRIMARY KEY)")
    documented_user(mariadb)
    yield mariadb
    run(mariadb, "", "DROP USER 'crmbackup'@'%'")
    mariadb.drop_database("crm")


def source(server: MariadbServer, *, users: bool = False) -> MysqlSource:
    return MysqlSource(
        replace(server.server("crm"), user="crmbackup", password=Secret(PASSWORD)), Settings(users=users)
    )


def refused(server: MariadbServer, jobs: int = 2, *, users: bool = False) -> SourceDenied:
    with pytest.raises(SourceDenied) as caught:
        source(server, users=users).preflight(jobs)
    return caught.value


def test_each_missing_right_is_told_with_the_statement_that_grants_it(user: MariadbServer) -> None:
    assert source(user).preflight(2) == 2
    for right, place in [
        ("SELECT", "`crm`.*"),
        ("SHOW VIEW", "`crm`.*"),
        ("TRIGGER", "`crm`.*"),
        ("EVENT", "`crm`.*"),
        right_to_routines(user),
    ]:
        run(user, "", f"REVOKE {right} ON {place} FROM 'crmbackup'@'%'")
        error = refused(user)
        assert "'crmbackup'@'%'" in error.what
        assert error.hint == f"GRANT {right} ON {place} TO 'crmbackup'@'%';"
        run(user, "", error.hint)
        source(user).preflight(2)


def test_several_missing_rights_are_told_at_once(user: MariadbServer) -> None:
    run(
        user,
        "",
        "REVOKE ALL PRIVILEGES, GRANT OPTION FROM 'crmbackup'@'%'",
        "GRANT SELECT ON crm.t TO 'crmbackup'@'%'",
    )
    error = refused(user)
    statements = [part for part in error.hint.split(";") if part.strip()]
    together = right_to_routines(user)[1] == "*.*"  # then it is in one statement with RELOAD
    assert len(statements) == (2 if together else 3)
    run(user, "", *statements)
    assert source(user).preflight(2) == 2


def test_a_view_over_a_function_is_known_to_work_without_the_right_to_call_it(user: MariadbServer) -> None:
    run(
        user,
        "crm",
        "CREATE FUNCTION f(x int) RETURNS int NO SQL RETURN x",
        "CREATE VIEW calling AS SELECT id, f(id) AS `n°` FROM t",
        "CREATE TABLE gone (id int)",
        "CREATE VIEW broken AS SELECT f(id) FROM gone",
        "DROP TABLE gone",
    )
    server = replace(user.server("crm"), user="crmbackup", password=Secret(PASSWORD))
    with connect(server) as connection:
        found = {
            each.name: each.columns for each in read_objects(connection, server, version_of(connection), {"t", "gone"})
        }
    assert (found["calling"], found["broken"]) == (("id", "n°"), ())


def test_locks(user: MariadbServer) -> None:
    """Without RELOAD tables can be locked; without both only one worker can read."""
    run(user, "", "REVOKE RELOAD ON *.* FROM 'crmbackup'@'%'")
    source(user).preflight(2)
    run(user, "", "REVOKE LOCK TABLES ON crm.* FROM 'crmbackup'@'%'")
    assert refused(user).hint == "GRANT RELOAD ON *.* TO 'crmbackup'@'%';"
    assert source(user).preflight(1) == 1


def test_accounts_need_a_right_of_their_own(user: MariadbServer) -> None:
    error = refused(user, users=True)
    assert error.hint == "GRANT SELECT ON `mysql`.* TO 'crmbackup'@'%';"
    run(user, "", error.hint)
    source(user, users=True).preflight(2)


def test_rights_through_a_role_count(user: MariadbServer) -> None:
    run(
        user,
        "",
        "REVOKE ALL PRIVILEGES, GRANT OPTION FROM 'crmbackup'@'%'",
        "CREATE OR REPLACE ROLE backups",
        "GRANT SELECT, SHOW VIEW, TRIGGER, EVENT, RELOAD ON *.* TO backups",
        "GRANT backups TO 'crmbackup'@'%'",
        "GRANT USAGE ON crm.* TO 'crmbackup'@'%'",
        "SET DEFAULT ROLE backups FOR 'crmbackup'@'%'",
    )
    try:
        source(user).preflight(2)
        run(user, "crm", "DROP TABLE t")
        with pytest.raises(SourceEmpty):
            source(user).preflight(2)
    finally:
        run(user, "", "DROP ROLE backups")
