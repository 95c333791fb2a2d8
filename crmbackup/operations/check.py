"""Looking whether what is in storage is whole."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import Future, as_completed
from dataclasses import dataclass

from crmbackup.core.clock import Clock
from crmbackup.core.errors import CrmBackupError, RepositoryError, StorageUnavailable
from crmbackup.core.events import Emit, PhaseEnded, PhaseStarted, Progress
from crmbackup.operations.manifests import SnapshotBody, read_body
from crmbackup.operations.shipping import PackRead, StorageSpec, UnshipContext, inspect, prepare
from crmbackup.operations.workers import ProcessWorkers
from crmbackup.repository.chunks import ChunkRef, PackInfo
from crmbackup.repository.manifest import ManifestHeader
from crmbackup.repository.repository import Repository


@dataclass(frozen=True)
class Finding:
    """Something that is not whole, and the snapshots that need it."""

    code: str
    text: str
    snapshots: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckResult:
    """What was looked at. packs_read of packs; bytes_read in bytes; with_key: bodies and frames were opened too.

    unreferenced: packs that no snapshot needs; interrupted runs leave some, which is no fault.
    """

    snapshots: int
    packs: int
    packs_read: int
    bytes_read: int
    frames: int
    with_key: bool
    unreferenced: int
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings


def run_check(
    repository: Repository,
    storage: StorageSpec,
    *,
    policy: str | None,
    part: tuple[int, int] | None,
    jobs: int,
    clock: Clock,
    emit: Emit,
) -> CheckResult:
    """Check signatures of all manifests, presence and size of all packs they need.

    part: (n, t) reads the n-th of t parts of the packs' bytes as well, (1, 1) all; None reads none. With an identity
    bodies are opened, and every frame of a pack that is read is decrypted and compared with what snapshots expect.
    """
    listing = repository.snapshots(policy)
    findings = [Finding(problem.code, str(problem)) for problem in listing.problems]
    users: dict[PackInfo, list[str]] = defaultdict(list)
    wanted: dict[str, set[tuple[ChunkRef, bytes]]] = defaultdict(set)
    for header in listing.headers:
        for pack in header.packs:
            users[pack].append(header.snapshot_id)
        try:
            body = _check_manifest(repository, header)
        except RepositoryError as problem:
            findings.append(Finding(problem.code, str(problem), (header.snapshot_id,)))
            continue
        if body and part:
            for chunk in body.chunks:
                wanted[chunk.pack_id].add((chunk, body.chunk_key))
    stored = repository.packs()
    for pack, snapshots in users.items():
        size = stored.get(pack.pack_id)
        if size != pack.size:
            text = f"pack {pack.pack_id[:16]} " + (
                "is not in storage" if size is None else f"has {size} bytes instead of {pack.size}"
            )
            findings.append(Finding("pack-missing" if size is None else "object-damaged", text, tuple(snapshots)))
    whole = [pack for pack in users if stored.get(pack.pack_id) == pack.size]
    chosen = _part(whole, part) if part else []
    reads = _read(repository, storage, chosen, users, wanted, findings, jobs, clock, emit) if chosen else []
    needed = {pack.pack_id for pack in users}
    return CheckResult(
        snapshots=len(listing.headers),
        packs=len(users),
        packs_read=len(reads),
        bytes_read=sum(read.stored for read in reads),
        frames=sum(read.frames for read in reads),
        with_key=repository.identity is not None,
        unreferenced=0 if policy else len(stored.keys() - needed),
        findings=tuple(findings),
    )


def _check_manifest(repository: Repository, header: ManifestHeader) -> SnapshotBody | None:
    """Verify a manifest; with an identity, open it."""
    if repository.identity:
        return read_body(repository.body(header), header.packs)
    repository.check_manifest_bytes(header)
    return None


def _part(packs: list[PackInfo], part: tuple[int, int]) -> list[PackInfo]:
    """The n-th of t parts: by name, so that a pack stays in its part while others come and go."""
    n, t = part
    return [pack for pack in packs if int(pack.pack_id[:8], 16) % t == n - 1]


def _read(
    repository: Repository,
    storage: StorageSpec,
    packs: list[PackInfo],
    users: dict[PackInfo, list[str]],
    wanted: dict[str, set[tuple[ChunkRef, bytes]]],
    findings: list[Finding],
    jobs: int,
    clock: Clock,
    emit: Emit,
) -> list[PackRead]:
    began = clock.monotonic()
    reads: list[PackRead] = []
    with ProcessWorkers(jobs) as workers:
        workers.each(prepare, UnshipContext(storage, repository.identity))
        emit(PhaseStarted("read", sum(pack.size for pack in packs)))
        futures: dict[Future[PackRead], PackInfo] = {
            workers.submit(inspect, pack, wanted[pack.pack_id]): pack for pack in packs
        }
        for future in as_completed(futures):
            pack = futures[future]
            try:
                reads.append(future.result())
            except StorageUnavailable:
                raise  # says nothing about the pack
            except CrmBackupError as problem:
                findings.append(Finding(problem.code, str(problem), tuple(users[pack])))
            emit(Progress("read", pack.size))
    emit(PhaseEnded("read", clock.monotonic() - began))
    return reads
