"""What a command holds in memory hardly grows with the database: miniatures with as many chunks as large databases have.

Counted is what Python allocates in the process that drives a command, to the byte, at two sizes. Workers hold a batch.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from crmbackup.engines.sqlite import restore, snapshot
from crmbackup.operations import backup
from tests.support_repo import Site

CHUNK = 64 * 1024
#: Chunks of the two databases. In earnest one is of 1 MiB.
SMALL, LARGE = 64, 256
#: Bytes that one more chunk may cost a command in the process that drives it: what is in its manifest, some times over
#: while that is made or read. Scattered changes make manifests long, and the snapshots that are restored and checked
#: have some. As objects, one by one, chunks and extents would cost a quarter more up to three times as much.
LIMITS = {
    "full": 2_250,
    "incremental": 2_250,
    "incremental, scattered": 3_500,
    "restore": 3_000,
    "check": 1_600,
    "check --read-data": 1_700,
}


@pytest.fixture(autouse=True)
def miniature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "CHUNK_BYTES", CHUNK)
    monkeypatch.setattr(snapshot, "SCAN_BYTES", 32 * CHUNK)
    monkeypatch.setattr(restore, "_READ", 64 * CHUNK)
    monkeypatch.setattr(backup, "BATCH_BYTES", 24 * CHUNK)


def fill(site: Site, chunks: int) -> None:
    """A database of small pages, two rows each: 64 pages, and nearly one segment, for each chunk."""
    with closing(apsw.Connection(str(site.database))) as db:
        db.execute("PRAGMA page_size = 1024; PRAGMA synchronous = OFF; CREATE TABLE notes (id INTEGER PRIMARY KEY, t)")
        rows = chunks * CHUNK // 512
        query = "WITH s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < ?) SELECT i, randomblob(420) FROM s"
        db.execute(f"INSERT INTO notes {query}", (rows,))


def change(site: Site, where: str) -> None:
    with closing(apsw.Connection(str(site.database))) as db:
        db.execute(f"PRAGMA synchronous = OFF; UPDATE notes SET t = randomblob(420) WHERE {where}")


def peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def peaks(site: Site, chunks: int) -> Mapping[str, int]:
    fill(site, chunks)
    found = {"full": peak(lambda: site.backup("full"))}
    change(site, "id <= 50")
    found["incremental"] = peak(site.backup)
    change(site, "id % 20 = 0")
    found["incremental, scattered"] = peak(site.backup)
    last = site.headers()[-1]
    assert last.kind == "incremental"
    found["restore"] = peak(lambda: site.restore(last, site.root / "out.db"))
    assert (site.root / "out.db").read_bytes() == site.database.read_bytes()
    found["check"] = peak(lambda: site.check(read=False))
    found["check --read-data"] = peak(site.check)
    return found


def test_memory_hardly_grows_with_the_database(tmp_path: Path) -> None:
    # The first time also pays for what is loaded and made once.
    _, small, large = (peaks(Site.make(tmp_path / str(chunks)), chunks) for chunks in (16, SMALL, LARGE))
    cost = {name: (large[name] - size) // (LARGE - SMALL) for name, size in small.items()}
    assert cost.keys() == LIMITS.keys()
    assert not {name: each for name, each in cost.items() if each > LIMITS[name]}
