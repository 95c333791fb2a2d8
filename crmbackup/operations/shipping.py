"""The worker's side: chunks into packs into storage, and back.

`ship` and `unship` are functions of their arguments and of the context that `prepare` set once in this process; they
share nothing with other workers. `ship` leaves one thing behind: its last pack may still be on its way to storage while
the worker goes on with its next task. `settle` waits for it, and nothing may be committed before every worker did that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

from crmbackup.core.clock import SystemClock
from crmbackup.core.errors import ObjectDamaged, ObjectNotFound, PackMissing
from crmbackup.engines.base import ParentChunk, Slice
from crmbackup.operations.uploads import FilledPack, Uploads, one_thread
from crmbackup.repository.chunks import ChunkRef, PackInfo, chunk_id, pack_key
from crmbackup.repository.identity import Identity
from crmbackup.repository.pack import OpenPack, PackBuilder, check_pack_bytes
from crmbackup.storage.address import Credentials, LocalAddress, S3Address
from crmbackup.storage.base import Storage
from crmbackup.storage.open import open_storage

#: Bytes of slices in one batch at most, by their own estimate.
BATCH_BYTES = 24 * 1024 * 1024
#: Bytes in one pack before compression, as long as no single chunk is larger: bounds the memory of a worker, which has
#: one pack that is being built and one that is on its way.
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
    """One batch, shipped. slices: for each, in order, its chunks and facts; a number stands for a chunk of the parent.
    read in bytes.

    stored: packs of this worker that are in storage now and that no earlier result told of. The last pack of this batch
    may be missing: it is then told of by the next result of that worker, or by its `settle`.
    """

    stored: tuple[FilledPack, ...]
    slices: tuple[tuple[tuple[ChunkRef | int, object], ...], ...]
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
_uploads: Uploads | None = None


def prepare(context: ShipContext | UnshipContext, make_executor: Callable[[], Executor] = one_thread) -> None:
    """Set the context of this worker and open its storage. make_executor: gives what packs are uploaded in.

    What is still on its way under an earlier context is waited for. Raises what that upload failed with.
    """
    global _context, _storage, _uploads  # noqa: PLW0603 - how an initializer hands something to later tasks
    stored = _uploads.close() if _uploads else ()
    _context, _uploads = context, None
    _storage = context.storage.open(read_only=isinstance(context, UnshipContext))
    if isinstance(context, ShipContext):
        _uploads = Uploads(_storage, make_executor(), stored)


def settle() -> tuple[FilledPack, ...]:
    """Wait until every pack that this worker shipped is in storage; gives those that no BatchResult told of.

    Raises what an upload failed with.
    """
    assert _uploads is not None
    _uploads.wait()
    return _uploads.take_stored()


def ship(slices: Sequence[Slice]) -> BatchResult:
    """Read, hash, compress, encrypt and upload one batch: as one pack, or several where slices give more than that.

    The upload of a pack goes on while the next one is made, of this batch or another. Also raises what the last upload of
    an earlier batch failed with.
    """
    context, uploads = _context, _uploads
    assert isinstance(context, ShipContext)
    assert uploads is not None
    with _Shipping(context, uploads) as shipping:
        read = 0
        shipped: list[list[tuple[bytes | int, object]]] = []
        for item in slices:
            shipped.append([])
            for data in item.read():
                if isinstance(data.payload, ParentChunk):
                    shipped[-1].append((data.payload.number, data.facts))
                    read += data.payload.size
                    continue
                shipped[-1].append((shipping.add(data.payload), data.facts))
                read += len(data.payload)
        shipping.end_pack()
    located = tuple(tuple((shipping.place(found), facts) for found, facts in chunks) for chunks in shipped)
    return BatchResult(uploads.take_stored(), located, read)


class _Shipping:
    """The packs of one batch. One chunk is compressed while the next is read: neither the source's server nor a core
    waits for the other, and no more than these two are in memory. Beside them there are the pack that they go into and the
    one before it, while that is uploaded, of up to PACK_BYTES each. A pack of one chunk that is larger is waited for.
    """

    def __init__(self, context: ShipContext, uploads: Uploads) -> None:
        self._context = context
        self._uploads = uploads
        self._aside = ThreadPoolExecutor(1)
        self._compressing: Future[None] | None = None
        self._builder: PackBuilder | None = None
        self._waiting = 0
        self._own: set[bytes] = set()
        self._found: dict[bytes, ChunkRef] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._aside.shutdown()

    def add(self, payload: bytes | bytearray | memoryview) -> bytes:
        """Take a chunk, unless it is in storage already; gives its id. It must not change any more."""
        identifier = chunk_id(payload, self._context.chunk_key)
        if identifier in self._context.known or identifier in self._own:
            return identifier
        self._end_chunk()
        if self._waiting and self._waiting + len(payload) > PACK_BYTES:
            self.end_pack()
        if self._builder is None:
            self._builder = PackBuilder(self._context.recipients, self._context.level)
        self._compressing = self._aside.submit(self._builder.add, identifier, payload)
        self._own.add(identifier)
        self._waiting += len(payload)
        if len(payload) > PACK_BYTES:
            # A single row of that size: what is made of it is gone before the next one is read.
            self.end_pack()
            self._uploads.wait()
        return identifier

    def _end_chunk(self) -> None:
        """Wait for the chunk that is being compressed."""
        if self._compressing:
            self._compressing.result()
        self._compressing = None

    def end_pack(self) -> None:
        """Begin to upload the pack, if there is one."""
        self._end_chunk()
        if self._builder is None:
            return
        pack, content, chunks = self._builder.finish()
        self._builder, self._waiting = None, 0
        self._found.update((chunk.chunk_id, chunk) for chunk in chunks)
        self._uploads.begin((pack, tuple(chunks)), content)

    def place(self, identifier: bytes | int) -> ChunkRef | int:
        """Where a chunk lies; the parent's number of one that is there."""
        if isinstance(identifier, int):
            return identifier
        return self._found.get(identifier) or self._context.known[identifier]


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
