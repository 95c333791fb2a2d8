"""Objects run as their definers on a new server too, and those that did not work in the source are no difference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from crmbackup.core.errors import TargetDenied
from crmbackup.core.events import Warned
from crmbackup.engines.base import RestoreOptions
from crmbackup.engines.mysql.engine import MysqlSource, Settings
from crmbackup.engines.mysql.target import MysqlTarget, MysqlTargetEngine
from crmbackup.operations.workers import ProcessWorkers
from tests.chains import Chain
from tests.mariadb import MariadbServer, mariadb
from tests.support_mysql import fill, rows_of

__all__ = ["mariadb"]

#: The name of the database holds what patterns of grants give a meaning to.
BACK = "back_100%25"
APP, GONE = "app@localhost", "gone@localhost"
SETUP = (
    "CREATE TABLE t (id INT)",
    "CREATE TABLE short_lived (id INT)",
    "INSERT INTO t VALUES (1)",
    f"CREATE DEFINER={APP} FUNCTION one() RETURNS INT READS SQL DATA RETURN (SELECT count(*) FROM t)",
    f"CREATE DEFINER={APP} VIEW calls AS SELECT id, one() AS n FROM t",
    f"CREATE DEFINER={APP} VIEW plain AS SELECT id FROM t",
    f"CREATE DEFINER={APP} TRIGGER tr BEFORE INSERT ON t FOR EACH ROW SET NEW.id = NEW.id + one()",
    f"CREATE DEFINER={GONE} VIEW of_gone AS SELECT id FROM t",
    f"CREATE DEFINER={GONE} FUNCTION two() RETURNS INT DETERMINISTIC RETURN 2",
    f"CREATE DEFINER={GONE} VIEW calls_of_gone AS SELECT two() AS n",
    "CREATE VIEW lost AS SELECT id FROM short_lived",
    "ALTER TABLE t ADD was INT",
    "CREATE VIEW no_column AS SELECT was FROM t",
    "ALTER TABLE t DROP was",
    "DROP TABLE short_lived",
)


@pytest.fixture
def server(mariadb: MariadbServer) -> Iterator[MariadbServer]:
    for account in (APP, GONE):
        rows_of(mariadb, "", f"CREATE OR REPLACE USER {account}")
        rows_of(mariadb, "", f"GRANT ALL ON crm.* TO {account}")
    fill(mariadb, "crm", SETUP)
    rows_of(mariadb, "", f"DROP USER {GONE}")
    yield mariadb
    rows_of(mariadb, "", f"DROP USER IF EXISTS {APP}, {GONE}, few@localhost")
    for name in ("crm", "back_100%"):
        mariadb.drop_database(name)


def target(server: MariadbServer, user: str = "root", **options: str) -> MysqlTarget:
    return MysqlTargetEngine(None, None).target(server.url(BACK, user), RestoreOptions(create=True, **options))


@pytest.mark.parametrize("users", [False, True])
def test_what_runs_as_its_definer_does_so_on_a_server_that_had_no_such_account(
    server: MariadbServer, tmp_path: Path, users: bool
) -> None:
    """Whether the account comes along with its rights, or is made locked."""
    with ProcessWorkers(1) as workers:
        chain = Chain(lambda: MysqlSource(server.server("crm"), Settings(users=users)), tmp_path, workers)
        taken = chain.take()
        rows_of(server, "", f"DROP USER {APP}")
        # As a drill does, but on a server that lives on.
        where = MysqlTarget(server.server("back_100%"), RestoreOptions(create=True, roles="create"), neutral=not users)
        chain.restore(taken, where)
        warned = sorted(event.text.split(" cannot")[0] for event in chain.events if isinstance(event, Warned))
        assert set(warned) <= {"view calls_of_gone", "view no_column"}  # neither worked in the source
        found = where.verify(workers, taken.image.tables, taken.info.properties, lambda _: None)
    if not users:
        assert [check for check in found.checks if not check.ok] == []
        assert found.schema == taken.info.schema
        (objects,) = [check.detail for check in found.checks if check.name == "objects"]
        assert "view no_column" in objects
    assert where.query("SELECT n FROM calls") == 1
    with server.connect("back_100%") as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (5)")
        cursor.execute("SELECT id FROM plain ORDER BY id")
        assert cursor.fetchall() == ((1,), (6,))
    elsewhere = rows_of(server, "", f"SHOW GRANTS FOR {APP}")
    assert all("back\\_100\\%" in grant or "USAGE" in grant for (grant,) in elsewhere)


def test_who_may_not_make_objects_for_others_is_told_before_rows_are_loaded(
    server: MariadbServer, tmp_path: Path
) -> None:
    rows_of(server, "", "CREATE OR REPLACE USER few@localhost")
    rows_of(server, "", r"GRANT ALL ON `back\_100\%`.* TO few@localhost")
    with ProcessWorkers(1) as workers:
        chain = Chain(lambda: MysqlSource(server.server("crm"), Settings()), tmp_path, workers)
        taken = chain.take()
        with pytest.raises(TargetDenied) as error:
            target(server, "few").describe(taken.image.layout)
        assert APP in error.value.why
        assert error.value.hint.startswith("grant SET USER ON *.*")
        rows_of(server, "", "GRANT SET USER ON *.* TO few@localhost")
        target(server, "few").describe(taken.image.layout)
