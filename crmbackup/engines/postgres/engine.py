"""The side of the PostgreSQL engine that reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from crmbackup.core.clock import Clock
from crmbackup.core.errors import SourceEmpty, SourceError
from crmbackup.core.events import Emit
from crmbackup.engines.base import Parent, SourceEngine, Workers
from crmbackup.engines.postgres.catalog import read_tables, unsupported_extensions
from crmbackup.engines.postgres.connection import NEWEST, OLDEST, Server, connect, source_errors
from crmbackup.engines.postgres.joining import joined, refuse_unreadable
from crmbackup.engines.postgres.programs import Program, find_program
from crmbackup.engines.postgres.snapshot import PostgresSnapshot


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
            tables = read_tables(connection, sizes=False)
            refuse_unreadable(server, tables)
        if not [table for table in tables if not table.extension]:
            raise SourceEmpty(
                f"the database {server.name} holds no tables",
                why="no schema of it has one",
                hint="check source.url; a new, empty database is no CRM",
            )
        self._program = find_program("pg_dump", at_least=major, directory=self._settings.programs)
        return jobs

    @contextmanager
    def open_snapshot(
        self, workers: Workers, parent: Parent | None, state: Path, clock: Clock, emit: Emit
    ) -> Iterator[PostgresSnapshot]:
        if self._program is None:
            self.preflight(workers.count)
        assert self._program is not None
        settings = self._settings
        with joined(workers, self.server, settings.lock_seconds, clock) as moment:
            snapshot = PostgresSnapshot(
                self.server,
                self._program,
                workers,
                moment,
                parent,
                state,
                settings.lock_seconds,
                passwords=settings.passwords,
                clock=clock,
                emit=emit,
            )
            try:
                yield snapshot
            finally:
                snapshot.close()
