"""Taking a snapshot: read, ship, commit."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import chain

from crmbackup.core.clock import Clock
from crmbackup.core.errors import LocalError, SourceShrank
from crmbackup.core.events import Emit, Notice, PhaseEnded, PhaseStarted, Progress, Warned
from crmbackup.engines.base import Image, Parent, Slice, Snapshot, SourceEngine, Workers
from crmbackup.operations.dates import settled
from crmbackup.operations.manifests import total_rows, write_body
from crmbackup.operations.shipping import BATCH_BYTES, BatchResult, ShipContext, StorageSpec, prepare, settle, ship
from crmbackup.operations.state import PolicyState, Remembered
from crmbackup.operations.uploads import FilledPack
from crmbackup.operations.workers import ProcessWorkers
from crmbackup.repository.chunks import ChunkIndex, ChunkRef, ChunkTable, PackInfo
from crmbackup.repository.manifest import ManifestHeader
from crmbackup.repository.repository import Repository

#: Bytes of slices that a batch has at least, as long as there are so many: small packs cost storage and requests.
_LEAST_BATCH = 4 * 1024 * 1024
#: Batches that wait beside those at work, for each worker: enough that none idles, few enough to bound memory.
_QUEUED = 2


@dataclass(frozen=True)
class BackupJob:
    """Everything that one run needs, resolved.

    make_source: gives the engine for a chunk key. kind: "full" or "incremental", as asked or as the schedule calls
    for; an incremental becomes full, with a reason, when there is nothing to build on. max_shrink: share (0..1) of
    bytes or rows that may be lost since the last snapshot; None allows any. damaged: names of packs that a check on
    this host found damaged. make_workers: gives that many workers.
    """

    policy: str
    engine: str
    make_source: Callable[[bytes], SourceEngine]
    repository: Repository
    storage: StorageSpec
    state: PolicyState
    kind: str
    jobs: int
    level: int
    max_shrink: float | None
    host: str
    tool: str
    clock: Clock
    emit: Emit
    damaged: Collection[str] = ()
    make_workers: Callable[[int], AbstractContextManager[Workers]] = ProcessWorkers


@dataclass(frozen=True)
class BackupResult:
    """A committed snapshot. read: bytes read in slices; added: bytes written to storage; why: of the kind.

    snapshots: how many of the policy the repository holds now; oldest: the moment of the first of them.
    """

    header: ManifestHeader
    image: Image
    read: int
    added: int
    seconds: float
    rows: int | None
    why_full: str
    snapshots: int
    oldest: datetime


def run_backup(job: BackupJob) -> BackupResult:
    """One snapshot. The caller holds the policy's lock. Raises CrmBackupError kinds; then nothing was committed.

    A snapshot that is committed but cannot be remembered on this host is a success with a warning.
    """
    began = job.clock.monotonic()
    started = job.clock.now()
    job.repository.require_writer()
    condemned = job.repository.condemned()  # before the packs: a collector removes a pack before its mark
    stored = job.repository.packs()
    history = job.repository.snapshots(job.policy)
    for problem in history.problems:
        job.emit(Warned(problem.code, str(problem), problem.hint))
    remembered, why_full = _parent(job, stored, condemned, {header.snapshot_id for header in history.headers})
    key = job.state.chunk_key()
    source = job.make_source(key)
    jobs = source.preflight(job.jobs)
    # A run that died between its commit and the end left notes on packs that are no leftovers: a full shares none.
    pending = job.state.pending(stored, condemned)
    if pending:
        noted = {chunk.pack_id for chunk in pending.values()}
        committed = {p.pack_id for header in history.headers for p in header.packs if p.pack_id in noted}
        left = ChunkTable()
        left.extend(chunk for chunk in pending.values() if chunk.pack_id not in committed)
        pending = ChunkIndex(left)
    if pending:
        job.emit(Notice(f"{len(pending)} chunks of an interrupted run are reused"))
    context = ShipContext(job.storage, tuple(job.repository.recipients), key, job.level, pending)
    # What is read again and is as it was need not be stored again. A full snapshot trusts nothing that is older.
    known = _index(remembered.chunks, pending.values()) if remembered else pending
    snapshot_id = os.urandom(8).hex()
    directory = job.state.prepare(snapshot_id)
    parent = Parent(remembered.directory, len(remembered.chunks), remembered.layout) if remembered else None
    last = _last(history.headers, started)
    with job.make_workers(jobs) as workers:
        workers.each(prepare, replace(context, known=known))
        with source.open_snapshot(workers, parent, directory, job.clock, job.emit) as snapshot:
            if snapshot.full_because:
                remembered, why_full = None, snapshot.full_because
                workers.each(prepare, context)
            _refuse_shrunken(job, "bytes", snapshot.info.size, last.source_size if last else None)
            shipped = _Shipped(job, len(remembered.chunks) if remembered else 0)
            shipped.ship_all(workers, snapshot)
            image = snapshot.finish()
        # The source is let go by now: nobody there has to wait for the last uploads. Nothing is committed before them.
        shipped.settle(workers)
        info = snapshot.info
    rows = total_rows(image.tables)
    _refuse_shrunken(job, "rows", rows, job_rows(job))
    old_chunks = remembered.chunks if remembered else ()
    chunks = ChunkTable()
    chunks.extend(_chunk(number, old_chunks, shipped.chunks) for number in image.chunks)
    sizes = (
        {pack.pack_id: pack.size for pack in (remembered.packs if remembered else ())}
        | shipped.sizes
        | {chunk.pack_id: stored[chunk.pack_id] for chunk in pending.values()}
    )
    packs = [PackInfo(pack_id, sizes[pack_id]) for pack_id in chunks.by_pack()]
    header = ManifestHeader(
        repository_id=job.repository.document.repository_id,
        snapshot_id=snapshot_id,
        policy=job.policy,
        kind="incremental" if remembered else "full",
        parent=remembered.snapshot_id if remembered else None,
        generation=remembered.generation if remembered else snapshot_id,
        engine=job.engine,
        host=job.host,
        tool=job.tool,
        started=started,
        captured=info.captured,
        finished=job.clock.now(),
        source_size=info.size,
        added_size=sum(shipped.sizes.values()),
        packs=tuple(packs),
        signer="",
    )
    header = job.repository.commit(header, write_body(key, chunks, packs, image, info), job.clock)
    try:
        job.state.remember(
            directory,
            snapshot_id=snapshot_id,
            key=header.key,
            generation=header.generation,
            packs=packs,
            chunks=chunks,
            layout=image.layout,
            rows=rows,
        )
        job.state.forget_pending()
    except LocalError as problem:
        # The snapshot is there and whole: a failed run would be a lie, and the next one can do without our memory.
        job.emit(Warned("state-not-saved", f"the snapshot is complete, but this host {problem}", problem.hint))
    return BackupResult(
        header,
        image,
        shipped.read,
        header.added_size,
        job.clock.monotonic() - began,
        rows,
        why_full,
        len(history.headers) + 1,
        min([header.captured, *(each.captured for each in history.headers[:1])]),
    )


def job_rows(job: BackupJob) -> int | None:
    """Rows of the last snapshot that this host remembers."""
    remembered = job.state.remembered()
    return remembered.rows if remembered else None


def _index(*chunks: Iterable[ChunkRef]) -> ChunkIndex:
    table = ChunkTable()
    table.extend(chain.from_iterable(chunks))
    return ChunkIndex(table)


def _chunk(number: int, old: Sequence[ChunkRef], new: Sequence[ChunkRef]) -> ChunkRef:
    return old[number] if number < len(old) else new[number - len(old)]


def _parent(
    job: BackupJob, stored: Mapping[str, int], condemned: set[str], known: set[str]
) -> tuple[Remembered | None, str]:
    """The snapshot to build on, or why there is none."""
    if job.kind == "full":
        return None, ""
    remembered = job.state.remembered()
    if remembered is None:
        return None, "this host remembers no snapshot of this policy" if known else "it is the first snapshot"
    if remembered.snapshot_id not in known:
        job.emit(
            Warned(
                "parent-gone",
                f"the last snapshot of this host, {remembered.snapshot_id}, is not in the repository",
                "find out who deleted or replaced it; this run takes a full snapshot",
            )
        )
        return None, "the last snapshot is gone from the repository"
    missing = [pack for pack in remembered.packs if stored.get(pack.pack_id) != pack.size or pack.pack_id in condemned]
    if missing:
        job.emit(
            Warned(
                "packs-gone",
                f"{len(missing)} packs of the last snapshot are missing, have another size or are about to be deleted",
                "run `crmbackup check`; this run takes a full snapshot",
            )
        )
        return None, "packs of the last snapshot are missing"
    damaged = [pack for pack in remembered.packs if pack.pack_id in job.damaged]
    if damaged:
        job.emit(
            Warned(
                "packs-damaged",
                f"a check found packs of the last snapshot damaged: {len(damaged)}",
                "bring them back from a copy, if there is one; this run takes a full snapshot, which reuses nothing of them",
            )
        )
        return None, "packs of the last snapshot are damaged"
    return remembered, ""


def _last(headers: Sequence[ManifestHeader], now: datetime) -> ManifestHeader | None:
    """The snapshot that the source is compared with.

    One that is dated in the future would stay the last one until then: what was lost since would not be seen, and a loss
    that was accepted would be refused each time.
    """
    found = settled(headers, now)
    return found[-1] if found else None


def _refuse_shrunken(job: BackupJob, what: str, now: int | None, before: int | None) -> None:
    """Raises SourceShrank when more was lost since the last snapshot than the policy allows."""
    if job.max_shrink is None or now is None or not before:
        return
    if now < before * (1 - job.max_shrink):
        raise SourceShrank(
            f"the source has only {now} {what}, {before} at the last snapshot",
            why=f"more than source.max_shrink ({job.max_shrink:.0%}) is gone",
            hint="if that is right, run once with --allow-shrink; if not, restore the last snapshot",
        )


class _Shipped:
    """Runs the batches and gathers what they gave."""

    def __init__(self, job: BackupJob, first: int) -> None:
        """first: the number of the first new chunk."""
        self._job = job
        self._first = first
        self.chunks = ChunkTable()
        self.sizes: dict[str, int] = {}
        self.read = 0

    def ship_all(self, workers: Workers, snapshot: Snapshot) -> None:
        """Ship every slice of the snapshot."""
        slices = snapshot.slices()
        began = self._job.clock.monotonic()
        waiting: deque[tuple[int, Future[BatchResult]]] = deque()
        number = 0
        for batch in _batches(slices, snapshot, workers.count):
            if number == 0:
                self._job.emit(PhaseStarted("ship", snapshot.read_size))
            waiting.append((number, workers.submit(ship, batch)))
            number += len(batch)
            while len(waiting) >= workers.count * (1 + _QUEUED):
                self._take(waiting, snapshot)
        while waiting:
            self._take(waiting, snapshot)
        if number:
            self._job.emit(PhaseEnded("ship", self._job.clock.monotonic() - began))

    def settle(self, workers: Workers) -> None:
        """Wait until all that was shipped is in storage. Raises what the upload of a pack failed with."""
        for stored in workers.each(settle):
            self._note(stored)

    def _note(self, stored: Iterable[FilledPack]) -> None:
        """Only packs that are in storage: what the next run finds there of a pack under way may not be durable yet."""
        for pack, own in stored:
            self.sizes[pack.pack_id] = pack.size
            self._job.state.note_pack(pack, own)

    def _number(self, chunk: ChunkRef | int) -> int:
        """A chunk's, as the engine knows it; the parent's have theirs already."""
        if isinstance(chunk, int):
            return chunk
        self.chunks.extend((chunk,))
        return self._first + len(self.chunks) - 1

    def _take(self, waiting: deque[tuple[int, Future[BatchResult]]], snapshot: Snapshot) -> None:
        """Gather the batches that are done, waiting for at least one."""
        wait([future for _, future in waiting], return_when=FIRST_COMPLETED)
        for entry in [entry for entry in waiting if entry[1].done()]:
            waiting.remove(entry)
            first, result = entry[0], entry[1].result()
            self._note(result.stored)
            for offset, chunks in enumerate(result.slices):
                snapshot.shipped(first + offset, [(self._number(chunk), facts) for chunk, facts in chunks])
            self.read += result.read
            self._job.emit(Progress("ship", result.read))


def _batches(slices: Iterator[Slice], snapshot: Snapshot, workers: int) -> Iterator[list[Slice]]:
    """Group slices so that each group fills about one pack. The last ones are smaller, so that all workers end together."""
    batch: list[Slice] = []
    given = size = 0
    for item in slices:
        batch.append(item)
        size += item.size
        left = snapshot.read_size - given
        if size >= min(BATCH_BYTES, max(_LEAST_BATCH, left // workers)):
            yield batch
            given += size
            batch, size = [], 0
    if batch:
        yield batch
