"""Create-if-absent by claims, where the storage itself cannot do it."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crmbackup.core.errors import ObjectExists, ObjectNotFound, StorageDenied, StorageFull, StorageUnavailable
from crmbackup.storage.base import Capabilities, ObjectInfo, Storage
from crmbackup.storage.local import LocalStorage
from crmbackup.storage.wrappers.claiming import CLAIMS, Claiming
from crmbackup.storage.wrappers.passing import Passing
from tests.faulty import FakeClock, Faulty, Killed

NO_ANSWER = StorageUnavailable("no answer")
MOMENT = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def faulty(root: Path) -> Faulty:
    return Faulty(LocalStorage(root, conditional_put=False))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def claiming(faulty: Faulty, clock: FakeClock) -> Claiming:
    return Claiming(faulty, clock, rng=random.Random(1))


def _claims(storage: Storage) -> list[str]:
    return [info.key for info in storage.list(CLAIMS)]


def _leave_claim(claiming: Claiming, faulty: Faulty, key: str) -> str:
    """A claim on the key by a writer that died."""
    dying = Faulty(faulty)
    dying.die_after(1)
    with pytest.raises(Killed):
        Claiming(dying, FakeClock()).put(key, b"of the dead", if_absent=True)
    (claim,) = _claims(faulty)
    return claim


def _age(root: Path, seconds: float) -> None:
    for path in (root / CLAIMS).rglob("*"):
        found = path.stat()
        os.utime(path, (found.st_atime, found.st_mtime - seconds))


def test_it_promises_the_condition(claiming: Claiming, faulty: Faulty) -> None:
    assert claiming.capabilities.conditional_put
    assert not faulty.capabilities.conditional_put


def test_the_steps_of_an_undisturbed_put(claiming: Claiming, faulty: Faulty, clock: FakeClock) -> None:
    claiming.put("k/1", b"data", if_absent=True)
    assert [call.operation for call in faulty.calls] == ["put", "list", "stat", "put", "get", "delete"]
    assert _claims(faulty) == []
    assert claiming.get("k/1") == b"data"
    assert clock.pauses == []


def test_a_plain_put_needs_no_claim(claiming: Claiming, faulty: Faulty) -> None:
    claiming.put("k/1", b"data")
    claiming.put("k/1", b"again")
    assert faulty.called("put") == ["k/1", "k/1"]


def test_listings_hide_claims_unless_asked(claiming: Claiming, faulty: Faulty) -> None:
    claim = _leave_claim(claiming, faulty, "k/1")
    claiming.put("a", b"x")
    claiming.put("d", b"x")
    assert [info.key for info in claiming.list("")] == ["a", "d"]
    assert [info.key for info in claiming.list("c")] == []
    assert [info.key for info in claiming.list("claims")] == []
    assert [info.key for info in claiming.list("claims/")] == [claim]


def test_a_live_claim_stands_in_the_way(claiming: Claiming, faulty: Faulty, clock: FakeClock) -> None:
    claim = _leave_claim(claiming, faulty, "k/1")
    with pytest.raises(StorageUnavailable, match=r"ignored from 2\d{3}-.*Z on"):
        claiming.put("k/1", b"mine", if_absent=True)
    assert _claims(faulty) == [claim]
    assert 0 < sum(clock.pauses) < 60
    claiming.put("k/2", b"another key is free", if_absent=True)


def test_stepping_back_finds_the_others_object(claiming: Claiming, faulty: Faulty) -> None:
    _leave_claim(claiming, faulty, "k/1")
    faulty.put("k/1", b"theirs")
    with pytest.raises(ObjectExists):
        claiming.put("k/1", b"mine", if_absent=True)
    assert faulty.get("k/1") == b"theirs"


def test_a_dead_writers_claim_is_ignored_after_an_hour(claiming: Claiming, faulty: Faulty, root: Path) -> None:
    _leave_claim(claiming, faulty, "k/1")
    _age(root, 3500)
    with pytest.raises(StorageUnavailable):
        claiming.put("k/1", b"mine", if_absent=True)
    _age(root, 200)
    claiming.put("k/1", b"mine", if_absent=True)
    assert faulty.get("k/1") == b"mine"
    assert _claims(faulty) == []


def test_credentials_that_may_not_delete(claiming: Claiming, faulty: Faulty) -> None:
    faulty.fail("delete", StorageDenied("no"), times=None)
    claiming.put("k/1", b"data", if_absent=True)
    with pytest.raises(ObjectExists):
        claiming.put("k/1", b"other", if_absent=True)
    assert faulty.get("k/1") == b"data"
    assert len(_claims(faulty)) == 2


def test_a_claim_that_cannot_be_deleted_does_not_hide_success(claiming: Claiming, faulty: Faulty) -> None:
    faulty.fail("delete", NO_ANSWER)
    claiming.put("k/1", b"data", if_absent=True)
    assert claiming.get("k/1") == b"data"


@pytest.mark.parametrize("error", [NO_ANSWER, StorageFull("no room")])
def test_the_claim_stays_when_the_put_may_still_arrive(
    claiming: Claiming, faulty: Faulty, error: StorageUnavailable
) -> None:
    faulty.fail("put", error, when=lambda key: key == "k/1")
    with pytest.raises(type(error)):
        claiming.put("k/1", b"late", if_absent=True)
    assert len(_claims(faulty)) == 1
    with pytest.raises(StorageUnavailable):
        claiming.put("k/1", b"other", if_absent=True)


@pytest.mark.parametrize(("operation", "error"), [("stat", NO_ANSWER), ("get", NO_ANSWER), ("stat", StorageDenied(""))])
def test_the_claim_goes_when_nothing_can_arrive_any_more(
    claiming: Claiming, faulty: Faulty, operation: str, error: StorageUnavailable
) -> None:
    faulty.fail(operation, error)
    with pytest.raises(type(error)):
        claiming.put("k/1", b"data", if_absent=True)
    assert _claims(faulty) == []


class Interfering(Passing):
    """Runs something just after the stat of an object, as another machine would."""

    def __init__(self, inner: Storage, act: Callable[[], None]) -> None:
        super().__init__(inner)
        self._act = act

    def stat(self, key: str) -> ObjectInfo:
        try:
            return super().stat(key)
        finally:
            self._act()


@pytest.mark.parametrize("suspended", [True, False])
def test_a_machine_that_slept_does_not_write_any_more(faulty: Faulty, clock: FakeClock, suspended: bool) -> None:
    storage = Interfering(faulty, lambda: clock.advance(1801, suspended=suspended))
    with pytest.raises(StorageUnavailable, match="suspended"):
        Claiming(storage, clock).put("k/1", b"data", if_absent=True)
    assert faulty.called("put") == [key for key in faulty.called("put") if key.startswith(CLAIMS)]
    assert _claims(faulty) == []


class Lossy(Passing):
    """Another writer's put of the key comes right after ours."""

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        super().put(key, data, if_absent=if_absent)
        if not key.startswith(CLAIMS):
            super().put(key, b"theirs")


def test_being_overwritten_by_one_who_ignores_claims_is_noticed(faulty: Faulty, clock: FakeClock) -> None:
    with pytest.raises(ObjectExists):
        Claiming(Lossy(faulty), clock).put("k/1", b"mine", if_absent=True)
    assert _claims(faulty) == []


class Forgetful(Passing):
    """Listings lag behind."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return iter(())


def test_a_storage_without_read_after_write_is_refused(faulty: Faulty, clock: FakeClock) -> None:
    with pytest.raises(StorageUnavailable, match="does not list"):
        Claiming(Forgetful(faulty), clock).put("k/1", b"mine", if_absent=True)
    assert "k/1" not in faulty.called("put")


@pytest.mark.parametrize("effect", [False, True])
@pytest.mark.parametrize("writes", range(3))
def test_a_crash_at_any_write_leaves_all_or_nothing(root: Path, writes: int, effect: bool) -> None:
    dying = Faulty(LocalStorage(root, conditional_put=False))
    dying.die_after(writes, effect=effect)
    with pytest.raises(Killed):
        Claiming(dying, FakeClock()).put("k/1", b"first", if_absent=True)
    _age(root, 3700)
    survivor = Claiming(LocalStorage(root, conditional_put=False), FakeClock())
    written = (writes, effect) > (1, False)
    if written:
        with pytest.raises(ObjectExists):
            survivor.put("k/1", b"second", if_absent=True)
    else:
        survivor.put("k/1", b"second", if_absent=True)
    assert survivor.get("k/1") == (b"first" if written else b"second")
    assert _claims(survivor) == []


class Memory(Storage):
    """Objects in a dict, for the sake of speed: thousands of interleavings are tried. All of them are of one moment."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}

    @property
    def location(self) -> str:
        return "memory"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(conditional_put=False)

    def close(self) -> None:
        """Nothing to give back."""

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        assert not if_absent
        self._objects[key] = data

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._objects[key]

    def stat(self, key: str) -> ObjectInfo:
        if key not in self._objects:
            raise ObjectNotFound(key)
        return ObjectInfo(key, len(self._objects[key]), MOMENT)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return iter([self.stat(key) for key in sorted(self._objects) if key.startswith(prefix)])

    def delete(self, key: str) -> None:
        self._objects.pop(key, None)


class Turns(Passing):
    """Lets a scheduler decide when each request of one writer happens."""

    def __init__(self, inner: Storage) -> None:
        super().__init__(inner)
        self.go = threading.Semaphore(0)
        self.arrived = threading.Semaphore(0)
        self.killed = False

    def _turn(self) -> None:
        self.arrived.release()
        self.go.acquire()
        if self.killed:
            raise Killed

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        self._turn()
        super().put(key, data, if_absent=if_absent)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        self._turn()
        return super().get(key, offset, length)

    def stat(self, key: str) -> ObjectInfo:
        self._turn()
        return super().stat(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._turn()
        return iter(list(super().list(prefix)))

    def delete(self, key: str) -> None:
        self._turn()
        super().delete(key)


class Writer:
    """One racing writer in a thread that stands still between its requests."""

    def __init__(self, inner: Storage, data: bytes, seed: int) -> None:
        self.data = data
        self.won = False
        self.ended = False
        self._turns = Turns(inner)
        self._storage = Claiming(self._turns, FakeClock(), rng=random.Random(seed))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._turns.arrived.acquire()

    def _run(self) -> None:
        try:
            self._storage.put("k", self.data, if_absent=True)
            self.won = True
        except (ObjectExists, StorageUnavailable, Killed):
            pass
        self.ended = True
        self._turns.arrived.release()

    def step(self) -> None:
        """Let one request happen and wait for the next, or the end."""
        if not self.ended:
            self._turns.go.release()
            self._turns.arrived.acquire()

    def kill(self) -> None:
        self._turns.killed = True
        self.finish()

    def finish(self) -> None:
        while not self.ended:
            self.step()
        self._thread.join()


@settings(max_examples=300, deadline=None)
@given(
    steps=st.lists(st.integers(0, 2), max_size=60),
    killed=st.dictionaries(st.integers(0, 59), st.integers(0, 2), max_size=2),
    seed=st.integers(0, 1000),
)
def test_at_most_one_writer_wins_in_any_interleaving(steps: list[int], killed: dict[int, int], seed: int) -> None:
    storage = Memory()
    writers = [Writer(storage, f"writer {number}".encode(), seed + number) for number in range(3)]
    try:
        for number, step in enumerate(steps):
            writers[step].step()
            if number in killed:
                writers[killed[number]].kill()
    finally:
        for writer in writers:
            writer.finish()
    winners = [writer.data for writer in writers if writer.won]
    assert len(winners) <= 1
    if winners:
        assert storage.get("k") == winners[0]
