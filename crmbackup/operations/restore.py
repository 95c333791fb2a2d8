"""Bringing a database back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import datetime

from crmbackup.core.clock import Clock
from crmbackup.core.errors import IdentityMissing, ObjectDamaged
from crmbackup.core.events import Emit, PhaseEnded, PhaseStarted, Progress
from crmbackup.engines.ahead import begun_ahead
from crmbackup.engines.base import Restore, TableRecord, Target
from crmbackup.operations.manifests import SnapshotBody, read_body
from crmbackup.operations.shipping import PackRead, StorageSpec, UnshipContext, prepare, unship
from crmbackup.operations.workers import ProcessWorkers
from crmbackup.repository.manifest import ManifestHeader
from crmbackup.repository.repository import Repository


@dataclass(frozen=True)
class RestorePlan:
    """What a restore would do. age in seconds; sizes in bytes; replaces: the target exists and would be replaced.

    notes: what the engine says about it, in lines.
    """

    header: ManifestHeader
    body: SnapshotBody
    target: Target
    age: float
    fetch_size: int
    replaces: bool
    notes: Sequence[str]

    @property
    def captured(self) -> datetime:
        """The moment whose content comes back."""
        return self.header.captured

    @property
    def tables(self) -> Sequence[TableRecord]:
        """What each table will hold."""
        return self.body.tables


@dataclass(frozen=True)
class RestoreResult:
    """A restore that is done. stored and raw in bytes."""

    seconds: float
    packs: int
    stored: int
    raw: int
    frames: int

    def with_pack(self, read: PackRead) -> RestoreResult:
        """The same and one more pack."""
        stored, raw, frames = self.stored + read.stored, self.raw + read.raw, self.frames + read.frames
        return RestoreResult(self.seconds, self.packs + 1, stored, raw, frames)


def plan_restore(
    repository: Repository, header: ManifestHeader, target: Target, now: datetime, *, replaces: bool = False
) -> RestorePlan:
    """Read the snapshot's body and say what a restore to `target` means. Changes nothing."""
    body = read_body(repository.body(header), header.packs)
    age = (now - header.captured).total_seconds()
    return RestorePlan(header, body, target, age, header.stored_size, replaces, target.describe(body.layout))


def run_restore(
    plan: RestorePlan,
    repository: Repository,
    storage: StorageSpec,
    *,
    jobs: int,
    clock: Clock,
    emit: Emit,
) -> RestoreResult:
    """Fetch, verify, decrypt and place every chunk, verify the whole and give it its name.

    Raises IntegrityError kinds, LocalError kinds, VerificationFailed; then the target is as it was.
    """
    if repository.identity is None:
        raise IdentityMissing("restoring needs the identity", hint="give --identity-file or a passphrase")
    began = clock.monotonic()
    context = UnshipContext(storage, repository.identity, plan.body.chunk_key)
    placed: dict[int, object] = {}
    done = RestoreResult(0.0, 0, 0, 0, 0)
    # Workers come first: forking wants a process without threads, and an engine may start some.
    with (
        ProcessWorkers(jobs) as workers,
        plan.target.open_restore(plan.body.layout, plan.body.digest, workers, emit) as restore,
    ):
        workers.each(prepare, context)
        for placements in restore.stages():
            stage_began = clock.monotonic()
            for future in begun_ahead(_fetches(plan, restore, placements, workers, emit), workers):
                read = future.result()
                placed.update(read.placed)
                done = done.with_pack(read)
                emit(Progress("fetch", read.stored))
            emit(PhaseEnded("fetch", clock.monotonic() - stage_began))
        fetched = clock.monotonic()
        emit(PhaseStarted("finish"))
        restore.commit(placed, workers)
        emit(PhaseEnded("finish", clock.monotonic() - fetched))
    return replace(done, seconds=clock.monotonic() - began)


def _fetches(
    plan: RestorePlan, restore: Restore, placements: Mapping[int, object], workers: ProcessWorkers, emit: Emit
) -> Iterator[Future[PackRead]]:
    """Fetch the packs of a stage, one each time it is asked. The place of each chunk is known: packs come in any order."""
    chunks = plan.body.chunks
    if not all(0 <= number < len(chunks) for number in placements):
        raise ObjectDamaged("the layout of the snapshot names chunks that it does not have")
    by_pack = chunks.by_pack(placements)
    needed = [info for info in plan.header.packs if info.pack_id in by_pack]
    emit(PhaseStarted("fetch", sum(info.size for info in needed)))
    for info in needed:
        wanted = [(number, chunks[number], placements[number]) for number in by_pack[info.pack_id]]
        yield workers.submit(unship, info, wanted, restore.place)
