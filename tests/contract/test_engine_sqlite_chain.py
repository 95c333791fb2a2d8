"""Chains of incremental snapshots: every image is exact, and no carried checksum is wrong.

CRMBACKUP_SQLITE_SEEDS says how many random databases are tried.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from crmbackup.operations.workers import ProcessWorkers
from tests.support_sqlite import Chain, Taken, connect, execute, image_of
from tests.support_sqlite_changes import Changes

SEEDS = int(os.environ.get("CRMBACKUP_SQLITE_SEEDS", "24"))
STEPS = 8
GROUPS = 8


@pytest.fixture
def workers() -> Iterator[ProcessWorkers]:
    with ProcessWorkers(2) as workers:
        yield workers


@pytest.fixture
def chain(tmp_path: Path, workers: ProcessWorkers) -> Chain:
    return Chain(tmp_path / "crm.db", tmp_path, workers)


@pytest.mark.parametrize("group", range(GROUPS))
def test_random_databases_and_random_changes(tmp_path: Path, workers: ProcessWorkers, group: int) -> None:
    for seed in range(group, SEEDS, GROUPS):
        scratch = tmp_path / str(seed)
        scratch.mkdir()
        path = scratch / "crm.db"
        changes = Changes(path, seed)
        chain = Chain(path, scratch, workers)
        done = []
        for number in range(STEPS):
            done.append(changes.step() if number else "made")
            taken = chain.take()
            try:
                chain.prove(taken, image_of(path))
                assert [table.name for table in taken.image.tables if table.unreadable] == []
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {done}") from error
        shutil.rmtree(scratch)


def fill(path: Path, *tables: str, rows: int = 20_000, step: int = 1, start: int = 1, shrinking: bool = False) -> None:
    """Tables whose b-trees have many bottom interior pages."""
    statements = []
    for table in tables:
        series = f"WITH s(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM s WHERE i < {rows - 1})"
        values = f"{start} + i * {step}, printf('row %06d of {table}', i), NULL"
        statements += [
            f"CREATE TABLE {table}(id INTEGER PRIMARY KEY, note TEXT, big BLOB)",
            f"{series} INSERT INTO {table} SELECT {values} FROM s",
        ]
    execute(path, "PRAGMA page_size = 512", *(["PRAGMA auto_vacuum = FULL"] if shrinking else []), *statements)


def carried(before: Taken, after: Taken, table: str) -> tuple[int, int]:
    """How many segments of a table are the parent's, and how many there are."""
    old = set(before.table(table).segments)
    new = after.table(table).segments
    return sum(segment in old for segment in new), len(new)


def segments_read(chain: Chain) -> int:
    """Bytes of segments that the last snapshot read by SQL."""
    return sum(
        event.total or 0
        for event in chain.events
        if getattr(event, "phase", "") == "tables" and hasattr(event, "total")
    )


@pytest.mark.parametrize(
    ("start", "step"), [(1, 1), (-(2**63), 2**49 + 7), (2**63 - 20_000, 1), (-10_000, 1), (2**56 - 10_000, 1), (0, 127)]
)
def test_keys_of_every_size_make_borders(chain: Chain, start: int, step: int) -> None:
    fill(chain.path, "t", start=start, step=step)
    taken = chain.take()
    assert len(taken.table("t").segments) > 10
    chain.prove(taken, image_of(chain.path))
    middle = taken.table("t").segments[7].high
    execute(chain.path, f"UPDATE t SET note = 'x' WHERE id = {middle}")
    again = chain.take()
    same, total = carried(taken, again, "t")
    assert same == total - 1
    chain.prove(again, image_of(chain.path))


def test_one_changed_row_costs_one_segment(chain: Chain) -> None:
    fill(chain.path, "t", "other")
    first = chain.take()
    whole = segments_read(chain)
    execute(chain.path, "UPDATE t SET note = 'changed' WHERE id = 10000")
    second = chain.take()
    assert 0 < segments_read(chain) < whole / 20
    assert second.new == 1
    assert second.table("other").carried
    assert not second.table("t").carried
    same, total = carried(first, second, "t")
    assert same == total - 1
    chain.prove(second, image_of(chain.path))


def test_nothing_changed_costs_nothing(chain: Chain) -> None:
    fill(chain.path, "t")
    first = chain.take()
    second = chain.take()
    assert second.new == 0
    assert second.table("t").carried
    assert second.image.digest == first.image.digest
    assert second.info.position == first.info.position
    chain.prove(second, image_of(chain.path))


def test_the_tail_of_a_long_row_is_a_change(chain: Chain) -> None:
    fill(chain.path, "t", rows=3000)
    execute(chain.path, "UPDATE t SET big = randomblob(100000) WHERE id IN (5, 1500)")
    first = chain.take()
    with closing(connect(chain.path)) as db, db.blob_open("main", "t", "big", 1500, True) as blob:
        blob.seek(99_990)
        blob.write(b"0123456789")
    second = chain.take()
    assert second.table("t").checksum != first.table("t").checksum
    same, total = carried(first, second, "t")
    assert (same, total) == (total - 1, total)
    chain.prove(second, image_of(chain.path))


def test_tables_that_swap_their_names_swap_their_checksums(chain: Chain) -> None:
    """Same definition, same keys, hence the same borders, and no page of either changed."""
    fill(chain.path, "one", "two")
    first = chain.take()
    assert [(s.low, s.high) for s in first.table("one").segments] == [
        (s.low, s.high) for s in first.table("two").segments
    ]
    execute(
        chain.path,
        "ALTER TABLE one RENAME TO three",
        "ALTER TABLE two RENAME TO one",
        "ALTER TABLE three RENAME TO two",
    )
    # The quotes that renaming leaves in the definitions are the same in both.
    second = chain.take()
    chain.prove(second, image_of(chain.path))
    execute(
        chain.path,
        "ALTER TABLE one RENAME TO three",
        "ALTER TABLE two RENAME TO one",
        "ALTER TABLE three RENAME TO two",
    )
    third = chain.take()
    assert third.table("one").checksum == first.table("one").checksum == second.table("two").checksum
    assert third.table("two").checksum == first.table("two").checksum == second.table("one").checksum
    chain.prove(third, image_of(chain.path))


def test_a_default_that_rows_of_old_have_only_by_definition(chain: Chain) -> None:
    fill(chain.path, "t", rows=3000)
    execute(chain.path, "ALTER TABLE t ADD COLUMN extra DEFAULT 'before'")
    first = chain.take()
    with closing(connect(chain.path)) as db:
        db.execute("PRAGMA writable_schema = ON").fetchall()
        db.execute("UPDATE sqlite_schema SET sql = replace(sql, 'before', 'behind') WHERE name = 't'").fetchall()
        db.execute("PRAGMA writable_schema = RESET").fetchall()
    second = chain.take()
    assert second.table("t").checksum != first.table("t").checksum
    chain.prove(second, image_of(chain.path))


def test_an_index_that_covers_a_table_without_rowids(chain: Chain) -> None:
    """SQLite would rather walk the index, in another order, even where it is told not to use indexes."""
    execute(
        chain.path,
        "CREATE TABLE t(a TEXT, b TEXT, n, PRIMARY KEY(a, b)) WITHOUT ROWID",
        "INSERT INTO t VALUES('a', 'z', 3), ('b', 'y', 2), ('c', 'x', 1)",
    )
    first = chain.take()
    execute(chain.path, "CREATE INDEX i ON t(n)", "CREATE UNIQUE INDEX j ON t(b, n, a)", "ANALYZE")
    second = chain.take()
    assert second.table("t").checksum == first.table("t").checksum
    chain.prove(second, image_of(chain.path))
    chain.prove(chain.take(full=True), image_of(chain.path))


def test_vacuum_moves_pages_and_changes_no_checksum(chain: Chain) -> None:
    fill(chain.path, "gone", "t", rows=5000)
    first = chain.take()
    execute(chain.path, "DROP TABLE gone", "VACUUM")
    second = chain.take()
    rows = [(s.low, s.high, s.digest) for s in second.table("t").segments]
    assert sum(s.rows for s in second.table("t").segments) == first.table("t").rows
    assert rows
    chain.prove(second, image_of(chain.path))


def test_another_page_size_makes_a_full_snapshot(chain: Chain) -> None:
    fill(chain.path, "t", rows=3000)
    chain.take()
    execute(chain.path, "PRAGMA page_size = 4096", "VACUUM")
    taken = chain.take()
    assert "page size" in taken.full_because
    chain.prove(taken, image_of(chain.path))
    chain.prove(chain.take(), image_of(chain.path))


def test_a_database_that_shrinks_and_grows(chain: Chain) -> None:
    fill(chain.path, "t", rows=6000, shrinking=True)
    chain.take()
    for statement in (
        "DELETE FROM t WHERE id > 1000",
        "INSERT INTO t(note) SELECT note || 'x' FROM t, (SELECT 1 UNION SELECT 2)",
    ):
        for _ in range(2):
            execute(chain.path, statement)
            chain.prove(chain.take(), image_of(chain.path))


def test_shadow_names_and_other_tables_of_sqlite(chain: Chain) -> None:
    execute(
        chain.path,
        "CREATE TABLE dbstat(name, path, pageno)",
        "INSERT INTO dbstat VALUES('t', '/', 1)",
        "CREATE TABLE pragma_table_list(name, type, wr, schema)",
        "CREATE TABLE rowid(rowid, _rowid_, oid)",
        "INSERT INTO rowid VALUES(1, 2, 3)",
        'CREATE TABLE "main"(a)',
        'CREATE TABLE "main.dbstat"(a)',
        'CREATE TABLE "temp"(a)',
        'CREATE TABLE "sqlite"(a INTEGER PRIMARY KEY AUTOINCREMENT)',
        "INSERT INTO sqlite VALUES(NULL)",
        "CREATE INDEX i ON rowid(oid)",
        "ANALYZE",
        "CREATE VIEW early AS SELECT * FROM late",
        "CREATE TABLE late(a)",
        "CREATE TRIGGER fired AFTER INSERT ON late BEGIN INSERT INTO rowid VALUES(new.a, 1, 1); END",
    )
    taken = chain.take()
    assert {"sqlite_sequence", "sqlite_stat1", "dbstat", "rowid", "main.dbstat"} <= {t.name for t in taken.image.tables}
    assert {table.kind for table in taken.image.tables} == {"table"}
    chain.prove(taken, image_of(chain.path))
    chain.prove(chain.take(), image_of(chain.path))


@pytest.mark.parametrize("count", [1200])
def test_very_many_tables(chain: Chain, count: int) -> None:
    with closing(connect(chain.path)) as db:
        db.execute("BEGIN")
        for number in range(count):
            db.execute(f"CREATE TABLE t{number}(id INTEGER PRIMARY KEY, name)")
            db.execute(f"INSERT INTO t{number} VALUES({number}, 'x')")
        db.execute("COMMIT")
    taken = chain.take()
    assert len(taken.image.tables) == count
    execute(chain.path, "UPDATE t7 SET name = 'y'")
    again = chain.take()
    assert [table.name for table in again.image.tables if not table.carried] == ["t7"]
    chain.prove(again, image_of(chain.path))


def test_counts_without_checksums(chain: Chain) -> None:
    fill(chain.path, "t", rows=3000)
    chain.checksums = "pages"
    taken = chain.take()
    assert (taken.table("t").rows, taken.table("t").checksum) == (3000, None)
    execute(chain.path, "DELETE FROM t WHERE id = 7")
    chain.prove(chain.take(), image_of(chain.path))
    # What was never read cannot be carried.
    chain.checksums = "tables"
    taken = chain.take()
    assert taken.table("t").checksum
    chain.prove(taken, image_of(chain.path))


def test_a_difference_in_the_restored_file_is_found_in_its_segment(chain: Chain) -> None:
    fill(chain.path, "t")
    taken = chain.take()
    target = chain.restore(taken)
    execute(target, "UPDATE t SET note = upper(note) WHERE id = 12345")
    found = next(table for table in chain.verify(taken, target).tables if table.name == "t")
    differing = [a for a, b in zip(taken.table("t").segments, found.segments, strict=True) if a != b]
    assert len(differing) == 1
    assert (differing[0].low or 0) < 12345 <= (differing[0].high or 0)
