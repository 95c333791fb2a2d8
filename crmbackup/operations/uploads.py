"""Packs on their way into storage, while the worker that made them goes on."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor

from crmbackup.repository.chunks import ChunkRef, PackInfo, pack_key
from crmbackup.storage.base import Storage

#: A pack and what it holds.
FilledPack = tuple[PackInfo, tuple[ChunkRef, ...]]


def one_thread() -> Executor:
    """What packs are uploaded in: one thread, begun with the first pack."""
    return ThreadPoolExecutor(1, "upload")


class Uploads:
    """One upload at a time. Its methods are for one thread, that of the worker's tasks.

    At most one finished pack is in memory, beside the one that is being built.

    Args:
        executor: closed with this. One that runs what it is given at once, in the same thread, will do.
        stored: packs that are in storage and that nobody was told of yet.
    """

    def __init__(self, storage: Storage, executor: Executor, stored: Iterable[FilledPack] = ()) -> None:
        self._storage = storage
        self._executor = executor
        self._under_way: tuple[FilledPack, Future[None]] | None = None
        self._stored = list(stored)

    def begin(self, pack: FilledPack, content: bytes | bytearray) -> None:
        """Upload a pack, as soon as the one before it is in storage. Raises what that one failed with."""
        self.wait()
        put = self._executor.submit(self._storage.put, pack_key(pack[0].pack_id), content)
        self._under_way = (pack, put)

    def wait(self) -> None:
        """Wait for the pack that is on its way. Raises what it failed with: StorageError, as a rule."""
        if self._under_way is None:
            return
        pack, put = self._under_way
        put.result()  # a failed one stays where it is: whoever waits again is told again
        self._under_way = None
        self._stored.append(pack)

    def take_stored(self) -> tuple[FilledPack, ...]:
        """The packs that came into storage since this was last asked, without waiting for one. Raises as `wait` does."""
        if self._under_way is not None and self._under_way[1].done():
            self.wait()
        stored, self._stored = tuple(self._stored), []
        return stored

    def close(self) -> tuple[FilledPack, ...]:
        """Wait, end the executor, and give what `take_stored` would."""
        self.wait()
        self._executor.shutdown()
        return self.take_stored()
