"""A restored file has its name only when it is whole, durable and nobody's database is in the way."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path

import pytest

from crmbackup.core.errors import DiskFull, LocalError, ObjectDamaged, TargetExists, VerificationFailed
from crmbackup.engines.base import Restore
from crmbackup.engines.sqlite.target import SqliteTarget
from crmbackup.operations.workers import ProcessWorkers
from tests.support_sqlite import Chain, Taken, connect, error_of, execute, image_of, running


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    path = tmp_path / "crm.db"
    execute(path, "CREATE TABLE t(id INTEGER PRIMARY KEY, name)", "INSERT INTO t VALUES(1, 'one'), (2, 'two')")
    with ProcessWorkers(2) as workers:
        yield Chain(path, tmp_path / "scratch", workers)


@pytest.fixture
def taken(chain: Chain) -> Taken:
    chain.scratch.mkdir()
    return chain.take()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "place"
    place.mkdir()
    return place


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_a_new_file_is_private(chain: Chain, taken: Taken, place: Path) -> None:
    target = chain.restore(taken, place / "new.db", overwrite=False)
    assert names(place) == ["new.db"]
    assert target.read_bytes() == image_of(chain.path)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_an_existing_file_is_not_replaced_unless_told(chain: Chain, taken: Taken, place: Path) -> None:
    target = place / "old.db"
    target.write_text("mine")
    error = error_of(lambda: chain.restore(taken, target, overwrite=False))
    assert isinstance(error, TargetExists)
    assert "--overwrite" in error.hint
    assert target.read_text() == "mine"
    chain.restore(taken, target)
    assert target.read_bytes() == image_of(chain.path)


def test_what_is_no_file_is_never_replaced(chain: Chain, taken: Taken, place: Path) -> None:
    """As --to /dev/null --overwrite would, for root."""
    target = place / "pipe"
    os.mkfifo(target)
    for refuses in (lambda: chain.restore(taken, target), lambda: SqliteTarget(target, overwrite=True).check()):
        error = error_of(refuses)
        assert isinstance(error, TargetExists)
        assert "not a file" in error.what
    assert stat.S_ISFIFO(target.stat().st_mode)
    assert names(place) == ["pipe"]


def test_a_replaced_file_keeps_owner_and_rights(chain: Chain, taken: Taken, place: Path) -> None:
    target = place / "old.db"
    target.write_text("mine")
    if os.geteuid() == 0:
        os.chown(target, 65534, 65534)
    target.chmod(0o640)
    before = target.stat()
    chain.restore(taken, target)
    after = target.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)


def test_side_files_of_the_database_before_are_removed(chain: Chain, taken: Taken, place: Path) -> None:
    """A stale log would be played into the restored file."""
    target = place / "old.db"
    execute(target, "PRAGMA journal_mode = WAL", "CREATE TABLE other(a)", "INSERT INTO other VALUES(1)")
    (place / "old.db-journal").write_bytes(b"stale")
    assert (place / "old.db-wal").stat().st_size
    chain.restore(taken, target)
    assert names(place) == ["old.db"]
    assert image_of(target) == image_of(chain.path)


def test_what_a_symbolic_link_leads_to_is_replaced(chain: Chain, taken: Taken, place: Path) -> None:
    (place / "data").mkdir()
    real, link = place / "data" / "real.db", place / "link.db"
    real.write_text("mine")
    (place / "data" / "real.db-wal").write_text("stale")
    link.symlink_to(real)
    chain.restore(taken, link)
    assert link.is_symlink()
    assert names(place / "data") == ["real.db"]
    assert real.read_bytes() == image_of(chain.path)


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_database_in_use_is_not_replaced(chain: Chain, taken: Taken, place: Path, mode: str) -> None:
    target = place / "old.db"
    execute(target, f"PRAGMA journal_mode = {mode}", "CREATE TABLE other(a)")
    before = image_of(target)
    with running(use, target, place / "ready"):
        deadline = time.monotonic() + 20
        while not (place / "ready").exists():
            assert time.monotonic() < deadline
        error = error_of(lambda: chain.restore(taken, target))
    assert isinstance(error, LocalError)
    assert "in use" in str(error)
    assert "stop" in error.hint
    assert image_of(target) == before
    assert not [name for name in names(place) if "restoring" in name]


def use(path: Path, ready: Path) -> None:
    with closing(connect(path)) as db:
        if db.pragma("journal_mode") == "delete":
            db.execute("BEGIN")
        db.execute("SELECT count(*) FROM other").fetchall()
        ready.touch()
        signal.pause()


def test_a_directory_in_the_way(chain: Chain, taken: Taken, place: Path) -> None:
    assert isinstance(error_of(lambda: chain.restore(taken, place)), TargetExists)
    assert isinstance(error_of(lambda: chain.restore(taken, place / "absent" / "new.db")), LocalError)
    assert names(place) == []


def with_layout(taken: Taken, **changes: object) -> Taken:
    return replace(taken, image=replace(taken.image, layout={**taken.image.layout, **changes}))


def test_more_than_the_disk_has(chain: Chain, taken: Taken, place: Path) -> None:
    pages = 2**31
    layout = {"page_size": 65536, "page_count": pages, "extents": "AQAAAAAAAIAAAAAAAAAAAA=="}
    error = error_of(lambda: chain.restore(with_layout(taken, **layout), place / "new.db"))
    assert isinstance(error, DiskFull)
    assert names(place) == []


@pytest.mark.parametrize("damage", [lambda data: data[:-1] + b"?", lambda data: data[:-512], lambda data: b""])
def test_chunks_that_are_not_the_snapshots(
    chain: Chain, taken: Taken, place: Path, damage: Callable[[bytes], bytes]
) -> None:
    spoiled = replace(taken, chunks=(damage(taken.chunks[0]),))
    (place / "new.db").write_text("mine")
    assert isinstance(error_of(lambda: chain.restore(spoiled, place / "new.db")), VerificationFailed)
    assert names(place) == ["new.db"]
    assert (place / "new.db").read_text() == "mine"


def opened(chain: Chain, taken: Taken, target: Path) -> AbstractContextManager[Restore]:
    return SqliteTarget(target).open_restore(taken.image.layout, taken.image.digest, chain.workers, chain.events.append)


def test_a_restore_that_is_given_up_leaves_nothing(chain: Chain, taken: Taken, place: Path) -> None:
    with opened(chain, taken, place / "new.db"):
        assert len(names(place)) == 1
    assert names(place) == []


def test_a_file_that_appears_meanwhile(chain: Chain, taken: Taken, place: Path) -> None:
    target = place / "new.db"
    with opened(chain, taken, target) as restore:
        (stage,) = restore.stages()
        placed = {n: restore.place(placement, taken.chunks[n]) for n, placement in stage.items()}
        target.write_text("mine")
        assert isinstance(error_of(lambda: restore.commit(placed, chain.workers)), TargetExists)
    assert names(place) == ["new.db"]
    assert target.read_text() == "mine"


def test_a_layout_that_makes_no_sense(chain: Chain, taken: Taken, place: Path) -> None:
    assert isinstance(error_of(lambda: chain.restore(with_layout(taken, page_count=7), place / "x.db")), ObjectDamaged)
    assert names(place) == []


def test_what_a_killed_restore_left_is_removed_and_what_another_one_writes_is_not(
    chain: Chain, taken: Taken, place: Path
) -> None:
    leftover = place / ".out.db.0123abcd.restoring"
    leftover.write_bytes(bytes(100))
    with opened(chain, taken, place / "out.db"):
        assert not leftover.exists()
        (first,) = place.iterdir()
        with opened(chain, taken, place / "out.db"):
            assert first.exists()
    assert list(place.iterdir()) == []
