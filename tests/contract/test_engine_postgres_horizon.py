"""What an incremental reads and what it carries: exact whatever the source went through since the last snapshot."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from crmbackup.engines.postgres import joining
from crmbackup.engines.postgres.catalog import Listed, list_tables
from crmbackup.engines.postgres.horizon import new_since
from tests.support_postgres_snapshots import Taken
from tests.support_postgres_sources import Chain, Cluster, Connection, blocks_of, cluster_of

#: Nothing of it may come from other tables.
SMALL = "CREATE TABLE small(id int, v text); INSERT INTO small SELECT i, 'v' || i FROM generate_series(1, 50) i"
OTHER = "CREATE TABLE other AS SELECT 1 AS one"


@pytest.fixture(scope="module", params=[15, 12, 18], ids="pg{}".format)
def any_cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with cluster_of(request.param) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with cluster_of(15, {"wal_writer_delay": "10s"}) as cluster:
        yield cluster


def carried(taken: Taken) -> set[str]:
    """Tables of which nothing was read."""
    found = {table.name for table in taken.image.tables if table.carried}
    assert not found & set(taken.read)
    return found


def changed(chain: Chain, *statements: str) -> Taken:
    """What one change makes of the next snapshot."""
    chain.take()
    chain.sql(*statements)
    return chain.take()


def test_nothing_is_read_when_nothing_changed(any_cluster: Cluster) -> None:
    chain = any_cluster.chain(
        SMALL, "CREATE TABLE empty(a int)", "CREATE TABLE bare(); INSERT INTO bare DEFAULT VALUES"
    )
    first = chain.take()
    assert set(first.read) == {"public.small", "public.bare"}
    for _ in range(2):
        taken = chain.take()
        assert taken.read == {}
        assert taken.notices == ()
        assert carried(taken) == {"public.small", "public.bare"}
        assert taken.image.digest == first.image.digest


def test_one_changed_row_reads_little(any_cluster: Cluster) -> None:
    chain = any_cluster.chain(blocks_of(12_000))
    whole = chain.take().read["public.large"]
    chain.sql("UPDATE large SET v = 'changed' WHERE id = 6000")
    taken = chain.take()
    assert 0 < taken.read["public.large"] < whole / 4
    assert not carried(taken)
    assert chain.take().read == {}


def test_appended_rows_read_little(any_cluster: Cluster) -> None:
    chain = any_cluster.chain(blocks_of(12_000))
    whole = chain.take().read["public.large"]
    chain.sql("INSERT INTO large SELECT i, 'more' FROM generate_series(1, 20) i")
    assert 0 < chain.take().read["public.large"] < whole / 4


def test_a_row_that_went_away_is_noticed(any_cluster: Cluster) -> None:
    """Nothing new can be seen then, only fewer rows."""
    chain = any_cluster.chain(SMALL)
    taken = changed(chain, "DELETE FROM small WHERE id = 7")
    assert set(taken.read) == {"public.small"}


def test_rows_of_many_versions_of_a_transaction(cluster: Cluster) -> None:
    chain = cluster.chain(SMALL, OTHER)
    chain.take()
    with chain.connect(autocommit=False) as session:
        session.execute("INSERT INTO small VALUES (1000, 'outer')")
        for number in range(80):  # more than the 64 that a session's shared entry has room for
            session.execute(f"SAVEPOINT s{number}".encode())
            session.execute("INSERT INTO small VALUES (2000, 'inner')")
            session.execute(f"{'ROLLBACK TO' if number % 2 else 'RELEASE'} s{number}".encode())
        taken = chain.take()
        assert taken.content()["public.small"].total() == 50
        assert carried(taken) == {"public.other", "public.small"}
        session.commit()
    taken = chain.take()
    assert taken.content()["public.small"].total() == 50 + 1 + 40
    assert carried(taken) == {"public.other"}


def test_a_transaction_held_over_snapshots(cluster: Cluster) -> None:
    chain = cluster.chain(SMALL, OTHER)
    with chain.connect(autocommit=False) as old, chain.connect() as new:
        old.execute("INSERT INTO small VALUES (1000, 'held')")
        chain.take()
        new.execute("INSERT INTO other VALUES (2)")
        chain.take()
        chain.take()
        old.commit()
        assert chain.take().content()["public.small"].total() == 51
    assert set(chain.take().read) <= {"public.small", "public.other"}
    assert chain.take().read == {}


def test_a_prepared_transaction_held_over_snapshots(cluster: Cluster) -> None:
    chain = cluster.chain(SMALL, OTHER)
    chain.take()
    with chain.connect(autocommit=False) as session:
        session.execute("UPDATE small SET v = 'prepared' WHERE id < 5")
        session.execute("PREPARE TRANSACTION 'held'")
        session.commit()
    taken = chain.take()
    assert ("prepared transaction held", "it was not committed when the snapshot was taken") in taken.image.not_covered
    chain.take()
    chain.sql("COMMIT PREPARED 'held'")
    taken = chain.take()
    assert set(taken.read) == {"public.small"}
    assert taken.content()["public.small"][b"4\tprepared\n"] == 1


def test_new_rows_are_told_by_age(cluster: Cluster) -> None:
    """Ids are compared modulo 2^32, and may have come round."""
    with cluster.server.connect() as connection:
        now = int(connection.execute("SELECT txid_snapshot_xmax(txid_current_snapshot())").fetchone()[0])  # type: ignore[index]
        rounds, modulus, half = 3 << 32, 1 << 32, 1 << 31

        def new(xid: int, horizon: int) -> bool:
            sql = f"SELECT {new_since(horizon)} FROM (VALUES ('{xid % modulus}'::xid)) AS v(xmin)"
            row = connection.execute(sql.encode()).fetchone()
            assert row is not None
            return bool(row[0])

        for distance in (0, 1, 100, now + 50, half - 1000):  # the last two lie before the id was 0
            horizon = rounds + now - distance
            assert new(horizon, horizon)
            assert not new(horizon - 1, horizon)
            assert not new(horizon - 500, horizon)
            assert new(now - 1, horizon) == (distance > 0)
            assert new(horizon + distance // 2, horizon)
            assert not new(2, horizon), "frozen by an old version"
        assert new(now - half - 10, rounds + now - 100), "came round: may look new, never old"


@pytest.mark.parametrize("change", ["UPDATE small SET v = 'lost' WHERE id = 3", "DELETE FROM small WHERE id = 3"])
def test_a_crash_cannot_undo_what_a_snapshot_showed(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Commits that wait for the disk are shown already. A crash must not bring back what they removed."""
    chain = cluster.chain(SMALL)
    with chain.connect(autocommit=False) as session:
        session.execute("SET synchronous_commit = off")
        session.execute(change.encode())  # has its id before the snapshot is begun ...

        def committing(connection: Connection) -> list[Listed]:
            session.commit()  # ... and is committed just before it is taken
            return list_tables(connection)

        monkeypatch.setattr(joining, "list_tables", committing)
        first = chain.take()
        monkeypatch.undo()
        assert first.content()["public.small"][b"3\tv3\n"] == 0
        cluster.server.crash()
    cluster.server.start()
    chain.sql("DELETE FROM small WHERE id = 4")
    assert chain.take().content()["public.small"][b"3\tv3\n"] == 0


def test_ids_that_a_crash_gave_back_are_used_again(cluster: Cluster) -> None:
    chain = cluster.chain(SMALL, OTHER)
    chain.take()
    with chain.connect() as session:
        session.execute("SET synchronous_commit = off")
        for number in range(20):
            session.execute(f"UPDATE small SET v = 'lost {number}' WHERE id = {number}".encode())
        before = chain.value("SELECT txid_snapshot_xmax(txid_current_snapshot())")
        cluster.server.crash()
    cluster.server.start()
    assert chain.value("SELECT txid_snapshot_xmax(txid_current_snapshot())") < before
    chain.sql(*(f"UPDATE small SET v = 'kept {number}' WHERE id = {number + 20}" for number in range(20)))
    taken = chain.take()
    assert set(taken.read) == {"public.small"}
    assert taken.content()["public.small"][b"21\tkept 1\n"] == 1
    assert taken.content()["public.small"][b"1\tv1\n"] == 1


def test_a_crash_between_the_commit_and_the_next_snapshot(cluster: Cluster) -> None:
    """The snapshot before the crash shows a row that is lost in it: the next one must not."""
    chain = cluster.chain(SMALL, "CREATE UNLOGGED TABLE scratch AS SELECT i FROM generate_series(1, 5) i")

    def commit_late() -> None:
        with chain.connect() as session:
            session.execute("SET synchronous_commit = off")
            session.execute("UPDATE small SET v = 'late' WHERE id = 9")

    chain.take()
    chain.take(meanwhile=commit_late)
    cluster.server.crash()
    cluster.server.start()
    taken = chain.take()
    assert taken.content()["public.small"].total() == 50
    assert taken.record("public.scratch").rows == 0


LABELS = "CREATE TYPE stage AS ENUM ('lead', 'won'); CREATE TABLE deals(s {}); INSERT INTO deals VALUES ({})"
PAIR = "CREATE TYPE pair AS (a int, b text); CREATE TABLE pairs AS SELECT ROW(1, 'x')::pair AS p"


@pytest.mark.parametrize(
    ("setup", "change", "table"),
    [
        (LABELS.format("stage", "'lead'"), "ALTER TYPE stage RENAME VALUE 'lead' TO 'new'", "deals"),
        (LABELS.format("stage[]", "'{lead,won}'"), "ALTER TYPE stage RENAME VALUE 'won' TO 'W'", "deals"),
        (
            (
                "CREATE TYPE stage AS ENUM ('lead', 'won'); CREATE DOMAIN step AS stage; CREATE TYPE crate AS (s step);"
                "CREATE TABLE deals AS SELECT ROW('lead'::stage)::crate AS s"
            ),
            "ALTER TYPE stage RENAME VALUE 'lead' TO 'new'",
            "deals",
        ),
        (PAIR, "ALTER TYPE pair RENAME ATTRIBUTE b TO c", "pairs"),
        ("CREATE TABLE t AS SELECT 'x'::varchar(10) AS v", "ALTER TABLE t ALTER v TYPE varchar(20)", "t"),
        ("CREATE TABLE t AS SELECT 'x'::varchar(10) AS v", "ALTER TABLE t ALTER v TYPE text", "t"),
        ("CREATE TABLE t AS SELECT 1 AS v", "ALTER TABLE t ADD COLUMN w text DEFAULT 'stored'", "t"),
        ("CREATE TABLE t AS SELECT 1 AS v", "ALTER TABLE t ADD COLUMN w text", "t"),
        ("CREATE TABLE t AS SELECT 1 AS v, 2 AS w", "ALTER TABLE t DROP COLUMN w", "t"),
        ("CREATE TABLE t AS SELECT 1 AS v", "ALTER TABLE t RENAME v TO w", "t"),
    ],
)
def test_what_changes_the_text_of_rows_in_place(cluster: Cluster, setup: str, change: str, table: str) -> None:
    """The file stays, the rows stay, and what COPY gives for them does not."""
    chain = cluster.chain(setup, OTHER)
    chain.take()
    node = chain.value(f"SELECT pg_relation_filenode('{table}')")
    chain.sql(change)
    assert chain.value(f"SELECT pg_relation_filenode('{table}')") == node
    taken = chain.take()
    assert taken.notices == (f"table public.{table} is read as a whole: its definition changed",)
    assert carried(taken) == {"public.other"}


@pytest.mark.parametrize("change", ["TRUNCATE small", "VACUUM FULL small", "ALTER TABLE small ALTER id TYPE bigint"])
def test_rewritten_tables_are_read(cluster: Cluster, change: str) -> None:
    chain = cluster.chain(SMALL, OTHER)
    taken = changed(chain, change, "INSERT INTO small VALUES (1, 'after')")
    assert taken.notices == (
        "table public.small is read as a whole: it was rewritten (TRUNCATE, VACUUM FULL, CLUSTER or ALTER)",
    )
    assert carried(taken) == {"public.other"}


def test_tables_that_got_other_names(cluster: Cluster) -> None:
    chain = cluster.chain(SMALL, OTHER, "CREATE TABLE twin AS TABLE small", "UPDATE twin SET v = 'twin'")
    taken = changed(
        chain,
        "ALTER TABLE small RENAME TO between",
        "ALTER TABLE twin RENAME TO small",
        "ALTER TABLE between RENAME TO twin",
    )
    assert set(taken.read) == {"public.small", "public.twin"}
    assert [text.rpartition(": ")[2] for text in taken.notices] == ["it was renamed", "it was renamed"]
    taken = changed(
        chain, "ALTER TABLE other RENAME TO another", "DROP TABLE twin", "CREATE TABLE twin(id int, v text)"
    )
    assert set(taken.read) == {"public.another"}
    taken = changed(chain, "CREATE SCHEMA elsewhere", "ALTER TABLE another SET SCHEMA elsewhere")
    assert set(taken.read) == {"elsewhere.another"}


def test_a_table_that_was_made_again_in_the_same_place(cluster: Cluster) -> None:
    chain = cluster.chain(SMALL, OTHER)
    taken = changed(chain, "DROP TABLE small", SMALL, "UPDATE small SET v = 'again' WHERE id = 1")
    assert set(taken.read) == {"public.small"}


def test_partitions_that_leave_and_come_back(cluster: Cluster) -> None:
    chain = cluster.chain(
        "CREATE TABLE part(id int, v text) PARTITION BY RANGE (id)",
        "CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (10) TO (20)",
        "INSERT INTO part SELECT i, 'p' FROM generate_series(0, 19) i",
    )
    taken = changed(chain, "ALTER TABLE part DETACH PARTITION part_1", "INSERT INTO part_1 VALUES (99, 'alone')")
    assert set(taken.read) == {"public.part_1"}
    chain.sql(
        "DELETE FROM part_1 WHERE id = 99", "ALTER TABLE part ATTACH PARTITION part_1 FOR VALUES FROM (0) TO (10)"
    )
    taken = chain.take()
    assert carried(taken) == {"public.part_2"}
    assert chain.take().read == {}


def test_names_of_other_objects_in_rows_are_always_read(cluster: Cluster) -> None:
    chain = cluster.chain(
        OTHER, "CREATE TABLE names(c regclass, p regprocedure[])", "INSERT INTO names VALUES ('other', '{now()}')"
    )
    taken = changed(chain, "ALTER TABLE other RENAME TO renamed")
    assert "public.names" in taken.read
    assert taken.content()["public.names"] == {b"public.renamed\t{now()}\n": 1}
    assert any(
        text.startswith("table public.names is read as a whole: its columns of type reg") for text in taken.notices
    )


def test_an_incremental_of_another_version_of_memory(cluster: Cluster) -> None:
    chain = cluster.chain(SMALL)
    damages = {
        "truncated": lambda data: data[: len(data) // 2],
        "empty": lambda data: b"",
        "garbage": lambda data: bytes(range(256)) * 10,
        "one digit": lambda data: data.replace(b'"standby": false', b'"standby": False'),
        "another": lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],
    }
    for name, damage in damages.items():
        path = chain.take(full=True).directory / "postgres.json"
        data = path.read_bytes()
        assert damage(data) != data, name
        path.write_bytes(damage(data))
        taken = chain.snapshots.take()
        assert taken.full_because.startswith("this host's memory of the last snapshot"), name
        assert taken.content() == taken.seen
        assert set(taken.read) == {"public.small"}
    (chain.take(full=True).directory / "postgres.json").unlink()
    assert "cannot be read" in chain.snapshots.take().full_because


def test_the_database_was_made_anew(cluster: Cluster) -> None:
    chain = cluster.chain(SMALL)
    chain.take()
    cluster.server.drop_database(chain.name)
    cluster.server.create_database(chain.name)
    chain.sql(SMALL, "UPDATE small SET v = 'anew' WHERE id = 1")
    assert chain.take().notices == ("all tables are read: the database was made anew",)


def test_rows_that_are_only_locked_are_as_they_were(cluster: Cluster) -> None:
    chain = cluster.chain(SMALL)
    chain.take()
    with chain.connect(autocommit=False) as session:
        session.execute("SELECT 1 FROM small FOR UPDATE")
        assert chain.take().read == {}
