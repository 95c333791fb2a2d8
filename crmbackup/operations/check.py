"""Looking whether what is in storage is whole."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from crmbackup.core.clock import Clock
from crmbackup.core.errors import CrmBackupError, Interrupted, RepositoryError, StorageUnavailable, UsageError
from crmbackup.core.events import Emit, PhaseEnded, PhaseStarted, Progress
from crmbackup.engines.ahead import begun_ahead
from crmbackup.engines.base import TargetEngine
from crmbackup.operations.manifests import SnapshotBody, read_body
from crmbackup.operations.shipping import PackRead, StorageSpec, UnshipContext, inspect, prepare
from crmbackup.operations.workers import ProcessWorkers
from crmbackup.repository.chunks import ChunkTable, PackInfo
from crmbackup.repository.manifest import ManifestHeader
from crmbackup.repository.pack import OpenPack
from crmbackup.repository.references import mark
from crmbackup.repository.repository import Repository

#: What snapshots read from each pack by its id: chunks by the key of their ids, each once.
_Wanted = dict[str, dict[bytes, ChunkTable]]


@dataclass(frozen=True)
class Finding:
    """Something that is not whole, and the snapshots that need it. tables: of the newest of these, None if not known."""

    code: str
    text: str
    snapshots: tuple[str, ...] = ()
    tables: tuple[str, ...] | None = None


@dataclass(frozen=True)
class CheckResult:
    """What was looked at. packs_read of packs; bytes_read in bytes; with_key: bodies and frames were opened too.

    unreferenced: packs that no snapshot needs; interrupted runs leave some, which is no fault. damaged: names of packs
    that are needed and not whole. mended: names of suspects that were read and are whole.
    """

    snapshots: int
    packs: int
    packs_read: int
    bytes_read: int
    frames: int
    with_key: bool
    unreferenced: int
    findings: tuple[Finding, ...]
    damaged: tuple[str, ...] = ()
    mended: tuple[str, ...] = ()

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
    make_target: Callable[[str], TargetEngine] | None = None,
    suspects: Collection[str] = (),
) -> CheckResult:
    """Check signatures of all manifests, presence and size of all packs they need.

    part: (n, t) reads the n-th of t parts of the packs' bytes as well, (1, 1) all; None reads none. suspects: names of
    packs that are read in any case: they were damaged, and a check that does not look at them must not say that all is
    well. With an identity bodies are opened, and every frame of a pack that is read is decrypted and compared with what
    snapshots expect.
    make_target: the engine of a name; with an identity and this, findings name the tables that are touched.
    """
    listing = repository.snapshots(policy)
    findings = [Finding(problem.code, str(problem)) for problem in listing.problems]
    damaged: dict[PackInfo, Finding] = {}
    wanted: _Wanted = {}
    for header in listing.headers:
        try:
            body = _check_manifest(repository, header)
        except RepositoryError as problem:
            findings.append(Finding(problem.code, str(problem), (header.snapshot_id,)))
            continue
        if body and (part or suspects):
            _want(wanted, body)
    stored = repository.packs()
    needed, whole = bytearray(len(stored)), bytearray(len(stored))
    for header in listing.headers:
        mark(needed, stored, header.packs)
        for number, (position, size) in enumerate(stored.look_up(header.packs)):
            if position >= 0 and stored.sizes[position] == size:
                whole[position] = 1
            else:
                pack = header.packs[number]
                damaged[pack] = _amiss(pack, stored.get(pack.pack_id))
    packs = sum(whole) + len(damaged)
    chosen = []
    if part or suspects:
        there = (stored.at(position) for position, good in enumerate(whole) if good)
        chosen = [pack for pack in there if pack.pack_id in suspects or (part and _in_part(pack, part))]
    reads = _read(repository, storage, chosen, wanted, damaged, jobs, clock, emit) if chosen else []
    damaged = _with_snapshots(listing.headers, damaged)
    if damaged and repository.identity and make_target:
        damaged = _with_tables(repository, listing.headers, damaged, make_target)
    findings += damaged.values()
    return CheckResult(
        snapshots=len(listing.headers),
        packs=packs,
        packs_read=len(reads),
        bytes_read=sum(read.stored for read in reads),
        frames=sum(read.frames for read in reads),
        with_key=repository.identity is not None,
        unreferenced=0 if policy else len(stored) - sum(needed),
        findings=tuple(findings),
        damaged=tuple(sorted(pack.pack_id for pack in damaged)),
        mended=tuple(sorted(pack.pack_id for pack in chosen if pack.pack_id in suspects and pack not in damaged)),
    )


def _want(wanted: _Wanted, body: SnapshotBody) -> None:
    """Add what a snapshot reads."""
    for pack_id, numbers in body.chunks.by_pack().items():
        table = wanted.setdefault(pack_id, {}).setdefault(body.chunk_key, ChunkTable())
        there = set(table)
        table.extend(chunk for chunk in dict.fromkeys(map(body.chunks.__getitem__, numbers)) if chunk not in there)


def _check_manifest(repository: Repository, header: ManifestHeader) -> SnapshotBody | None:
    """Verify a manifest; with an identity, open it."""
    if repository.identity:
        return read_body(repository.body(header), header.packs)
    repository.check_manifest_bytes(header)
    return None


def _in_part(pack: PackInfo, part: tuple[int, int]) -> bool:
    """Whether it is in the n-th of t parts: by name, so that a pack stays in its part while others come and go."""
    n, t = part
    return int(pack.pack_id[:8], 16) % t == n - 1


def _read(
    repository: Repository,
    storage: StorageSpec,
    packs: list[PackInfo],
    wanted: _Wanted,
    damaged: dict[PackInfo, Finding],
    jobs: int,
    clock: Clock,
    emit: Emit,
) -> list[PackRead]:
    began = clock.monotonic()
    reads: list[PackRead] = []
    with ProcessWorkers(jobs) as workers:
        workers.each(prepare, UnshipContext(storage, repository.identity))
        emit(PhaseStarted("read", sum(pack.size for pack in packs)))

        def begin(pack: PackInfo) -> tuple[PackInfo, Future[PackRead]]:
            tables = wanted.get(pack.pack_id, {})
            chunks = [(chunk, chunk_key) for chunk_key, table in tables.items() for chunk in table]
            return pack, workers.submit(inspect, pack, chunks)

        for pack, future in begun_ahead(map(begin, packs), workers):
            try:
                reads.append(future.result())
            except (StorageUnavailable, Interrupted):
                raise  # says nothing about the pack
            except CrmBackupError as problem:
                damaged[pack] = Finding(problem.code, str(problem))
            emit(Progress("read", pack.size))
    emit(PhaseEnded("read", clock.monotonic() - began))
    return reads


def _amiss(pack: PackInfo, size: int | None) -> Finding:
    """A pack that is not in storage, or in another size."""
    name = f"pack {pack.pack_id[:16]}"
    if size is None:
        return Finding("pack-missing", f"{name} is not in storage")
    return Finding("object-damaged", f"{name} has {size} bytes instead of {pack.size}")


def _with_snapshots(headers: Sequence[ManifestHeader], damaged: Mapping[PackInfo, Finding]) -> dict[PackInfo, Finding]:
    """The same findings, with the snapshots that need the packs."""
    users: dict[PackInfo, list[str]] = {pack: [] for pack in damaged}
    for header in headers if damaged else ():
        for pack in header.packs:
            if pack in users:
                users[pack].append(header.snapshot_id)
    return {pack: replace(finding, snapshots=tuple(users[pack])) for pack, finding in damaged.items()}


def _with_tables(
    repository: Repository,
    headers: Sequence[ManifestHeader],
    damaged: Mapping[PackInfo, Finding],
    make_target: Callable[[str], TargetEngine],
) -> dict[PackInfo, Finding]:
    """The same findings, with the tables that they touch in the newest snapshot that needs the pack."""
    bodies: dict[str, SnapshotBody] = {}
    result = {}
    for pack, finding in damaged.items():
        header = next(header for header in reversed(headers) if pack in header.packs)
        try:
            if header.key not in bodies:
                bodies[header.key] = read_body(repository.body(header), header.packs)
            names = _touched(repository, bodies[header.key], header, pack, damaged, make_target(header.engine))
        except (RepositoryError, UsageError):
            result[pack] = finding  # the manifest is a finding of its own, or this host lacks the engine
        else:
            result[pack] = replace(finding, tables=tuple(names))
    return result


def _touched(
    repository: Repository,
    body: SnapshotBody,
    header: ManifestHeader,
    pack: PackInfo,
    damaged: Mapping[PackInfo, Finding],
    engine: TargetEngine,
) -> Sequence[str]:
    packs = {each.pack_id: each for each in header.packs}
    opened: dict[str, OpenPack] = {}

    def read(number: int) -> bytes | None:
        chunk = body.chunks[number]
        if packs[chunk.pack_id] in damaged:
            return None
        try:
            if chunk.pack_id not in opened:
                opened.clear()  # one pack at a time is enough: chunks are asked for nearly in the order of their packs
                opened[chunk.pack_id] = repository.open_pack(packs[chunk.pack_id])
            return opened[chunk.pack_id].read_verified(chunk, body.chunk_key)
        except RepositoryError:
            return None

    lost = set(body.chunks.by_pack().get(pack.pack_id, ()))
    return engine.touched(body.layout, lost, read)
