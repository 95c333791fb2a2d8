"""The side of the SQLite engine that reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from crmbackup.core.clock import Clock
from crmbackup.core.errors import SourceEmpty
from crmbackup.core.events import Emit
from crmbackup.engines.base import Parent, SourceEngine, Workers
from crmbackup.engines.sqlite.connection import (
    ENGINE_VERSION,
    begin_read,
    check_magic,
    look_at,
    source_connection,
    source_errors,
)
from crmbackup.engines.sqlite.joining import joined
from crmbackup.engines.sqlite.reader import Source
from crmbackup.engines.sqlite.snapshot import SqliteSnapshot


class SqliteSource(SourceEngine):
    """One database file.

    checksums: "tables" for row counts and checksums of every table, "pages" for row counts only. page_key: 32 bytes,
    keys the page hashes in the local state; the same for a snapshot and its parent.
    """

    name = "sqlite"

    def __init__(self, source: Source, checksums: str, page_key: bytes) -> None:
        self.source = source
        self._checksums = checksums
        self._page_key = page_key

    def preflight(self, jobs: int) -> int:
        look_at(self.source.path)
        if self.source.encrypted:
            return jobs
        check_magic(self.source.path)
        path, busy_seconds = self.source.path, self.source.busy_seconds
        with source_errors(path), source_connection(path, busy_seconds) as connection:
            begin_read(connection, busy_seconds)
            tables = connection.execute("SELECT 1 FROM main.sqlite_schema WHERE type = 'table' LIMIT 1").fetchall()
        if not tables:
            raise SourceEmpty(
                f"the database {self.source.path} holds no tables",
                why="its schema is empty",
                hint="check source.path; a new, empty database is no CRM",
            )
        return jobs

    def programs(self, *, drills: bool) -> Sequence[str]:
        return (ENGINE_VERSION,)

    @contextmanager
    def open_snapshot(
        self, workers: Workers, parent: Parent | None, state: Path, clock: Clock, emit: Emit
    ) -> Iterator[SqliteSnapshot]:
        with joined(workers, self.source, clock) as moment:
            snapshot = SqliteSnapshot(
                self.source, self._checksums, self._page_key, workers, moment, parent, state, clock, emit
            )
            try:
                yield snapshot
            finally:
                snapshot.close()
