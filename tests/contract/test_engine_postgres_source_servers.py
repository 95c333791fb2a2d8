"""The server itself is another than at the last snapshot: a standby, a promoted one, a copy, ids that came round."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from crmbackup.engines.private import server_account
from tests.postgres import TestServer, server_programs
from tests.support_postgres_sources import Chain, Cluster, cluster_of, copy_of

SMALL = "CREATE TABLE small(id int, v text); INSERT INTO small SELECT i, 'v' || i FROM generate_series(1, 50) i"
OTHER = "CREATE TABLE other AS SELECT 1 AS one"
ON_PRIMARY = "the rows of unlogged tables are on the primary server only; they come back empty"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with cluster_of(15) as cluster:
        yield cluster


def caught_up(chain: Chain, standby: TestServer) -> None:
    """Wait until all of the primary is in the standby."""
    at = chain.value("SELECT pg_current_wal_lsn()::text")
    deadline = time.monotonic() + 30
    with standby.connect() as connection:
        while True:
            row = connection.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (at,)).fetchone()
            if row and row[0]:
                return
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_copy_that_went_its_own_way_is_noticed(cluster: Cluster) -> None:
    """It has the same identifier, timeline, database, tables and files; its log and its ids went on as well."""
    chain = cluster.chain(SMALL, OTHER)
    chain.take()
    with copy_of(cluster.server) as copy:
        chain.sql("UPDATE small SET v = 'in the original' WHERE id = 1")
        chain.take()
        chain.move(copy)
        for number in range(60):
            chain.sql(f"UPDATE small SET v = 'in the copy' WHERE id = {number + 2}")
        chain.sql("SELECT pg_switch_wal()")
        taken = chain.take()
        assert taken.notices == ("all tables are read: it is a copy of the cluster that went its own way",)
        assert set(taken.read) == {"public.small", "public.other"}
        assert chain.take().read == {}


def test_a_copy_that_is_behind_is_noticed(cluster: Cluster) -> None:
    chain = cluster.chain(SMALL)
    with copy_of(cluster.server) as copy:
        chain.take()
        chain.move(copy)
        assert chain.take().notices == ("all tables are read: the server went back in time",)


def test_another_cluster_is_noticed(cluster: Cluster) -> None:
    chain = cluster.chain(SMALL)
    chain.take()
    with cluster_of(15) as second:
        twin = second.chain(SMALL, name=chain.name)
        chain.move(twin.server)
        assert chain.take().notices == ("all tables are read: it is another database cluster",)


def test_a_standby_and_its_promotion(cluster: Cluster) -> None:
    chain = cluster.chain(SMALL, OTHER, "CREATE UNLOGGED TABLE scratch AS SELECT i FROM generate_series(1, 9) i")
    chain.sql("CREATE UNLOGGED SEQUENCE counter", "SELECT nextval('counter')")
    assert chain.take().record("public.scratch").rows == 9
    on_primary = chain.snapshots.last
    with copy_of(cluster.server, standby=True) as standby:
        chain.sql("INSERT INTO small VALUES (60, 'x')")
        caught_up(chain, standby)
        chain.move(standby)
        for _ in range(2):
            taken = chain.take()
            assert taken.info.properties["standby"]
            assert taken.notices == ("all tables are read: no transaction can be marked on a standby",)
            assert set(taken.read) == {"public.small", "public.other"}
            assert ("unlogged table public.scratch", ON_PRIMARY) in taken.image.not_covered
            assert [name for name, _ in taken.image.not_covered if "counter" in name] == ["sequence public.counter"]
        with standby.connect() as connection:
            connection.execute("SELECT pg_promote(true, 60)")
        # Right after: the control file still tells the timeline of the last checkpoint.
        chain.snapshots.last = on_primary
        taken = chain.take()
        assert taken.notices == ("all tables are read: the server went over to timeline 2 (failover or recovery)",)
        assert set(taken.read) == {"public.small", "public.other"}
        assert chain.take().read == {}


def test_transaction_ids_come_round() -> None:
    """The chain of snapshots crosses the point where the 32 bits of an id begin again."""
    with cluster_of(15) as cluster:
        server = cluster.server
        for database in ("postgres", "template1"):
            with server.connect(database) as connection:
                connection.execute("VACUUM (FREEZE)")  # else the catalogs' own rows lie in the future
        server.stop()
        start = (1 << 32) - 300
        account = server_account()
        run = {"user": account.uid, "group": account.gid} if account else {}
        subprocess.run(
            [server_programs(15) / "pg_resetwal", "-x", str(start), "-u", str(start - 1000), "-D", server.directory],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd="/",
            **run,
        )
        segment = server.directory / "pg_xact" / f"{start // (1 << 20):04X}"
        subprocess.run(
            ["dd", "if=/dev/zero", f"of={segment}", "bs=256k", "count=1", "status=none"], check=True, cwd="/", **run
        )
        server.start()
        chain = cluster.chain(SMALL, OTHER)
        before = after = 0
        for number in range(8):
            chain.sql(*(f"UPDATE small SET v = 'round {number}' WHERE id = {i}" for i in range(number + 1)))
            taken = chain.take()
            assert taken.notices == ()
            assert set(taken.read) == {"public.small"} if number else {"public.small", "public.other"}
            assert chain.take().read == {}
            at = int(str(taken.info.position["next_xid"]))
            before, after = before + (at < 1 << 32), after + (at > 1 << 32)
        assert before > 2
        assert after > 2
