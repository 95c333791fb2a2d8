"""The worker's side: chunks into packs into storage, and back.

`ship` and `unship` are functions of their arguments and of the context that `prepare` set once in this process; they
share nothing with other workers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from crmbackup.core.clock import SystemClock
from crmbackup.core.errors import ObjectDamaged, ObjectNotFound, PackMissing
from crmbackup.engines.base import Slice
from crmbackup.repository.chunks import ChunkRef, PackInfo, chunk_id, pack_key
from crmbackup.repository.identity import Identity
from crmbackup.repository.pack import OpenPack, PackBuilder, check_pack_bytes
from crmbackup.storage.address import Credentials, LocalAddress, S3Address
from crmbackup.storage.base import Storage
from crmbackup.storage.open import open_storage

#: Bytes of slices in one batch, by their own estimate.
BATCH_BYTES = 24 * 1024 * 1024
#: Bytes in one pack before compression, as long as no single chunk is larger: bounds the memory of a worker.
PACK_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class StorageSpec:
    """How to open the storage, from any process. upload_rate in bytes per second and process."""

    address: LocalAddress | S3Address
    credentials: Credentials | None = None
    conditional_put: bool | None = None
    upload_rate: int | None = None
    attempts: int = 5

    def open(self, *, read_only: bool = False) -> Storage:
        """A storage with its wrappers. Raises StorageError."""
        return open_storage(
            self.address,
            self.credentials,
            clock=SystemClock(),
            conditional_put=self.conditional_put,
            upload_rate=self.upload_rate,
            attempts=self.attempts,
            read_only=read_only,
        )


@dataclass(frozen=True)
class ShipContext:
    """What shipping needs. known: chunks that are in storage already, of the parent or left by an interrupted run."""

    storage: StorageSpec
    recipients: tuple[bytes, ...]
    chunk_key: bytes
    level: int
    known: Mapping[bytes, ChunkRef]


@dataclass(frozen=True)
class BatchResult:
    """One batch, shipped. packs: the new ones with what each holds. slices: for each, in order, its chunks and facts.
    read in bytes.
    """

    packs: tuple[tuple[PackInfo, tuple[ChunkRef, ...]], ...]
    slices: tuple[tuple[tuple[ChunkRef, object], ...], ...]
    read: int


@dataclass(frozen=True)
class UnshipContext:
    """What reading packs needs. identity: None for a keyless check."""

    storage: StorageSpec
    identity: Identity | None
    chunk_key: bytes | None = None


@dataclass(frozen=True)
class PackRead:
    """One pack, read and verified. frames: how many were decrypted."""

    placed: Mapping[int, object]
    stored: int
    raw: int
    frames: int


_context: ShipContext | UnshipContext | None = None
_storage: Storage | None = None


def prepare(context: ShipContext | UnshipContext) -> None:
    """Set the context of this worker and open its storage."""
    global _context, _storage  # noqa: PLW0603 - how an initializer hands something to later tasks
    _context = context
    _storage = context.storage.open(read_only=isinstance(context, UnshipContext))


def ship(slices: Sequence[Slice]) -> BatchResult:
    """Read, hash, compress, encrypt and upload one batch: as one pack, or several where slices give more than that."""
    context = _context
    assert isinstance(context, ShipContext)
    assert _storage is not None
    builder = PackBuilder(context.recipients, context.level)
    packs: list[tuple[PackInfo, tuple[ChunkRef, ...]]] = []
    found: dict[bytes, ChunkRef] = {}
    own: set[bytes] = set()
    read, waiting = 0, 0
    shipped: list[list[tuple[bytes, object]]] = []
    for item in slices:
        shipped.append([])
        for data in item.read():
            identifier = chunk_id(data.payload, context.chunk_key)
            if identifier not in context.known and identifier not in own:
                if waiting and waiting + len(data.payload) > PACK_BYTES:
                    packs.append(_put(builder, found))
                    builder, waiting = PackBuilder(context.recipients, context.level), 0
                builder.add(identifier, data.payload)
                own.add(identifier)
                waiting += len(data.payload)
            shipped[-1].append((identifier, data.facts))
            read += len(data.payload)
    if len(builder):
        packs.append(_put(builder, found))
    located = tuple(
        tuple((found.get(identifier) or context.known[identifier], facts) for identifier, facts in chunks)
        for chunks in shipped
    )
    return BatchResult(tuple(packs), located, read)


def _put(builder: PackBuilder, found: dict[bytes, ChunkRef]) -> tuple[PackInfo, tuple[ChunkRef, ...]]:
    """Upload one pack, and note its chunks in `found`."""
    assert _storage is not None
    pack, content, chunks = builder.finish()
    _storage.put(pack_key(pack.pack_id), content)
    found.update((chunk.chunk_id, chunk) for chunk in chunks)
    return pack, tuple(chunks)


def unship(
    info: PackInfo,
    wanted: Sequence[tuple[int, ChunkRef, object]],
    place: Callable[[object, bytes], object],
) -> PackRead:
    """Fetch one pack, verify and decrypt the wanted chunks (number, chunk, placement) and place each."""
    context = _context
    assert isinstance(context, UnshipContext)
    assert context.identity is not None
    assert context.chunk_key is not None
    pack = OpenPack(info, _fetch(info), context.identity.opening_key)
    placed, raw = {}, 0
    for number, chunk, placement in wanted:
        content = pack.read_verified(chunk, context.chunk_key)
        raw += len(content)
        placed[number] = place(placement, content)
    return PackRead(placed, info.size, raw, len(wanted))


def inspect(info: PackInfo, wanted: Collection[tuple[ChunkRef, bytes]]) -> PackRead:
    """Fetch one pack and compare it with its name; with an identity, decrypt every frame that its footer lists.

    wanted: what snapshots read from it, each chunk with its key: they must be in the footer, and their content must be
    what their ids say.
    """
    context = _context
    assert isinstance(context, UnshipContext)
    data = _fetch(info)
    if context.identity is None:
        check_pack_bytes(info, data)
        return PackRead({}, info.size, 0, 0)
    pack = OpenPack(info, data, context.identity.opening_key)
    listed, raw = pack.chunks(), 0
    keys: dict[ChunkRef, set[bytes]] = {chunk: set() for chunk in listed}
    for chunk, chunk_key in wanted:
        if chunk not in keys:
            raise ObjectDamaged(f"a snapshot reads a chunk that pack {info.pack_id[:16]} does not have")
        keys[chunk].add(chunk_key)
    for chunk in listed:
        content = pack.read(chunk)
        raw += len(content)
        for chunk_key in keys[chunk]:
            pack.verify(chunk, content, chunk_key)
    return PackRead({}, info.size, raw, len(listed))


def _fetch(info: PackInfo) -> bytes:
    assert _storage is not None
    try:
        return _storage.get(pack_key(info.pack_id))
    except ObjectNotFound as error:
        raise PackMissing(
            f"pack {info.pack_id[:16]} is not in storage", hint="`crmbackup check` names the snapshots that need it"
        ) from error
