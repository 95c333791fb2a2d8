"""A chain of snapshots of one PostgreSQL database through the real engine, with chunks in memory instead of packs.

with ProcessWorkers(2) as workers:
    chain = PgChain(server, scratch, workers)
    taken = chain.take()
    chain.prove(taken)
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crmbackup.core.clock import SystemClock
from crmbackup.core.events import Event, Notice, Warned
from crmbackup.engines.base import (
    Image,
    Parent,
    Restore,
    RestoreOptions,
    Slice,
    SourceInfo,
    TableRecord,
    Target,
    Verification,
)
from crmbackup.engines.postgres.connection import Server
from crmbackup.engines.postgres.engine import PostgresSource, Settings
from crmbackup.engines.postgres.target import PostgresTarget, PostgresTargetEngine
from crmbackup.operations.workers import ProcessWorkers


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
    notices: tuple[Notice, ...]

    def table(self, name: str) -> TableRecord:
        """The record of one table."""
        return next(table for table in self.image.tables if table.name == name)


def _read(item: Slice) -> list[tuple[bytes, object]]:
    return [(bytes(data.payload), data.facts) for data in item.read()]


@dataclass
class PgChain:
    """Snapshots of one database, each upon the one before."""

    server: Server
    scratch: Path
    workers: ProcessWorkers
    settings: Settings = field(default_factory=Settings)
    last: Taken | None = None
    taken: int = 0
    events: list[Event] = field(default_factory=list)

    def take(self, *, full: bool = False, meanwhile: Callable[[], None] = lambda: None) -> Taken:
        """One snapshot; `meanwhile` runs while it is open, before anything is read."""
        source = PostgresSource(self.server, self.settings)
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
            new: list[bytes] = []
            # As packs hold them: equal chunks are there once.
            known = {payload: number for number, payload in enumerate(old)}
            for number, future in enumerate([self.workers.submit(_read, item) for item in snapshot.slices()]):
                shipped = []
                for payload, facts in future.result():
                    if payload not in known:
                        known[payload] = len(old) + len(new)
                        new.append(payload)
                    shipped.append((known[payload], facts))
                snapshot.shipped(number, shipped)
            image = snapshot.finish()
        image = replace(image, layout=json.loads(json.dumps(image.layout)))
        chunks = tuple([*old, *new][number] for number in image.chunks)
        self.last = Taken(
            image,
            snapshot.info,
            chunks,
            directory,
            snapshot.full_because,
            len(new),
            tuple(event for event in self.events if isinstance(event, Warned)),
            tuple(event for event in self.events if isinstance(event, Notice)),
        )
        return self.last

    def restore(self, taken: Taken, target: Target, *, spoil: Callable[[Restore, int], None] | None = None) -> None:
        """Rebuild a snapshot. spoil: called before each chunk, with how many were placed."""
        layout, digest = taken.image.layout, taken.image.digest
        target.check()
        target.describe(layout)
        with target.open_restore(layout, digest, self.workers, self.events.append) as restore:
            placed: dict[int, object] = {}
            for stage in restore.stages():
                tasks = []
                for number, placement in stage.items():
                    if spoil:
                        spoil(restore, len(placed))
                        placed[number] = restore.place(placement, taken.chunks[number])
                    else:
                        tasks.append((number, self.workers.submit(restore.place, placement, taken.chunks[number])))
                placed.update((number, future.result()) for number, future in tasks)
            restore.commit(placed, self.workers)

    def target(self, server: Server, **options: object) -> PostgresTarget:
        """A database to restore to."""
        return PostgresTarget(server, RestoreOptions(**options), None)  # type: ignore[arg-type]

    def verify(self, taken: Taken, target: Target) -> Verification:
        """Look at a rebuilt database as a drill does."""
        return target.verify(self.workers, taken.image.tables, taken.info.properties, self.events.append)

    def prove(self, taken: Taken) -> Verification:
        """A drill on a private server: every record and definition is as in the source."""
        engine = PostgresTargetEngine(None, None)
        properties = taken.info.properties
        # Not in `scratch`: pytest's directories let nobody pass, and PostgreSQL does not run as root.
        directory = Path(tempfile.gettempdir())
        with engine.isolated(directory, taken.image.layout, properties, self.events.append) as place:
            self.restore(taken, place.target)
            found = self.verify(taken, place.target)
        assert place.gone()
        assert_same(taken, found)
        return found


def assert_same(taken: Taken, found: Verification) -> None:
    """What was found is what was backed up."""
    assert different(taken.image.tables, found.tables) == []
    assert differing_kinds(taken, found) == []
    assert found.schema == taken.info.schema
    assert [check for check in found.checks if not check.ok] == []


def differing_kinds(taken: Taken, found: Verification) -> list[str]:
    """Kinds of objects whose definitions are others than in the source."""
    expected: Any = taken.info.schema["kinds"]
    actual: Any = found.schema["kinds"]
    return [kind for kind in sorted({*expected, *actual}) if expected.get(kind) != actual.get(kind)]


def different(expected: Sequence[TableRecord], actual: Sequence[TableRecord]) -> list[tuple[object, object]]:
    """Records that differ in more than who computed them and why."""
    ones = {one.name: replace(one, carried=False, reason="") for one in expected}
    others = {other.name: replace(other, carried=False, reason="") for other in actual}
    names = sorted({*ones, *others})
    return [(ones.get(name), others.get(name)) for name in names if ones.get(name) != others.get(name)]
