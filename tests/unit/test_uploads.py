"""What a worker does while a pack of its own is on its way: `ship`, `settle` and `prepare` in this process.

Uploads run when somebody waits for them and not before, so that each moment is a known one.
"""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import pytest

from crmbackup.core.errors import StorageError, StorageFull
from crmbackup.engines.base import SliceData
from crmbackup.operations import shipping
from crmbackup.operations.shipping import BatchResult, ShipContext, prepare, settle, ship
from crmbackup.repository.identity import Identity
from crmbackup.storage.base import Storage
from tests.faulty import Faulty
from tests.memory import MemoryStorage

KIB = 1024
#: What PACK_BYTES is here.
PACK = 64 * KIB
RECIPIENT = Identity.generate().recipient


class Late(Future[Any]):
    """Runs its work when somebody asks for the result."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__()
        self._work: Callable[[], object] | None = work

    def result(self, timeout: float | None = None) -> Any:
        work, self._work = self._work, None
        if work:
            try:
                self.set_result(work())
            except StorageError as error:
                self.set_exception(error)
        return super().result(timeout)


class LateExecutor(Executor):
    """As a thread that is as slow as can be."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        return Late(lambda: work(*args, **named))


@dataclass
class Worker:
    """A storage, and what a worker makes of it."""

    storage: Faulty = field(default_factory=lambda: Faulty(MemoryStorage()))

    def open(self, *, read_only: bool = False) -> Storage:
        return self.storage

    def prepare(self) -> None:
        context = ShipContext(self, (RECIPIENT,), bytes(32), 1, {})  # type: ignore[arg-type]
        prepare(context, LateExecutor)

    @property
    def put(self) -> list[str]:
        """The names of the packs that were put, in order."""
        return [key.rpartition("/")[2] for key in self.storage.called("put")]


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    for name in ("_context", "_storage", "_uploads"):
        monkeypatch.setattr(shipping, name, None)
    monkeypatch.setattr(shipping, "PACK_BYTES", PACK)
    worker = Worker()
    worker.prepare()
    return worker


@dataclass(frozen=True)
class Rows:
    """Chunks of these sizes in bytes that do not compress. before_each: is told a number before each one is read."""

    sizes: tuple[int, ...]
    before_each: Callable[[int], None] = lambda number: None

    @property
    def size(self) -> int:
        return sum(self.sizes)

    def read(self) -> Iterator[SliceData]:
        for number, size in enumerate(self.sizes):
            self.before_each(number)
            yield SliceData(os.urandom(size), None)


def stored_by(result: BatchResult) -> list[str]:
    return [pack.pack_id for pack, _ in result.stored]


def packs_of(result: BatchResult) -> list[str]:
    """The packs that the chunks of a batch lie in."""
    return list(dict.fromkeys(chunk.pack_id for part in result.slices for chunk, _ in part))  # type: ignore[union-attr]


def test_a_batch_is_done_before_its_pack_is_stored_and_the_next_result_tells_of_it(worker: Worker) -> None:
    first = ship([Rows((KIB,))])
    assert (worker.put, stored_by(first)) == ([], [])
    second = ship([Rows((KIB,))])
    assert worker.put == stored_by(second) == packs_of(first)
    assert [pack.pack_id for pack, _ in settle()] == packs_of(second)
    assert worker.put == packs_of(first) + packs_of(second)
    assert settle() == ()


def test_what_is_told_of_a_stored_pack_is_what_the_batch_was_told(worker: Worker) -> None:
    result = ship([Rows((KIB, KIB))])
    ((pack, chunks),) = settle()
    assert [chunk for chunk, _ in result.slices[0]] == list(chunks)
    assert worker.storage.stat(f"packs/{pack.pack_id[:2]}/{pack.pack_id}").size == pack.size


def test_one_pack_is_on_its_way_at_most(worker: Worker) -> None:
    done: list[int] = []
    result = ship([Rows((PACK,) * 4, lambda number: done.append(len(worker.put)))])
    # The pack of a chunk begins its way when the next chunk comes, and has to be there before that of the next does.
    assert done == [0, 0, 0, 1]
    assert stored_by(result) == packs_of(result)[:3]
    settle()
    assert worker.put == packs_of(result)


def test_a_pack_of_one_huge_row_is_gone_before_the_next_row_is_read(worker: Worker) -> None:
    huge = 100 * PACK
    put: list[int] = []
    held: list[int] = []

    class Sink(MemoryStorage):
        def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
            pass

    def look(number: int) -> None:
        gc.collect()
        put.append(len(worker.put))
        held.append(tracemalloc.get_traced_memory()[0])

    worker.storage = Faulty(Sink())
    worker.prepare()
    tracemalloc.start()
    try:
        ship([Rows((KIB, huge, KIB), look)])
    finally:
        tracemalloc.stop()
    assert put == [0, 0, 2], "the pack before it, and its own"
    assert held[2] - held[1] < 1.5 * huge, "the row itself, but not its pack"


@pytest.mark.parametrize("also", [settle, lambda: ship([Rows((KIB,))])], ids=["settle", "ship"])
def test_an_upload_that_failed_is_told_to_whoever_waits_for_it(worker: Worker, also: Callable[[], object]) -> None:
    worker.storage.fail("put", StorageFull("no room"))
    ship([Rows((KIB,))])
    for _ in range(2):
        with pytest.raises(StorageFull):
            also()
    assert len(worker.put) == 1, "nothing is uploaded behind it"
    with pytest.raises(StorageFull):
        worker.prepare()


def test_an_upload_that_failed_is_told_while_its_batch_goes_on(worker: Worker) -> None:
    worker.storage.fail("put", StorageFull("no room"))
    with pytest.raises(StorageFull):
        ship([Rows((PACK,) * 3)])
    assert len(worker.put) == 1


def test_another_context_waits_for_what_is_on_its_way_and_loses_no_pack(worker: Worker) -> None:
    first = ship([Rows((KIB,))])
    old = worker.storage
    worker.storage = Faulty(MemoryStorage())
    worker.prepare()
    assert len(old.called("put")) == 1
    second = ship([Rows((KIB,))])
    assert stored_by(second) == packs_of(first)
    assert [pack.pack_id for pack, _ in settle()] == worker.put == packs_of(second)
