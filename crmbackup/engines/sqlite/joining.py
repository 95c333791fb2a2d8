"""How all workers come to see the same moment of a database that others write to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import apsw

from crmbackup.core.clock import Clock
from crmbackup.core.errors import SourceChanged, SourceLocked
from crmbackup.engines.base import Workers
from crmbackup.engines.sqlite import opaque, reader, wal
from crmbackup.engines.sqlite.connection import begin_read, open_database, source_connection, source_errors
from crmbackup.engines.sqlite.reader import Source, View

#: Tries without holding writers off. Joining takes about a millisecond, so most succeed at once.
FREE_TRIES = 8
#: A worker must not wait long for a writer: the writer may wait for another worker of ours.
_SHORT_WAIT = 0.25
#: Between tries to get a lock. Short, since a busy writer gives it back for moments only.
_PAUSE = 0.001
_LONG_PAUSE = 0.02


@dataclass(frozen=True)
class Moment:
    """The common view. `captured`: what was committed before it is in the view."""

    view: View
    captured: datetime


@contextmanager
def joined(workers: Workers, source: Source, clock: Clock) -> Iterator[Moment]:
    """All workers in one read transaction each, of the same commit.

    Raises SourceLocked and SourceChanged; the latter also at the end, when the file was written or replaced by other
    means than SQLite.
    """
    meeting = _opaque(workers, source, clock) if source.encrypted else _plain(workers, source, clock)
    with meeting as moment:
        before = _trace(source.path, moment.view)
        yield moment
        if _trace(source.path, moment.view) != before:
            raise SourceChanged(
                f"{source.path} was changed while it was read",
                why="something wrote or replaced it without SQLite's locks",
                hint="stop what copies over the file during backups; network file systems often lack working locks",
            )
        if source.encrypted:
            opaque.refuse_log(source.path)
        workers.each(reader.leave)


def _trace(path: Path, view: View) -> tuple[int, ...]:
    """What cannot change while readers hold their locks. In WAL mode checkpoints may write to the file."""
    with source_errors(path):
        found = path.stat()
    identity = (found.st_dev, found.st_ino)
    return identity if view.journal_mode == "wal" else (*identity, found.st_size, found.st_mtime_ns)


@contextmanager
def _opaque(workers: Workers, source: Source, clock: Clock) -> Iterator[Moment]:
    deadline = clock.monotonic() + source.busy_seconds
    while True:
        captured = clock.now()
        try:
            views = workers.each(reader.join, source)
            break
        except SourceLocked:
            workers.each(reader.leave)
            if clock.monotonic() >= deadline:
                raise
            clock.sleep(_LONG_PAUSE)
    if len(set(views)) != 1:
        raise SourceChanged("the encrypted database changed its size while it was being locked", hint="try again")
    yield Moment(views[0], captured)


@contextmanager
def _plain(workers: Workers, source: Source, clock: Clock) -> Iterator[Moment]:
    with ExitStack() as stack:
        memory = wal.SharedMemory()
        stack.callback(memory.close)
        with source_errors(source.path):
            coordinator = stack.enter_context(source_connection(source.path, source.busy_seconds))
        moment, index = _Meeting(workers, source, clock, coordinator, memory).hold()
        if index:
            with source_errors(source.path):
                logged = wal.logged(coordinator, index)
            workers.each(reader.use_log, logged)
        yield moment


class _Meeting:
    """Gets all workers into the same commit.

    In rollback-journal mode nobody can commit while one of our readers holds its lock, so readers that all came in see
    the same; a writer that wants to commit keeps those out that have not come in yet. In WAL mode everybody always
    comes in, and the header of the shared memory must be the same before the first joined and after the last did.
    Where writers are too busy for either, they are held off for the moment of joining.
    """

    def __init__(
        self,
        workers: Workers,
        source: Source,
        clock: Clock,
        coordinator: apsw.Connection,
        memory: wal.SharedMemory,
    ) -> None:
        self._workers = workers
        self._source = source
        self._impatient = replace(source, busy_seconds=min(_SHORT_WAIT, source.busy_seconds))
        self._clock = clock
        self._coordinator = coordinator
        self._memory = memory
        self._deadline = clock.monotonic() + source.busy_seconds

    def hold(self) -> tuple[Moment, wal.WalIndex | None]:
        """The common view and, in WAL mode, the state of the log. Raises SourceLocked, SourceChanged."""
        for _ in range(FREE_TRIES):
            try:
                found = self._attempt()
            except SourceLocked:
                break  # more tries would only hinder the writer
            if found:
                return found
        with _writers_held_off(self._source, self._clock, self._deadline) as held:
            while True:
                found = self._last_attempt(held=held)
                if found:
                    return found
                self._clock.sleep(_LONG_PAUSE)

    def _last_attempt(self, *, held: bool) -> tuple[Moment, wal.WalIndex | None] | None:
        """What cannot be held off is outlasted, for as long as the source's busy time allows."""
        over = self._clock.monotonic() >= self._deadline
        try:
            found = self._attempt()
        except SourceLocked:
            if over:
                raise
            return None
        if not found and (held or over):
            raise SourceChanged(
                f"no two readers of {self._source.path} saw the same moment",
                why="something writes without SQLite's locks" if held else "the database is changed all the time",
                hint="back up at a quieter time, or give crmbackup the right to write to the database's directory",
            )
        return found

    def _attempt(self) -> tuple[Moment, wal.WalIndex | None] | None:
        """None, and nobody joined, when not all saw the same."""
        try:
            logging = self._looks_logged()
            captured = self._clock.now()
            before = self._memory.read() if logging else None
            views = self._workers.each(reader.join, self._impatient)
            after = self._memory.read() if logging else None
        except SourceLocked:
            self._workers.each(reader.leave)
            raise
        view = views[0]
        if len(set(views)) == 1 and (view.journal_mode == "wal") == logging:
            if not logging:
                return Moment(view, captured), None
            if after and after.same_commit(before) and after.pages in (0, view.page_count):
                return Moment(view, captured), after
        self._workers.each(reader.leave)
        return None

    def _looks_logged(self) -> bool:
        """Whether the database is in WAL mode now; then its shared memory is at hand."""
        with source_errors(self._source.path):
            begin_read(self._coordinator, self._source.busy_seconds)
            mode = self._coordinator.pragma("journal_mode")
            self._coordinator.execute("COMMIT")
            if mode != "wal":
                return False
            self._memory.open(self._coordinator.db_filename("main"))
            return True


@contextmanager
def _writers_held_off(source: Source, clock: Clock, deadline: float) -> Iterator[bool]:
    """Hold the write lock for the moment in which readers join; nothing is written. False without the right to.

    Raises SourceLocked when it is not to be had until the deadline.
    """
    with source_errors(source.path):
        connection = open_database(source.path, write=True, busy_seconds=0)
    try:
        if connection.readonly("main"):
            yield False
            return
        while True:
            try:
                with source_errors(source.path):
                    connection.execute("BEGIN IMMEDIATE")
                break
            except SourceLocked:
                if clock.monotonic() >= deadline:
                    raise
                clock.sleep(_PAUSE)
        yield True
    finally:
        connection.close()
