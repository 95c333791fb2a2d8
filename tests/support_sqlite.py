"""A chain of snapshots of one SQLite database through the real engine, with chunks in memory instead of packs.

with ProcessWorkers(2) as workers:
    chain = Chain(database, scratch, workers)
    taken = chain.take()
    chain.prove(taken, image_of(database))
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import apsw

from crmbackup.core.clock import SystemClock
from crmbackup.core.errors import CrmBackupError
from crmbackup.core.events import Event, Warned
from crmbackup.engines.base import Image, Parent, Slice, SourceInfo, TableRecord, Verification
from crmbackup.engines.sqlite.engine import SqliteSource
from crmbackup.engines.sqlite.reader import Source
from crmbackup.engines.sqlite.target import SqliteTarget
from crmbackup.operations.workers import ProcessWorkers

KEY = b"0123456789abcdef" * 2


def connect(path: Path) -> apsw.Connection:
    """A connection of an application: it leaves its write-ahead log behind when it is closed."""
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(10_000)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)
    return connection


def execute(path: Path, *statements: str) -> None:
    """Run SQL and close."""
    with closing(connect(path)) as connection:
        for statement in statements:
            connection.execute(statement).fetchall()


def fill(path: Path, *, mode: str = "delete", page_size: int = 1024, rows: int = 500) -> None:
    """A database with a table of contacts and an index."""
    execute(
        path,
        f"PRAGMA page_size = {page_size}",
        f"PRAGMA journal_mode = {mode}",
        "CREATE TABLE contacts(id INTEGER PRIMARY KEY, name TEXT, note TEXT)",
        "CREATE INDEX by_name ON contacts(name)",
        f"WITH s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < {rows})"
        " INSERT INTO contacts SELECT i, 'name ' || i, hex(randomblob(100)) FROM s",
    )


def spoil(path: Path, page: int, content: bytes = b"\xee", page_size: int = 1024) -> None:
    """Write over one page."""
    with path.open("r+b") as stream:
        stream.seek((page - 1) * page_size)
        stream.write((content * page_size)[:page_size])


def image_of(path: Path) -> bytes:
    """The pages as SQLite itself shows them, the write-ahead log included."""
    with closing(connect(path)) as connection:
        return connection.serialize("main")


@dataclass(frozen=True)
class Taken:
    """A snapshot. new: how many chunks were read for it."""

    image: Image
    info: SourceInfo
    chunks: tuple[bytes, ...]
    directory: Path
    full_because: str
    new: int
    warnings: tuple[Warned, ...]

    def table(self, name: str) -> TableRecord:
        """The record of one table."""
        return next(table for table in self.image.tables if table.name == name)


def _read(item: Slice) -> tuple[bytes, object]:
    (data,) = item.read()
    return bytes(data.payload), data.facts


@dataclass
class Chain:
    """Snapshots of one database, each upon the one before."""

    path: Path
    scratch: Path
    workers: ProcessWorkers
    checksums: str = "tables"
    encrypted: bool = False
    busy_seconds: float = 5.0
    last: Taken | None = None
    taken: int = 0
    events: list[Event] = field(default_factory=list)

    def take(self, *, full: bool = False, meanwhile: Callable[[], None] = lambda: None) -> Taken:
        """One snapshot; `meanwhile` runs while it is open, before anything is read."""
        source = SqliteSource(Source(self.path, self.busy_seconds, self.encrypted), self.checksums, KEY)
        source.preflight(self.workers.count)
        self.taken += 1
        directory = self.scratch / f"state-{self.taken}"
        directory.mkdir()
        self.events.clear()
        last = None if full else self.last
        parent = Parent(last.directory, len(last.chunks), last.image.layout) if last else None
        with source.open_snapshot(self.workers, parent, directory, SystemClock(), self.events.append) as snapshot:
            meanwhile()
            old = last.chunks if last and not snapshot.full_because else ()
            new = []
            for number, future in enumerate([self.workers.submit(_read, item) for item in snapshot.slices()]):
                payload, facts = future.result()
                new.append(payload)
                snapshot.shipped(number, [(len(old) + number, facts)])
            image = snapshot.finish()
        image = replace(image, layout=json.loads(json.dumps(image.layout)))
        known = [*old, *new]
        chunks = tuple(known[number] for number in image.chunks)
        warnings = tuple(event for event in self.events if isinstance(event, Warned))
        self.last = Taken(image, snapshot.info, chunks, directory, snapshot.full_because, len(new), warnings)
        return self.last

    def restore(self, taken: Taken, target: Path | None = None, *, overwrite: bool = True) -> Path:
        """Rebuild a snapshot's file."""
        target = target or self.scratch / "restored.db"
        layout, digest = taken.image.layout, taken.image.digest
        place = SqliteTarget(target, overwrite=overwrite)
        with place.open_restore(layout, digest, self.workers, self.events.append) as restore:
            placed = {
                number: restore.place(placement, taken.chunks[number])
                for stage in restore.stages()
                for number, placement in stage.items()
            }
            restore.commit(placed, self.workers)
        return target

    def verify(self, taken: Taken, target: Path) -> Verification:
        """Look at a rebuilt file as a drill does."""
        found = SqliteTarget(target).verify(self.workers, taken.image.tables, taken.info.properties, self.events.append)
        drop_side_files(target)
        return found

    def prove(self, taken: Taken, expected: bytes | None = None) -> Verification:
        """A snapshot's file is what SQLite showed, and every record is what a fresh reading of the file gives."""
        target = self.restore(taken)
        if expected is not None:
            assert target.read_bytes() == expected
        self._count_again(taken, target)
        found = self.verify(taken, target)
        assert same_records(taken.image.tables, found.tables) == []
        assert found.schema == taken.info.schema
        assert [check for check in found.checks if not check.ok] == []
        return found

    @staticmethod
    def _count_again(taken: Taken, target: Path) -> None:
        """Digests of a part only could be equal on both sides: the segments must hold all rows."""
        with closing(connect(target)) as connection:
            connection.collation_needed(lambda db, name: db.create_collation(name, lambda one, other: 0))
            for table in taken.image.tables:
                name = table.name.replace('"', '""')
                if table.rows is not None:
                    assert connection.execute(f'SELECT count(*) FROM "{name}"').fetchall() == [(table.rows,)]
                if table.segments:
                    assert [s.low for s in table.segments] == [None, *(s.high for s in table.segments[:-1])]
                    assert table.segments[-1].high is None
        drop_side_files(target)


def drop_side_files(path: Path) -> None:
    """What connections of ours left beside a restored file."""
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def same_records(expected: Sequence[TableRecord], actual: Sequence[TableRecord]) -> list[str]:
    """Names of tables whose records differ in more than who computed them."""
    return [
        one.name
        for one, other in zip(expected, actual, strict=True)
        if replace(one, carried=False) != replace(other, carried=False)
    ]


def error_of(work: Callable[[], object]) -> CrmBackupError:
    """The error that the work ends with."""
    try:
        work()
    except CrmBackupError as error:
        return error
    raise AssertionError("it did not fail")


@contextmanager
def running(work: Callable[..., None], *arguments: object) -> Iterator[BaseProcess]:
    """Another process, killed at the end. It must not touch what the test process has open."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments, daemon=True)
    process.start()
    try:
        yield process
    finally:
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()


NOBODY = 65534


@contextmanager
def public_directory() -> Iterator[Path]:
    """A directory that anybody may enter, and `scratch` in it that anybody may write to."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "scratch").mkdir()
        (directory / "scratch").chmod(0o777)
        directory.chmod(0o755)
        yield directory
        directory.chmod(0o755)


def without_rights(path: Path, *, workers: int = 2, busy_seconds: float = 0.3) -> tuple[str, str]:
    """Back up a database of a public directory in a process of its own, without root's rights.

    Gives code and hint of the error; "ok" and the number of rows of the first table when it passes. Every module that
    a backup needs must be loaded already: other users may not be able to.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            with ProcessWorkers(workers) as pool:
                chain = Chain(path, path.parent / "scratch", pool, busy_seconds=busy_seconds)
                try:
                    taken = chain.take()
                    chain.prove(taken)
                    text = f"ok\n{taken.image.tables[0].rows}"
                except CrmBackupError as error:
                    text = f"{error.code}\n{error.hint}"
            os.write(writing, text.encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        first, _, second = stream.read().partition("\n")
    os.waitpid(child, 0)
    return first, second
