"""A chain of snapshots of one PostgreSQL database through the real engine, with chunks in memory instead of packs.

with ProcessWorkers(2) as workers:
    chain = Snapshots(server, scratch, workers)
    taken = chain.take()
    assert taken.content() == taken.seen
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from crmbackup.core.clock import SystemClock
from crmbackup.core.events import Event, Notice
from crmbackup.engines.base import Image, Parent, Slice, SourceInfo, TableRecord
from crmbackup.engines.postgres.connection import Server, connect, quoted
from crmbackup.engines.postgres.engine import PostgresSource, Settings
from crmbackup.engines.postgres.layout import Layout, decode_layout
from crmbackup.engines.postgres.reader import TableSlice
from crmbackup.engines.postgres.rows import copy_out
from crmbackup.engines.postgres.snapshot import PostgresSnapshot
from crmbackup.operations.workers import ProcessWorkers

Content = dict[str, Counter[bytes]]


@dataclass(frozen=True)
class Taken:
    """A snapshot. read: bytes of table rows that were read for it. new: how many chunks that the parent does not have.
    seen: what another session saw of the same moment.
    """

    image: Image
    info: SourceInfo
    layout: Layout
    chunks: tuple[bytes, ...]
    directory: Path
    full_because: str
    read: Mapping[str, int]
    new: int
    notices: tuple[str, ...]
    seen: Content

    def content(self) -> Content:
        """The lines of every table, with how often each is there."""
        return {
            table.label: Counter(
                line for part in table.parts for line in self.chunks[part.chunk].splitlines(keepends=True)
            )
            for table in self.layout.tables
        }

    def record(self, name: str) -> TableRecord:
        """The record of one table."""
        return next(table for table in self.image.tables if table.name == name)


def _read(item: Slice) -> list[tuple[bytes, object]]:
    return [(bytes(data.payload), data.facts) for data in item.read()]


@dataclass
class Snapshots:
    """Snapshots of one database, each upon the one before. look: let another session see the same, for `Taken.seen`."""

    server: Server
    scratch: Path
    workers: ProcessWorkers
    settings: Settings = field(default_factory=Settings)
    last: Taken | None = None
    taken: int = 0
    events: list[Event] = field(default_factory=list)
    look: bool = True
    #: The one that is being taken.
    open: PostgresSnapshot | None = None

    def take(self, *, full: bool = False, meanwhile: Callable[[], None] = lambda: None) -> Taken:
        """One snapshot; `meanwhile` runs while it is open, before any row is read."""
        source = PostgresSource(self.server, self.settings)
        source.preflight(self.workers.count)
        self.taken += 1
        directory = self.scratch / f"state-{self.taken}"
        directory.mkdir(parents=True)
        last = None if full else self.last
        parent = Parent(last.directory, len(last.chunks), last.image.layout) if last else None
        self.events.clear()
        read: dict[str, int] = {}
        with source.open_snapshot(self.workers, parent, directory, SystemClock(), self.events.append) as snapshot:
            self.open = snapshot
            seen = self._look(snapshot._moment.snapshot) if self.look else {}
            meanwhile()
            old = last.chunks if last and not snapshot.full_because else ()
            new: list[bytes] = []
            # As packs hold them: equal chunks are there once.
            known = {payload: number for number, payload in enumerate(old)}
            for number, (item, future) in enumerate(
                [(item, self.workers.submit(_read, item)) for item in snapshot.slices()]
            ):
                shipped = []
                for payload, facts in future.result():
                    if isinstance(item, TableSlice):
                        read[item.table.label] = read.get(item.table.label, 0) + len(payload)
                    if payload not in known:
                        known[payload] = len(old) + len(new)
                        new.append(payload)
                    shipped.append((known[payload], facts))
                snapshot.shipped(number, shipped)
            image = snapshot.finish()
        image = replace(image, layout=json.loads(json.dumps(image.layout)))
        stored = [*old, *new]
        self.last = Taken(
            image=image,
            info=snapshot.info,
            layout=decode_layout(image.layout),
            chunks=tuple(stored[number] for number in image.chunks),
            directory=directory,
            full_because=snapshot.full_because,
            read=read,
            new=len(new),
            notices=tuple(event.text for event in self.events if isinstance(event, Notice)),
            seen=seen,
        )
        return self.last

    def _look(self, snapshot: str) -> Content:
        """Every table in one piece, by a session that does nothing but adopt the snapshot."""
        with closing(connect(self.server)) as connection:
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            connection.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'".encode())
            tables = connection.execute(
                "SELECT c.oid, n.nspname, c.relname, format('%I.%I', n.nspname, c.relname),"
                " c.relpersistence = 'u' AND pg_is_in_recovery()"
                " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                " WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
            ).fetchall()
            found: Content = {}
            for oid, schema, name, label, hidden in tables:
                if hidden:
                    found[label] = Counter()
                    continue
                columns = connection.execute(
                    "SELECT attname FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped"
                    " AND attgenerated = '' ORDER BY attnum",
                    (oid,),
                ).fetchall()
                names = ", ".join(quoted(column) for (column,) in columns)
                sql = f"COPY (SELECT {names} FROM ONLY {quoted(schema, name)}) TO STDOUT"
                lines = b"".join(piece.payload for piece in copy_out(connection, sql)).splitlines(keepends=True)
                found[label] = Counter(lines)
            return found
