"""A chain of snapshots of one database through a real engine, with chunks in memory instead of packs.

with ProcessWorkers(2) as workers:
    chain = Chain(lambda: MysqlSource(server, Settings()), scratch, workers)
    taken = chain.take()
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from crmbackup.core.clock import SystemClock
from crmbackup.core.events import Emit, Event, Notice, Warned
from crmbackup.engines.base import (
    Image,
    Parent,
    ParentChunk,
    Restore,
    Slice,
    SourceEngine,
    SourceInfo,
    TableRecord,
    Target,
)
from crmbackup.operations.workers import ProcessWorkers


@dataclass(frozen=True)
class Taken:
    """A snapshot. new: how many chunks were read for it that its parent did not have, new_bytes: their size. kept: how many
    were told to be the parent's without their bytes.
    """

    image: Image
    info: SourceInfo
    chunks: tuple[bytes, ...]
    directory: Path
    full_because: str
    new: int
    new_bytes: int
    read_bytes: int
    kept: int
    warnings: tuple[Warned, ...]
    notices: tuple[Notice, ...]

    def table(self, name: str) -> TableRecord:
        """The record of one table."""
        return next(table for table in self.image.tables if table.name == name)


def _read(item: Slice) -> list[tuple[bytes | ParentChunk, object]]:
    payloads = ((data.payload, data.facts) for data in item.read())
    return [(found if isinstance(found, ParentChunk) else bytes(found), facts) for found, facts in payloads]


@dataclass
class Chain:
    """Snapshots of one database, each upon the one before."""

    make_source: Callable[[], SourceEngine]
    scratch: Path
    workers: ProcessWorkers
    last: Taken | None = None
    taken: int = 0
    events: list[Event] = field(default_factory=list)

    def take(self, *, full: bool = False, meanwhile: Callable[[], None] = lambda: None) -> Taken:
        """One snapshot; `meanwhile` runs while it is open, before anything is read."""
        source = self.make_source()
        source.preflight(self.workers.count)
        self.taken += 1
        directory = self.scratch / f"state-{self.taken}"
        directory.mkdir(parents=True)
        self.events.clear()
        last = None if full else self.last
        parent = Parent(last.directory, len(last.chunks), last.image.layout) if last else None
        with source.open_snapshot(self.workers, parent, directory, SystemClock(), self.events.append) as snapshot:
            meanwhile()
            old = last.chunks if last and not snapshot.full_because else ()
            new: list[bytes] = []
            # As packs hold them: equal chunks are there once.
            known = {payload: number for number, payload in enumerate(old)}
            read = kept = 0
            for number, future in enumerate([self.workers.submit(_read, item) for item in snapshot.slices()]):
                shipped = []
                for payload, facts in future.result():
                    if isinstance(payload, ParentChunk):
                        assert len(old[payload.number]) == payload.size
                        shipped.append((payload.number, facts))
                        read += payload.size
                        kept += 1
                        continue
                    read += len(payload)
                    if payload not in known:
                        known[payload] = len(old) + len(new)
                        new.append(payload)
                    shipped.append((known[payload], facts))
                snapshot.shipped(number, shipped)
            image = snapshot.finish()
        image = replace(image, layout=json.loads(json.dumps(image.layout)))
        self.last = Taken(
            image,
            snapshot.info,
            tuple([*old, *new][number] for number in image.chunks),
            directory,
            snapshot.full_because,
            len(new),
            sum(map(len, new)),
            read,
            kept,
            tuple(event for event in self.events if isinstance(event, Warned)),
            tuple(event for event in self.events if isinstance(event, Notice)),
        )
        return self.last

    def restore(self, taken: Taken, target: Target, *, spoil: Callable[[Restore, int], None] | None = None) -> None:
        """As `rebuild`."""
        rebuild(taken, target, self.workers, self.events.append, spoil)


class Kept(Protocol):
    """A snapshot whose chunks are at hand."""

    @property
    def image(self) -> Image: ...

    @property
    def chunks(self) -> Sequence[bytes]: ...


def rebuild(
    taken: Kept,
    target: Target,
    workers: ProcessWorkers,
    emit: Emit,
    spoil: Callable[[Restore, int], None] | None = None,
) -> None:
    """Restore a snapshot. spoil: called before each chunk, with how many were placed; chunks then go one by one."""
    layout, digest = taken.image.layout, taken.image.digest
    target.check()
    target.describe(layout)
    with target.open_restore(layout, digest, workers, emit) as restore:
        placed: dict[int, object] = {}
        for stage in restore.stages():
            tasks = []
            for number, placement in stage.items():
                if spoil:
                    spoil(restore, len(placed))
                    placed[number] = restore.place(placement, taken.chunks[number])
                else:
                    tasks.append((number, workers.submit(restore.place, placement, taken.chunks[number])))
            placed.update((number, future.result()) for number, future in tasks)
        restore.commit(placed, workers)
