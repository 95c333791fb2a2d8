"""Databases that only their application can read are covered by their pages."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from crmbackup.core.clock import SystemClock
from crmbackup.core.errors import SourceLocked, SourceUnreadable
from crmbackup.operations.workers import ProcessWorkers
from tests.support_sqlite import Chain, connect, error_of, fill, running


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    with ProcessWorkers(2) as workers:
        yield Chain(tmp_path / "crm.db", tmp_path, workers, busy_seconds=0.3)


@pytest.fixture
def encrypted(chain: Chain) -> Chain:
    chain.encrypted = True
    chain.path.write_bytes(os.urandom(4096 * 300))
    return chain


def test_an_encrypted_database_is_covered_by_its_pages(encrypted: Chain) -> None:
    taken = encrypted.take()
    assert taken.image.tables == []
    assert taken.image.not_covered[0][0] == "all tables"
    assert "encrypted" in taken.image.not_covered[0][1]
    target = encrypted.restore(taken)
    assert target.read_bytes() == encrypted.path.read_bytes()
    found = encrypted.verify(taken, target)
    assert found.tables == []
    assert all(check.ok for check in found.checks)


def test_an_encrypted_database_has_incrementals(encrypted: Chain) -> None:
    encrypted.take()
    with encrypted.path.open("r+b") as stream:
        stream.seek(4096 * 100)
        stream.write(os.urandom(4096))
        stream.seek(0, os.SEEK_END)
        stream.write(os.urandom(1024))
    taken = encrypted.take()
    assert not taken.full_because
    assert taken.new == 1
    assert encrypted.restore(taken).read_bytes() == encrypted.path.read_bytes()


def test_an_encrypted_database_that_ends_in_half_a_page(encrypted: Chain) -> None:
    os.truncate(encrypted.path, 4096 * 300 - 100)
    assert isinstance(error_of(encrypted.take), SourceUnreadable)


def test_an_encrypted_database_with_a_log(encrypted: Chain) -> None:
    log = encrypted.path.with_name("crm.db-wal")
    log.write_bytes(b"")
    encrypted.take()
    log.write_bytes(b"frames")
    error = error_of(encrypted.take)
    assert isinstance(error, SourceUnreadable)
    assert "journal_mode" in error.hint


def test_an_encrypted_database_that_gets_a_log_meanwhile(encrypted: Chain) -> None:
    log = encrypted.path.with_name("crm.db-wal")
    error = error_of(lambda: encrypted.take(meanwhile=lambda: [log.write_bytes(b"frames")]))
    assert isinstance(error, SourceUnreadable)


def test_an_encrypted_database_behind_a_link_with_a_log(encrypted: Chain, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere" / "real.db"
    real.parent.mkdir()
    encrypted.path.rename(real)
    real.with_name("real.db-wal").write_bytes(b"frames")
    encrypted.path.symlink_to(real)
    assert isinstance(error_of(encrypted.take), SourceUnreadable)


def test_an_encrypted_database_with_the_journal_of_a_crash(encrypted: Chain) -> None:
    journal = encrypted.path.with_name("crm.db-journal")
    journal.write_bytes(bytes(600))  # what journal_mode = PERSIST leaves
    encrypted.take()
    journal.write_bytes(b"\xd9\xd5\x05\xf9" + bytes(600))
    error = error_of(encrypted.take)
    assert isinstance(error, SourceLocked)
    assert "crm.db-journal" in error.why


def test_an_encrypted_database_that_is_written(encrypted: Chain, tmp_path: Path) -> None:
    """The locks are SQLite's own: a plain database stands for what SQLCipher would hold."""
    encrypted.path.unlink()
    fill(encrypted.path)
    with running(hold_exclusively, encrypted.path, tmp_path / "ready"):
        while not (tmp_path / "ready").exists():
            SystemClock().sleep(0.01)
        error = error_of(encrypted.take)
    assert isinstance(error, SourceLocked)
    encrypted.take(meanwhile=lambda: writers_wait(encrypted.path))


def hold_exclusively(path: Path, ready: Path) -> None:
    with closing(connect(path)) as db:
        db.execute("BEGIN EXCLUSIVE")
        ready.touch()
        signal.pause()


def writers_wait(path: Path) -> None:
    with running(try_to_write, path) as process:
        process.join(30)
        assert process.exitcode == 7


def try_to_write(path: Path) -> None:
    with closing(connect(path)) as db:
        db.set_busy_timeout(0)
        try:
            db.execute("UPDATE contacts SET name = 'x' WHERE id = 1")
        except apsw.BusyError:
            os._exit(7)
    os._exit(0)
