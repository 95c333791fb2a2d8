"""What the SQLite engine says of sources that are missing, damaged or locked away."""

from __future__ import annotations

import os
import shutil
import signal
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from crmbackup.core.errors import (
    SourceEmpty,
    SourceMissing,
    SourceNotADatabase,
    SourceUnreadable,
)
from crmbackup.engines.sqlite.target import SqliteTarget
from crmbackup.operations.workers import ProcessWorkers
from tests.support_sqlite import (
    Chain,
    connect,
    drop_side_files,
    error_of,
    execute,
    fill,
    image_of,
    public_directory,
    running,
    spoil,
    without_rights,
)


@pytest.fixture
def workers() -> Iterator[ProcessWorkers]:
    with ProcessWorkers(2) as workers:
        yield workers


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "crm.db"


@pytest.fixture
def chain(source: Path, tmp_path: Path, workers: ProcessWorkers) -> Chain:
    return Chain(source, tmp_path, workers, busy_seconds=0.3)


# Nothing there, or nothing in it


def test_a_missing_file(chain: Chain) -> None:
    error = error_of(chain.take)
    assert isinstance(error, SourceMissing)
    assert str(chain.path) in str(error)
    assert "source.path" in error.hint
    assert not chain.path.exists()


def test_an_empty_file(chain: Chain) -> None:
    chain.path.touch()
    error = error_of(chain.take)
    assert isinstance(error, SourceEmpty)
    assert "0 bytes" in str(error)


def test_a_directory(chain: Chain) -> None:
    chain.path.mkdir()
    error = error_of(chain.take)
    assert isinstance(error, SourceNotADatabase)
    assert "file" in error.hint


def test_a_path_through_a_file(chain: Chain) -> None:
    chain.path.write_text("x")
    chain.path = chain.path / "crm.db"
    assert isinstance(error_of(chain.take), SourceUnreadable)


@pytest.mark.parametrize("content", [b"x", b"not a database " * 500, os.urandom(40960), b"SQLite format 2\0" * 300])
def test_a_file_that_is_no_database(chain: Chain, content: bytes) -> None:
    chain.path.write_bytes(content)
    error = error_of(chain.take)
    assert isinstance(error, SourceNotADatabase)
    assert "encrypted: true" in error.hint


def test_a_database_without_tables(chain: Chain) -> None:
    execute(chain.path, "CREATE VIEW v AS SELECT 1", "PRAGMA user_version = 3")
    error = error_of(chain.take)
    assert isinstance(error, SourceEmpty)
    assert "no tables" in str(error)


def test_a_name_that_is_hard_to_quote(tmp_path: Path, workers: ProcessWorkers) -> None:
    odd = tmp_path / "50% ä?x#y&z;'\" \n.db"
    fill(odd, mode="wal")
    chain = Chain(odd, tmp_path, workers)
    chain.prove(chain.take(), image_of(odd))


def test_a_symbolic_link_to_a_wal_database(tmp_path: Path, chain: Chain) -> None:
    real = tmp_path / "elsewhere" / "real.db"
    real.parent.mkdir()
    fill(real, mode="wal")
    chain.path.symlink_to(real)
    chain.prove(chain.take(), image_of(real))


# Damage


@pytest.mark.parametrize("mode", ["delete", "wal"])
@pytest.mark.parametrize("cut", [1024 * 20, 1024 * 20 + 300, -1024, -300])
def test_a_file_that_is_cut_short(chain: Chain, mode: str, cut: int) -> None:
    fill(chain.path, mode=mode)
    execute(chain.path, "PRAGMA wal_checkpoint(TRUNCATE)")
    size = chain.path.stat().st_size
    os.truncate(chain.path, cut if cut > 0 else size + cut)
    error = error_of(chain.take)
    assert isinstance(error, SourceUnreadable)
    assert error.hint


@pytest.mark.parametrize("checksums", ["tables", "pages"])
def test_a_damaged_page_of_a_table(chain: Chain, checksums: str) -> None:
    """SQL cannot read it, so the backup fails: better no snapshot than one that is taken for good."""
    fill(chain.path, rows=5000)
    chain.checksums = checksums
    with closing(connect(chain.path)) as db:
        pages = db.execute("SELECT pageno FROM dbstat WHERE name = 'contacts' AND pagetype = 'leaf'").fetchall()
        if checksums == "pages":  # counting walks the smallest b-tree
            pages = db.execute("SELECT pageno FROM dbstat WHERE name = 'by_name' AND pagetype = 'leaf'").fetchall()
    spoil(chain.path, int(str(pages[7][0])))
    error = error_of(chain.take)
    assert isinstance(error, SourceUnreadable)
    assert "contacts" in str(error)
    assert "integrity_check" in error.hint


def test_a_damaged_interior_page(chain: Chain) -> None:
    fill(chain.path, rows=20_000)
    with closing(connect(chain.path)) as db:
        query = "SELECT pageno FROM dbstat WHERE name = 'contacts' AND pagetype = 'internal'"
        pages = [int(str(page)) for (page,) in db.execute(query).fetchall()]
    assert len(pages) > 3
    for content in (b"\0", b"\xff", b"\x05\0\0\xff\xff\0\0\0\0\0\0\0"):
        for page in (pages[0], pages[2]):
            kept = chain.path.read_bytes()
            spoil(chain.path, page, content)
            error = error_of(chain.take)
            assert isinstance(error, SourceUnreadable), content
            chain.path.write_bytes(kept)
    chain.prove(chain.take())


def test_a_damaged_index_is_found_by_the_drill(chain: Chain) -> None:
    fill(chain.path)
    with closing(connect(chain.path)) as db:
        pages = db.execute("SELECT pageno FROM dbstat WHERE name = 'by_name' AND pagetype = 'leaf'").fetchall()
    spoil(chain.path, int(str(pages[2][0])))
    taken = chain.take()
    found = chain.verify(taken, chain.restore(taken))
    (check,) = [check for check in found.checks if check.name == "integrity_check"]
    assert not check.ok
    assert check.detail


def test_a_damaged_first_page(chain: Chain) -> None:
    fill(chain.path)
    with chain.path.open("r+b") as stream:
        stream.seek(100)
        stream.write(b"\xee" * 200)
    assert isinstance(error_of(chain.take), SourceUnreadable)


# Rights. Each backup runs without root's, in a process of its own


@pytest.fixture
def public(chain: Chain) -> Iterator[Path]:
    """A database in a directory that anybody may enter."""
    fill(chain.path)
    chain.prove(chain.take())  # loads every module
    with public_directory() as directory:
        yield directory / "crm.db"


def test_a_file_without_read_rights(public: Path) -> None:
    fill(public)
    public.chmod(0)
    code, hint = without_rights(public)
    assert code == "source-unreadable"
    assert "rights" in hint


def test_a_file_that_may_only_be_read(public: Path) -> None:
    fill(public)
    public.chmod(0o444)
    public.parent.chmod(0o555)
    assert without_rights(public) == ("ok", "500")


def test_a_wal_database_in_a_directory_that_may_only_be_read(public: Path) -> None:
    fill(public, mode="wal")
    execute(public, "PRAGMA wal_checkpoint(TRUNCATE)")
    drop_side_files(public)
    public.chmod(0o444)
    public.parent.chmod(0o555)
    code, hint = without_rights(public)
    assert code == "source-unreadable"
    assert "directory" in hint


def test_a_hot_journal_that_may_not_be_rolled_back(public: Path) -> None:
    leave_hot_journal(public)
    public.chmod(0o444)
    public.with_name("crm.db-journal").chmod(0o444)
    public.parent.chmod(0o555)
    code, hint = without_rights(public)
    assert code == "source-unreadable"
    assert "rights" in hint


# What crashed writers leave


def leave_hot_journal(path: Path) -> bytes:
    """A writer dies in the middle of a transaction that has reached the file; gives the image before it."""
    fill(path)
    before = image_of(path)
    with running(die_in_transaction, path) as process:
        process.join(30)
        assert process.exitcode == -signal.SIGKILL
    assert path.with_name(path.name + "-journal").stat().st_size
    assert path.read_bytes() != before
    return before


def die_in_transaction(path: Path) -> None:
    with closing(connect(path)) as db:
        db.execute("PRAGMA cache_size = 5")
        db.execute("BEGIN")
        db.execute("UPDATE contacts SET note = hex(randomblob(100))")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_hot_journal_is_rolled_back_first(chain: Chain) -> None:
    before = leave_hot_journal(chain.path)
    chain.prove(chain.take(), before)


def test_a_log_without_its_shared_memory(chain: Chain) -> None:
    fill(chain.path, mode="wal")
    execute(chain.path, "PRAGMA wal_checkpoint(TRUNCATE)", "UPDATE contacts SET name = 'new' WHERE id % 9 = 0")
    expected = image_of(chain.path)
    chain.path.with_name("crm.db-shm").unlink()
    assert chain.path.with_name("crm.db-wal").stat().st_size
    chain.prove(chain.take(), expected)


def test_a_log_that_ends_in_a_torn_frame(chain: Chain) -> None:
    fill(chain.path, mode="wal")
    expected = image_of(chain.path)
    execute(chain.path, "UPDATE contacts SET name = 'new'")
    chain.path.with_name("crm.db-shm").unlink()
    log = chain.path.with_name("crm.db-wal")
    os.truncate(log, log.stat().st_size - 100)
    chain.prove(chain.take(), expected)


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_nothing_is_left_beside_a_database_at_rest(chain: Chain, tmp_path: Path, mode: str) -> None:
    """A log of ours would belong to us, and lock out an application that runs as another user."""
    fill(chain.path, mode=mode)
    execute(chain.path, "PRAGMA wal_checkpoint(TRUNCATE)")
    drop_side_files(chain.path)
    before = (chain.path.read_bytes(), chain.path.stat().st_mtime_ns, chain.path.stat().st_mode)
    chain.take()
    assert [path.name for path in tmp_path.glob("crm.db*")] == ["crm.db"]
    assert (chain.path.read_bytes(), chain.path.stat().st_mtime_ns, chain.path.stat().st_mode) == before


def test_a_log_with_content_is_left_as_it_is(chain: Chain) -> None:
    fill(chain.path, mode="wal")
    log = chain.path.with_name("crm.db-wal")
    before = (chain.path.read_bytes(), log.read_bytes())
    chain.take()
    assert (chain.path.read_bytes(), log.read_bytes()) == before


# Files that change without SQLite


def test_a_file_that_is_overwritten_while_it_is_read(chain: Chain, tmp_path: Path) -> None:
    fill(chain.path)
    other = tmp_path / "other.db"
    fill(other)
    error = error_of(lambda: chain.take(meanwhile=lambda: overwrite(chain.path, other.read_bytes())))
    assert error.code == "source-changed"
    assert error.hint


def overwrite(path: Path, content: bytes) -> None:
    """In a process of its own: closing the file here would drop SQLite's locks."""
    with running(put, path, content) as process:
        process.join(30)


def put(path: Path, content: bytes) -> None:
    with path.open("r+b") as stream:
        stream.write(content)


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_file_that_is_replaced_while_it_is_read(chain: Chain, tmp_path: Path, mode: str) -> None:
    fill(chain.path, mode=mode)
    other = tmp_path / "other.db"
    fill(other)
    error = error_of(lambda: chain.take(meanwhile=lambda: [other.replace(chain.path)]))
    assert error.code == "source-changed"


# The local state


def test_a_lost_or_damaged_state_costs_a_full_snapshot(chain: Chain) -> None:
    fill(chain.path)
    for name in ("pages.bin", "blocks.bin", "tables.json", "table-pages.bin"):
        for damage in (Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?")):
            taken = chain.take(full=True)
            damage(taken.directory / name)
            again = chain.take()
            assert again.full_because
            chain.prove(again, image_of(chain.path))


def test_a_vanished_state_directory(chain: Chain) -> None:
    fill(chain.path)
    shutil.rmtree(chain.take().directory)
    assert "cannot be read" in chain.take().full_because


# Answers of a restored database


def test_questions_to_a_restored_database(chain: Chain) -> None:
    fill(chain.path, mode="wal")
    target = chain.restore(chain.take())
    ask = SqliteTarget(target).query
    assert ask("SELECT count(*), 7 FROM contacts") == 500
    assert ask("SELECT 1 WHERE 0") is None
    before = target.read_bytes()
    for statement in (
        "DELETE FROM contacts",
        "SELECT nonsense",
        "SELECT CAST(x'ff' AS TEXT)",
        "ATTACH '/dev/null' AS x; DROP TABLE contacts",
    ):
        error = error_of(lambda text=statement: ask(text))  # type: ignore[misc]
        assert error.code.startswith("source")
    assert target.read_bytes() == before
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
