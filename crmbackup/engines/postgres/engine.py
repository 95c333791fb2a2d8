"""The side of the PostgreSQL engine that reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from crmbackup.core.clock import Clock
from crmbackup.core.errors import SourceEmpty, SourceError, SourceLocked
from crmbackup.core.events import Emit
from crmbackup.engines.base import Parent, SourceEngine, Workers
from crmbackup.engines.postgres.archive import Archiving
from crmbackup.engines.postgres.catalog import list_tables, unsupported_extensions
from crmbackup.engines.postgres.connection import NEWEST, OLDEST, Server, connect, encoding_of, source_errors
from crmbackup.engines.postgres.describe import describe
from crmbackup.engines.postgres.joining import LOCK_WAIT, Moment, joined, refuse_unreadable
from crmbackup.engines.postgres.programs import Program, find_program
from crmbackup.engines.postgres.snapshot import PostgresSnapshot

#: Where the archive of definitions is written before it is shipped, in the state directory.
_ARCHIVE = "definitions.dump"
#: Between two tries, so that who waited for our locks gets them.
_PAUSE = 0.2


@dataclass(frozen=True)
class Settings:
    """How to read. lock_seconds: how long to try to lock all tables. passwords: carry the hashes of roles' passwords.

    programs: where pg_dump is; None searches.
    """

    lock_seconds: float = 60.0
    passwords: bool = False
    programs: Path | None = None


class PostgresSource(SourceEngine):
    """One database of a PostgreSQL server."""

    name = "postgres"

    def __init__(self, server: Server, settings: Settings) -> None:
        self.server = server
        self._settings = settings
        self._program: Program | None = None
        self._major = 0

    def preflight(self, jobs: int) -> int:
        server = self.server
        with source_errors(server), closing(connect(server)) as connection:
            major = connection.info.server_version // 10000
            if not OLDEST <= major <= NEWEST:
                raise SourceError(
                    f"{server.name} is PostgreSQL {major}",
                    why=f"this crmbackup knows versions {OLDEST} to {NEWEST}",
                    hint="install a newer crmbackup" if major > NEWEST else "upgrade the server",
                )
            unsupported = unsupported_extensions(connection)
            if unsupported:
                reasons = "; ".join(f"{name}: {reason}" for name, reason in unsupported.items())
                raise SourceError(f"{server.name} uses an extension that cannot be backed up", why=reasons)
            tables = list_tables(connection)
            refuse_unreadable(server, tables)
        if not [table for table in tables if not table.extension]:
            raise SourceEmpty(
                f"the database {server.name} holds no tables",
                why="no schema of it has one",
                hint="check source.url; a new, empty database is no CRM",
            )
        self._program = find_program("pg_dump", at_least=major, directory=self._settings.programs)
        self._major = major
        return jobs

    def programs(self, *, drills: bool) -> Sequence[str]:
        assert self._program is not None
        found = [self._program]
        if drills:  # a private server of the source's own version
            places = self._settings.programs
            names = ("initdb", "postgres")
            found += [find_program(name, at_least=self._major, exactly=True, directory=places) for name in names]
        return [f"{each.path.name} {each.major}.{each.minor} in {each.path.parent}" for each in found]

    @contextmanager
    def open_snapshot(
        self, workers: Workers, parent: Parent | None, state: Path, clock: Clock, emit: Emit
    ) -> Iterator[PostgresSnapshot]:
        if self._program is None:
            self.preflight(workers.count)
        assert self._program is not None
        with ExitStack() as opened:
            moment, archiving, schema = self._open(self._program, workers, state, clock, opened)
            yield PostgresSnapshot(
                self.server,
                workers,
                moment,
                archiving,
                schema,
                parent,
                state,
                passwords=self._settings.passwords,
                clock=clock,
                emit=emit,
            )

    def _open(
        self, program: Program, workers: Workers, state: Path, clock: Clock, opened: ExitStack
    ) -> tuple[Moment, Archiving, Mapping[str, object]]:
        """The common view with pg_dump at work in it, and the schema's description, made while pg_dump begins. Where a
        migration came between our locks and pg_dump's, all of them are given back, and it goes first. Raises SourceError
        kinds.
        """
        seconds = self._settings.lock_seconds
        deadline = clock.monotonic() + seconds
        while True:
            with ExitStack() as attempt:
                moment = attempt.enter_context(joined(workers, self.server, seconds, clock))
                encoding = encoding_of(moment.connection)
                wait = min(seconds, LOCK_WAIT)
                archiving = Archiving(program, self.server, moment.snapshot, encoding, state / _ARCHIVE, wait)
                attempt.callback(archiving.stop)
                try:
                    with source_errors(self.server):
                        schema = describe(moment.connection)
                        own = (table.oid for table in moment.tables if not table.extension)
                        locked = archiving.has_locks(moment.connection, own, clock)
                except SourceLocked:  # views, which are not locked by us, are opened to be described
                    if clock.monotonic() >= deadline:
                        raise
                    locked = False
                if locked:
                    opened.push(attempt.pop_all())
                    return moment, archiving, schema
                if clock.monotonic() >= deadline:
                    archiving.wait()  # says why
            clock.sleep(_PAUSE)
