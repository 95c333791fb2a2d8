"""Databases of MySQL and MariaDB come back as they were: all of it, parts of it, or nothing at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from crmbackup.core.errors import (
    ObjectDamaged,
    TargetDenied,
    TargetError,
    TargetExists,
    UsageError,
    VerificationFailed,
)
from crmbackup.core.events import Notice, Warned
from crmbackup.engines.base import Restore, RestoreOptions, Verification
from crmbackup.engines.mysql.connection import quoted
from crmbackup.engines.mysql.engine import MysqlSource, Settings
from crmbackup.engines.mysql.restore_clean import MARK
from crmbackup.engines.mysql.target import MysqlTarget, MysqlTargetEngine
from crmbackup.operations.workers import ProcessWorkers
from tests.chains import Chain, Taken
from tests.mariadb import MariadbServer, mariadb  # noqa: F401 - a fixture
from tests.support_mysql import OTHER, checksums, fill, rows_of

ENGINE = MysqlTargetEngine(None, None)


@pytest.fixture(scope="module")
def chain(mariadb: MariadbServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:  # noqa: F811
    """Snapshots of the database `crm`, which holds every trap."""
    fill(mariadb, "crm")
    server = mariadb.server("crm")
    with ProcessWorkers(2) as workers:
        yield Chain(lambda: MysqlSource(server, Settings()), tmp_path_factory.mktemp("chain"), workers)


@pytest.fixture(scope="module")
def taken(chain: Chain) -> Taken:
    return chain.take()


@pytest.fixture
def server(mariadb: MariadbServer) -> Iterator[MariadbServer]:  # noqa: F811
    """With the database `back` gone before and after."""
    mariadb.drop_database("back")
    yield mariadb
    mariadb.drop_database("back")


def target(server: MariadbServer, name: str = "back", **options: Any) -> MysqlTarget:
    return ENGINE.target(server.url(name), RestoreOptions(**options))


def verified(chain: Chain, taken: Taken, where: MysqlTarget) -> Verification:
    return where.verify(chain.workers, taken.image.tables, taken.info.properties, lambda _: None)


def databases(server: MariadbServer) -> set[str]:
    return {name for (name,) in rows_of(server, "", "SHOW DATABASES")}


def tables(server: MariadbServer, name: str = "back") -> list[str]:
    return [row[0] for row in rows_of(server, name, "SHOW TABLES")]


@pytest.mark.parametrize("local_infile", [True, False])
def test_everything_comes_back_under_another_name(
    server: MariadbServer, chain: Chain, taken: Taken, local_infile: bool
) -> None:
    rows_of(server, "", f"SET GLOBAL local_infile = {int(local_infile)}")
    where = target(server, create=True)
    try:
        chain.restore(taken, where)
    finally:
        rows_of(server, "", "SET GLOBAL local_infile = 1")
    assert not [event for event in chain.events if isinstance(event, Warned)]
    assert any("nightly" in event.text for event in chain.events if isinstance(event, Notice))
    assert checksums(server, "back") == checksums(server, "crm")
    found = verified(chain, taken, where)
    assert [check.name for check in found.checks if not check.ok] == []
    assert list(found.tables) == list(taken.image.tables)
    assert found.schema == taken.info.schema
    # What was so in the source, and may not be lost on the way: invisible columns, history, counters, order, silence.
    assert rows_of(server, "back", "SELECT id, secret FROM contacts") == [("a-1", 7), ("a-2", 7)]
    history = "SELECT id, v, row_start, row_end FROM old_rows FOR SYSTEM_TIME ALL ORDER BY row_start, id"
    assert rows_of(server, "back", history) == rows_of(server, "crm", history)
    assert rows_of(server, "back", "SELECT NEXTVAL(numbers)") == [(150,)]
    assert rows_of(server, "back", "SELECT NEXTVAL(backwards)") == [(-1,)]
    assert rows_of(server, "back", "INSERT INTO counted (a) VALUES (1) RETURNING n") == [(1002,)]
    assert rows_of(server, "back", "INSERT INTO accounts (id, name) VALUES (9, ' x ') RETURNING name") == [("x!",)]
    assert rows_of(server, "back", "SELECT status FROM information_schema.events WHERE event_schema = 'back'") == [
        ("DISABLED",)
    ]
    assert rows_of(server, "back", "SELECT twice FROM z_early WHERE id = 2") == [(4,)]


def test_a_database_that_is_there_is_never_touched(server: MariadbServer, chain: Chain, taken: Taken) -> None:
    server.create_database("back")
    rows_of(server, "back", "CREATE PROCEDURE mine() SELECT 1")
    for options, why in (({}, "procedure"), ({"create": True}, "")):
        with pytest.raises(TargetExists) as error:
            chain.restore(taken, target(server, **options))
        assert why in error.value.why
    assert tables(server) == []
    for options in ({"overwrite": True}, {"create": True, "content": "data"}):
        with pytest.raises(UsageError):
            target(server, **options)
    with pytest.raises(UsageError):
        target(server, "mysql")
    with pytest.raises(UsageError) as usage:
        target(server, "back2", create=True, tables=("contatcs",)).describe(taken.image.layout)
    assert "contacts" in usage.value.why


class GaveUpError(Exception):
    """The test had enough."""


def give_up(_: Restore, placed: int) -> None:
    if placed > 4:
        raise GaveUpError


@pytest.mark.parametrize("create", [True, False])
def test_what_ends_early_leaves_nothing(server: MariadbServer, chain: Chain, taken: Taken, create: bool) -> None:
    if not create:
        server.create_database("back", charset="latin1")
    with pytest.raises(GaveUpError):
        chain.restore(taken, target(server, create=create), spoil=give_up)
    if create:
        assert "back" not in databases(server)
    else:
        assert tables(server) == []
        assert rows_of(server, "back", "SELECT @@character_set_database") == [("latin1",)]
    chain.restore(taken, target(server, create=create))
    assert checksums(server, "back") == checksums(server, "crm")


def test_a_killed_restore_is_removed_by_the_next_one(server: MariadbServer, chain: Chain, taken: Taken) -> None:
    where = target(server, create=True)
    with (
        suppress(GaveUpError),
        where.open_restore(taken.image.layout, taken.image.digest, chain.workers, chain.events.append) as restore,
    ):
        stages = restore.stages()
        for _ in range(2):
            for number, placement in next(stages).items():
                restore.place(placement, taken.chunks[number])
        # As a kill leaves it: whoever looks must see that it is not whole, and one at work is not disturbed.
        assert MARK in tables(server)
        with pytest.raises(TargetError, match="at work"):
            target(server, create=True).check()
        with pytest.raises(TargetError, match="at work"):
            target(server).check()
        restore._committed = True
        raise GaveUpError
    assert target(server, create=True).check()
    assert target(server).check()
    chain.restore(taken, target(server))
    assert any("not finished" in event.text for event in chain.events if isinstance(event, Notice))
    assert MARK not in tables(server)
    assert checksums(server, "back") == checksums(server, "crm")


def test_tables_by_name_come_without_what_needs_others(server: MariadbServer, chain: Chain, taken: Taken) -> None:
    where = target(server, create=True, tables=("accounts", OTHER))
    assert "2 tables with 7 rows" in where.describe(taken.image.layout)
    chain.restore(taken, where)
    assert sorted(tables(server)) == ["accounts", OTHER, "numbers"]
    assert [row[0] for row in rows_of(server, "back", "SHOW TRIGGERS")] == ["first", "second"]
    server.drop_database("back")
    chain.restore(taken, target(server, create=True, tables=("contacts",)))
    assert [event.text for event in chain.events if isinstance(event, Warned)] == [
        "left out, since the other table is not restored: foreign keys contacts.of_account"
    ]
    assert "FOREIGN KEY" not in rows_of(server, "back", "SHOW CREATE TABLE contacts")[0][1]


def test_rows_come_into_definitions_that_were_restored_before(
    server: MariadbServer, chain: Chain, taken: Taken
) -> None:
    chain.restore(taken, target(server, create=True, content="schema"))
    assert rows_of(server, "back", "SELECT count(*) FROM accounts") == [(0,)]
    before = rows_of(server, "back", "SHOW TRIGGERS")
    data = target(server, content="data")
    with pytest.raises(GaveUpError):
        chain.restore(taken, data, spoil=give_up)
    for name in ("accounts", "contacts", "moving"):
        assert rows_of(server, "back", f"SELECT count(*) FROM {name}") == [(0,)]
    assert [row[:3] for row in rows_of(server, "back", "SHOW TRIGGERS")] == [row[:3] for row in before]
    chain.restore(taken, data)
    assert checksums(server, "back") == checksums(server, "crm")
    found = verified(chain, taken, data)
    assert list(found.tables) == list(taken.image.tables)
    assert found.schema["objects"] == taken.info.schema["objects"]
    assert rows_of(server, "back", "SELECT NEXTVAL(numbers)") == [(150,)]
    assert rows_of(server, "back", "INSERT INTO counted (a) VALUES (1) RETURNING n") == [(1002,)]
    with pytest.raises(TargetExists, match="not empty"):
        chain.restore(taken, data)


def test_a_value_that_the_server_cuts_in_silence_fails_the_restore(
    server: MariadbServer, chain: Chain, taken: Taken
) -> None:
    chain.restore(taken, target(server, create=True, content="schema"))
    rows_of(server, "back", f"ALTER TABLE {quoted(OTHER)} MODIFY {quoted('ключ')} ENUM('y')")
    with pytest.raises(VerificationFailed) as error:
        chain.restore(taken, target(server, content="data"))
    assert "ключ" in error.value.why
    assert rows_of(server, "back", f"SELECT count(*) FROM {quoted(OTHER)}") == [(0,)]
    # A row that is skipped counts as well.
    rows_of(
        server, "back", f"ALTER TABLE {quoted(OTHER)} MODIFY {quoted('ключ')} TEXT, ADD UNIQUE KEY u ({quoted(OTHER)})"
    )
    with pytest.raises(VerificationFailed, match="took 2 rows of a chunk of 3"):
        chain.restore(taken, target(server, content="data"))
    assert MARK not in tables(server)
    rows_of(server, "back", f"DROP TABLE {quoted(OTHER)}")
    with pytest.raises(TargetError, match="has no table"):
        chain.restore(taken, target(server, content="data"))


def test_a_row_longer_than_a_packet_is_loaded_and_what_cannot_be_is_told(server: MariadbServer, tmp_path: Path) -> None:
    fill(
        server,
        "long",
        ("CREATE TABLE t (id INT PRIMARY KEY, b LONGBLOB)", "INSERT INTO t VALUES (1, REPEAT('\\t\\\\', 4000000))"),
    )
    source = server.server("long")
    with ProcessWorkers(1) as workers:
        chain = Chain(lambda: MysqlSource(source, Settings()), tmp_path, workers)
        taken = chain.take()
        try:
            rows_of(server, "", "SET GLOBAL max_allowed_packet = 1048576")
            chain.restore(taken, target(server, create=True))
            rows_of(server, "", "SET GLOBAL local_infile = 0")
            with pytest.raises(TargetError) as error:
                chain.restore(taken, target(server, "back2", create=True))
        finally:
            rows_of(server, "", "SET GLOBAL max_allowed_packet = 1073741824")
            rows_of(server, "", "SET GLOBAL local_infile = 1")
    assert "max_allowed_packet" in error.value.why + error.value.hint
    assert "back2" not in databases(server)
    assert checksums(server, "back") == checksums(server, "long")
    server.drop_database("long")


def test_a_layout_that_was_changed_is_refused(server: MariadbServer, chain: Chain, taken: Taken) -> None:
    with (
        pytest.raises(ObjectDamaged),
        target(server, create=True).open_restore(taken.image.layout, "0" * 64, chain.workers, chain.events.append),
    ):
        pass
    assert "back" not in databases(server)


def test_accounts_that_objects_run_as(server: MariadbServer, tmp_path: Path) -> None:
    statements = (
        "CREATE TABLE t (id INT PRIMARY KEY)",
        "CREATE USER `o'ne`@`%`",
        "CREATE USER reader@localhost IDENTIFIED BY 'hush'",
        "GRANT SELECT ON owned.t TO reader@localhost",
        "CREATE DEFINER=`o'ne`@`%` VIEW v AS SELECT id FROM t",
        "CREATE DEFINER=`o'ne`@`%` PROCEDURE p() SELECT 1",
        "DROP USER `o'ne`@`%`",
    )
    fill(server, "owned", statements)
    source = server.server("owned")
    with ProcessWorkers(1) as workers:
        chain = Chain(lambda: MysqlSource(source, Settings(users=True)), tmp_path, workers)
        taken = chain.take()
        rows_of(server, "", "DROP USER reader@localhost")
        with pytest.raises(TargetError) as error:
            chain.restore(taken, target(server, create=True))
        assert error.value.why == "o'ne@%"
        ignoring = target(server, create=True, roles="ignore")
        chain.restore(taken, ignoring)
        assert "root" in rows_of(server, "back", "SHOW CREATE VIEW v")[0][1]
        assert ignoring.query("SELECT count(*) FROM v") == 0
        server.drop_database("back")
        making = target(server, create=True, roles="create")
        assert any("o'ne@%" in line for line in making.describe(taken.image.layout))
        chain.restore(taken, making)
    locked = "SELECT JSON_VALUE(priv, '$.account_locked') FROM mysql.global_priv WHERE user = 'o''ne'"
    assert rows_of(server, "", locked) == [("1",)]
    with server.connect("back", user="reader", password="hush") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT * FROM t")
    rows_of(server, "", "DROP USER reader@localhost, `o'ne`@`%`")
    server.drop_database("owned")


def test_accounts_come_back_with_the_roles_through_which_they_have_rights(
    server: MariadbServer, tmp_path: Path
) -> None:
    fill(
        server,
        "owned",
        (
            "CREATE TABLE t (id INT PRIMARY KEY)",
            "CREATE ROLE sales",
            "CREATE ROLE everybody",
            "CREATE USER clerk@localhost IDENTIFIED BY 'hush'",
            "GRANT SELECT ON owned.* TO sales",
            "GRANT sales TO everybody",
            "GRANT everybody TO clerk@localhost",
            "SET DEFAULT ROLE everybody FOR clerk@localhost",
        ),
    )
    source = server.server("owned")
    with ProcessWorkers(1) as workers:
        chain = Chain(lambda: MysqlSource(source, Settings(users=True)), tmp_path, workers)
        taken = chain.take()
        rows_of(server, "", "DROP USER clerk@localhost")
        rows_of(server, "", "DROP ROLE sales, everybody")
        chain.restore(taken, target(server, create=True, roles="create"))
    with server.connect("back", user="clerk", password="hush") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT * FROM t")
    # Whoever made the roles has them too, and is no account of the database.
    assert rows_of(server, "", "SELECT DISTINCT user FROM mysql.roles_mapping WHERE role = 'sales' ORDER BY 1") == [
        ("everybody",),
        ("root",),
    ]
    rows_of(server, "", "DROP USER clerk@localhost")
    rows_of(server, "", "DROP ROLE sales, everybody")
    server.drop_database("owned")


def test_a_drill_writes_nothing_where_tables_have_their_files(server: MariadbServer, tmp_path: Path) -> None:
    elsewhere = server.socket / "elsewhere"
    directory = f"DATA DIRECTORY = '{elsewhere}'"
    statements = (
        f"CREATE TABLE t (id INT PRIMARY KEY COMMENT 'DATA DIRECTORY') {directory}",
        f"CREATE TABLE p (id INT) PARTITION BY RANGE (id) (PARTITION a VALUES LESS THAN MAXVALUE {directory})",
        "INSERT INTO t VALUES (1)",
    )
    fill(server, "placed", statements)
    source = server.server("placed")
    with ProcessWorkers(1) as workers:
        chain = Chain(lambda: MysqlSource(source, Settings()), tmp_path, workers)
        taken = chain.take()
        files = sorted(elsewhere.rglob("*"))
        drill = MysqlTarget(server.server("back"), RestoreOptions(create=True), neutral=True)
        chain.restore(taken, drill)
        assert sorted(elsewhere.rglob("*")) == files
        found = verified(chain, taken, drill)
        assert [check.name for check in found.checks if not check.ok] == []
        assert (list(found.tables), found.schema) == (list(taken.image.tables), taken.info.schema)
        server.drop_database("back")
        chain.restore(taken, target(server, create=True))
        assert elsewhere.joinpath("back", "t.ibd").exists()
    server.drop_database("placed")


def test_what_is_right_in_the_source_fails_no_drill(server: MariadbServer, tmp_path: Path) -> None:
    server.create_database("other")
    statements = (
        "CREATE TABLE other.groups (id INT PRIMARY KEY)",
        "INSERT INTO other.groups VALUES (1)",
        "CREATE TABLE people (id INT PRIMARY KEY, own INT, FOREIGN KEY (own) REFERENCES other.groups (id))",
        "INSERT INTO people VALUES (1, 1)",
        # It counts on its own for each value of g.
        "CREATE TABLE counted (g INT, n INT AUTO_INCREMENT, PRIMARY KEY (g, n)) ENGINE=MyISAM",
        "INSERT INTO counted (g) VALUES (1), (1), (1)",
    )
    fill(server, "far", statements)
    with ProcessWorkers(1) as workers:
        chain = Chain(lambda: MysqlSource(server.server("far"), Settings()), tmp_path, workers)
        taken = chain.take()
        server.drop_database("far")
        server.drop_database("other")
        drill = MysqlTarget(server.server("back"), RestoreOptions(create=True), neutral=True)
        chain.restore(taken, drill)
        found = {check.name: check for check in verified(chain, taken, drill).checks}
    assert [check.name for check in found.values() if not check.ok] == []
    detail = found["foreign_key_check"].detail
    assert detail.startswith("0 foreign keys hold; not looked at")
    assert "people_ibfk_1 to other.groups" in detail


def test_a_user_with_few_rights_is_told_which_one_it_lacks(server: MariadbServer, chain: Chain, taken: Taken) -> None:
    rows_of(server, "", "CREATE USER few@localhost")
    try:
        few = ENGINE.target(server.url("back", user="few"), RestoreOptions(create=True))
        with pytest.raises(TargetDenied):
            chain.restore(taken, few)
        server.create_database("back")
        rows_of(server, "", "GRANT ALL ON back.* TO few@localhost")
        few = ENGINE.target(server.url("back", user="few"), RestoreOptions())
        with pytest.raises(TargetDenied) as denied:
            chain.restore(taken, few)
        assert "--roles ignore" in denied.value.hint
        assert tables(server) == []
    finally:
        rows_of(server, "", "DROP USER few@localhost")
