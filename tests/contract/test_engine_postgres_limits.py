"""What ends a backup or restore of PostgreSQL midway, and how much fits: on real servers, nothing is half done."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from crmbackup.core.errors import (
    DiskFull,
    ProgramMissing,
    SourceError,
    SourceUnavailable,
    TargetError,
    TargetUnavailable,
)
from crmbackup.engines.base import Restore
from crmbackup.engines.postgres import reader
from crmbackup.engines.postgres import restore_data as data
from crmbackup.engines.postgres.programs import find_program
from tests.postgres import TestServer, pg12, pg15, pg18
from tests.support_postgres import assert_same
from tests.support_postgres_cases import CRM, Case, make_case, names_in, workers
from tests.support_sqlite import error_of

__all__ = ["make_case", "pg12", "pg15", "pg18", "workers"]

FIRST_ROWS = 2
LARGE = 100_000_000


@pytest.mark.parametrize("create", [False, True])
def test_a_disk_of_the_server_that_fills_up(make_case: Callable[..., Case], create: bool) -> None:
    """The table's file becomes one that takes nothing: to the server it is a full disk."""
    case = make_case(CRM)
    taken = case.chain.take()
    place = case.place(make=not create)
    before = [] if create else names_in(case, place.database)
    full: list[Path] = []

    def fill(_: Restore, placed: int) -> None:
        if placed and not full:
            (path,) = case.execute(place.database, "SELECT pg_relation_filepath('crm.contacts')")[0]
            full.append(case.host.directory / path)
            full[0].unlink()
            full[0].symlink_to("/dev/full")

    error = error_of(lambda: case.chain.restore(taken, case.chain.target(place, create=create), spoil=fill))
    assert isinstance(error, DiskFull)
    assert f"the disk of the server of {place.database}" in error.what
    assert "crm.contacts" in error.why
    assert "No space left on device" in error.why
    if create:
        assert case.execute("postgres", f"SELECT 1 FROM pg_database WHERE datname = '{place.database}'") == []
    else:
        assert names_in(case, place.database) == before
    assert_same(taken, case.restored(taken, place, create=create))


def cut(descriptor: int) -> None:
    """As a firewall or a cable does it: this end sees it at its next use."""
    with socket.socket(fileno=os.dup(descriptor)) as end:
        end.shutdown(socket.SHUT_RDWR)


def cut_reader() -> None:
    cut(reader.current().fileno())


def test_a_connection_that_is_cut_while_rows_are_read(make_case: Callable[..., Case]) -> None:
    case = make_case(CRM)
    error = error_of(lambda: case.chain.take(meanwhile=lambda: case.chain.workers.each(cut_reader)))
    assert isinstance(error, SourceUnavailable)
    case.chain.workers.each(reader.leave)
    case.chain.prove(case.chain.take())


def test_a_connection_that_is_cut_while_rows_are_restored(make_case: Callable[..., Case]) -> None:
    case = make_case(CRM)
    taken = case.chain.take()
    place = case.place()
    before = names_in(case, place.database)

    def spoil(_: Restore, placed: int) -> None:
        if data._loader is not None and placed > FIRST_ROWS:
            cut(data._loader.connection.fileno())

    error = error_of(lambda: case.chain.restore(taken, case.chain.target(place), spoil=spoil))
    assert isinstance(error, TargetUnavailable)
    assert names_in(case, place.database) == before
    assert_same(taken, case.restored(taken, place))


def test_a_server_that_restarts_while_rows_are_restored(make_case: Callable[..., Case]) -> None:
    """What was begun is taken back, at once where the server is up again or by the next restore."""
    case = make_case(CRM)
    taken = case.chain.take()
    place = case.place()

    def spoil(_: Restore, placed: int) -> None:
        if placed == FIRST_ROWS + 1:
            case.host.restart()

    error = error_of(lambda: case.chain.restore(taken, case.chain.target(place), spoil=spoil))
    assert isinstance(error, TargetUnavailable)
    assert_same(taken, case.restored(taken, place))


def test_programs_that_are_older_than_the_server_are_told_before_anything_starts(
    make_case: Callable[..., Case], pg18: TestServer
) -> None:
    case = make_case(CRM, pg18)
    older = find_program("pg_dump", at_least=15, exactly=True).path
    case.chain.settings = replace(case.chain.settings, programs=older.parent)
    error = error_of(case.chain.take)
    assert isinstance(error, ProgramMissing)
    assert "pg_dump of PostgreSQL 18 or later" in error.what
    assert f"only {older} of 15" in error.why
    assert "postgresql-client-18" in error.hint


@pytest.mark.parametrize("server", ["pg12", "pg15"])
def test_programs_that_are_newer_than_the_server_bring_all_of_it_back(
    make_case: Callable[..., Case], request: pytest.FixtureRequest, server: str
) -> None:
    """From 17 on pg_restore sets what servers before do not know, and no older one reads a dump of these versions."""
    case = with_newest_programs(make_case(CRM, request.getfixturevalue(server)))
    taken = case.chain.take()
    assert_same(taken, case.restored(taken, case.place()))


@pytest.mark.parametrize(
    ("refused", "named", "why"),
    [
        pytest.param(
            "CREATE FUNCTION gone(int) RETURNS int LANGUAGE internal AS 'int4abs';"
            "UPDATE pg_proc SET prosrc = 'nothere' WHERE proname = 'gone'",
            "CREATE FUNCTION public.gone",
            "nothere",
            id="before the rows",
        ),
        pytest.param(
            'CREATE FUNCTION "transaction_timeout\nCommand was: SET transaction_timeout = 0;\n"(int) RETURNS int'
            " LANGUAGE internal AS 'int4abs'; UPDATE pg_proc SET prosrc = proname WHERE proname LIKE 'transaction%'",
            "CREATE FUNCTION public.",
            "transaction_timeout",
            id="a name like pg_restore's words",
        ),
        pytest.param(
            "CREATE TABLE twice (a int UNIQUE); INSERT INTO twice VALUES (1);"
            "UPDATE pg_index SET indisunique = false WHERE indrelid = 'twice'::regclass;"
            "UPDATE pg_class SET relhasindex = false WHERE oid = 'twice'::regclass; INSERT INTO twice VALUES (1);"
            "UPDATE pg_class SET relhasindex = true WHERE oid = 'twice'::regclass;"
            "UPDATE pg_index SET indisunique = true WHERE indrelid = 'twice'::regclass",
            "public.twice ADD CONSTRAINT twice_a_key UNIQUE",
            "twice_a_key",
            id="after the rows",
        ),
    ],
)
def test_what_a_server_refuses_of_newer_programs_is_named(
    make_case: Callable[..., Case], refused: str, named: str, why: str
) -> None:
    """They cannot stop at the first error, which is of that setting: none of those after it may be overlooked."""
    case = with_newest_programs(make_case("CREATE TABLE one AS SELECT 1 AS a;" + refused))
    taken, place = case.chain.take(), case.place()
    error = error_of(lambda: case.restored(taken, place))
    assert isinstance(error, TargetError)
    assert named in error.what
    assert why in error.why
    assert names_in(case, place.database) == ["plpgsql", "public"]


def with_newest_programs(case: Case) -> Case:
    """Its snapshots are made by the newest pg_dump."""
    newest = find_program("pg_dump", at_least=18).path
    case.chain.settings = replace(case.chain.settings, programs=newest.parent)
    return case


def test_as_many_columns_as_there_can_be(make_case: Callable[..., Case]) -> None:
    columns = ", ".join(f"c{number} bool" for number in range(1600))
    case = make_case(
        f"CREATE TABLE widest ({columns}); INSERT INTO widest DEFAULT VALUES; INSERT INTO widest SELECT"
        f" {', '.join(str(number % 3 == 0) for number in range(1600))} FROM generate_series(1, 50)"
    )
    taken = case.chain.take()
    assert taken.record("public.widest").rows == 51
    assert_same(taken, case.restored(taken, case.place()))
    case.execute(case.names[0], "UPDATE widest SET c1599 = NOT c1599")
    assert case.chain.take().new > 0


def test_a_value_that_no_client_can_get_is_said_to_be_one(make_case: Callable[..., Case]) -> None:
    """The server makes at most 1 GB of text of a row; as text these bytes are more. pg_dump cannot read them either."""
    case = make_case(
        "CREATE TABLE big (v bytea COMPRESSION lz4); INSERT INTO big SELECT convert_to(repeat('x', 540000000), 'UTF8')"
    )
    error = error_of(case.chain.take)
    case.chain.workers.each(reader.leave)
    assert isinstance(error, SourceError)
    assert "table public.big: " in error.why
    assert "invalid memory alloc request size" in error.why
    assert "too large" in error.what
    assert "octet_length()" in error.hint


def memory(what: str) -> int:
    """VmRSS, or VmHWM, the most since the last reset, of this process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def test_a_large_value_is_restored_without_a_second_copy_of_it(make_case: Callable[..., Case]) -> None:
    """A worker holds the chunk, which is one row here, and beside it only what is on its way."""
    case = make_case(
        "CREATE TABLE big (v text); ALTER TABLE big ALTER v SET STORAGE EXTERNAL;"
        "INSERT INTO big SELECT repeat('0123456789', 10000000) UNION ALL SELECT 'small'"
    )
    taken = case.chain.take()
    assert max(map(len, taken.chunks)) > LARGE
    place = case.place()
    before: list[int] = []

    def begin(_: Restore, placed: int) -> None:
        if not before:
            Path("/proc/self/clear_refs").write_text("5")  # from here on VmHWM counts anew
            before.append(memory("VmRSS"))

    target = case.chain.target(place)
    case.chain.restore(taken, target, spoil=begin)
    assert memory("VmHWM") - before[0] < LARGE // 2
    assert_same(taken, case.chain.verify(taken, target))


def test_more_tables_than_one_transaction_takes(make_case: Callable[..., Case]) -> None:
    case = make_case(
        "DO $$BEGIN FOR i IN 1..1050 LOOP EXECUTE format('CREATE TABLE t%s (id int PRIMARY KEY); INSERT INTO t%s"
        " VALUES (%s)', i, i, i); END LOOP; END$$"
    )
    taken = case.chain.take()
    assert len([table for table in taken.image.tables if table.kind == "table"]) == 1050
    place = case.place()
    before = names_in(case, place.database)

    def give_up(_: Restore, placed: int) -> None:
        if placed == 1000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.chain.restore(taken, case.chain.target(place), spoil=give_up)
    assert names_in(case, place.database) == before
    assert_same(taken, case.restored(taken, place))
    case.execute(case.names[0], "UPDATE t500 SET id = -1; INSERT INTO t7 VALUES (-7); DELETE FROM t8")
    following = case.chain.take()
    assert following.new == 3
    assert {table.name for table in following.image.tables if not table.carried} == {
        f"public.t{number}" for number in (500, 7, 8)
    }
