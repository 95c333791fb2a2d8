"""Retry, rate limit, read-only."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crmbackup.core.errors import (
    ObjectExists,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageMisconfigured,
    StorageUnavailable,
)
from crmbackup.storage.base import Storage
from crmbackup.storage.local import LocalStorage
from crmbackup.storage.wrappers.readonly import ReadOnly
from crmbackup.storage.wrappers.retrying import Retrying
from crmbackup.storage.wrappers.throttled import Throttled
from tests.faulty import FakeClock, Faulty, Killed

NO_ANSWER = StorageUnavailable("cannot write", why="no answer", hint="check the network")


@pytest.fixture
def faulty(tmp_path: Path) -> Faulty:
    storage = Faulty(LocalStorage(tmp_path))
    storage.put("there", b"x" * 10)
    storage.calls.clear()
    return storage


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def retrying(faulty: Faulty, clock: FakeClock) -> Retrying:
    return Retrying(faulty, clock, attempts=4, base=1.0, cap=3.0, rng=random.Random(7))


class TestRetrying:
    def test_each_call_is_repeated_until_it_works(self, retrying: Retrying, faulty: Faulty, clock: FakeClock) -> None:
        for operation in ("put", "get", "stat", "list", "delete"):
            faulty.fail(operation, NO_ANSWER, times=3)
        retrying.put("new", b"data")
        assert retrying.get("new", 1, 2) == b"at"
        assert retrying.stat("new").size == 4
        assert [info.key for info in retrying.list("n")] == ["new"]
        retrying.delete("new")
        assert len(faulty.calls) == 5 * 4
        assert len(clock.pauses) == 5 * 3

    def test_it_gives_up_and_says_how_often_it_tried(self, retrying: Retrying, faulty: Faulty) -> None:
        for operation in ("put", "get", "stat", "list", "delete"):
            faulty.fail(operation, NO_ANSWER, times=None)
        calls = [
            lambda: retrying.put("k", b"data"),
            lambda: retrying.put("k", b"data", if_absent=True),
            lambda: retrying.get("there"),
            lambda: retrying.stat("there"),
            lambda: list(retrying.list("")),
            lambda: retrying.delete("there"),
        ]
        for call in calls:
            faulty.calls.clear()
            with pytest.raises(StorageUnavailable) as caught:
                call()
            assert caught.value.why == "no answer; tried 4 times"
            assert caught.value.hint == NO_ANSWER.hint
            assert len(faulty.calls) == 4

    @pytest.mark.parametrize("kind", [StorageDenied, StorageFull, StorageMisconfigured, StorageError, ObjectExists])
    def test_what_will_not_change_is_raised_at_once(
        self, retrying: Retrying, faulty: Faulty, clock: FakeClock, kind: type[StorageError]
    ) -> None:
        faulty.fail("put", kind("no"), times=None)
        with pytest.raises(kind):
            retrying.put("k", b"data", if_absent=True)
        assert len(faulty.calls) == 1
        assert clock.pauses == []

    @given(st.integers(1, 40), st.integers())
    def test_pauses_grow_up_to_the_cap(self, attempts: int, seed: int) -> None:
        clock = FakeClock()
        faulty = Faulty(Unreachable())
        storage = Retrying(faulty, clock, attempts=attempts, base=0.5, cap=30.0, rng=random.Random(seed))
        faulty.vanish()
        with pytest.raises(StorageUnavailable):
            storage.get("k")
        assert len(clock.pauses) == attempts - 1
        assert all(0 <= pause <= min(30.0, 0.5 * 2**number) for number, pause in enumerate(clock.pauses))

    def test_its_own_lost_put_is_success(self, retrying: Retrying, faulty: Faulty) -> None:
        faulty.fail("put", NO_ANSWER, effect=True)
        retrying.put("new", b"mine", if_absent=True)
        assert retrying.get("new") == b"mine"

    def test_looking_for_its_own_put_is_repeated_too(self, retrying: Retrying, faulty: Faulty) -> None:
        faulty.fail("put", NO_ANSWER, effect=True)
        faulty.fail("get", NO_ANSWER, times=2)
        retrying.put("new", b"mine", if_absent=True)

    def test_another_writers_object_is_not_success(self, retrying: Retrying, faulty: Faulty) -> None:
        faulty.fail("put", NO_ANSWER)
        with pytest.raises(ObjectExists):
            retrying.put("there", b"mine", if_absent=True)
        assert retrying.get("there") == b"x" * 10

    def test_equal_bytes_without_a_lost_answer_are_not_success(self, retrying: Retrying, faulty: Faulty) -> None:
        with pytest.raises(ObjectExists):
            retrying.put("there", b"x" * 10, if_absent=True)
        assert faulty.called("get") == []

    def test_an_object_that_may_not_be_read_counts_as_anothers(self, retrying: Retrying, faulty: Faulty) -> None:
        faulty.fail("put", NO_ANSWER, effect=True)
        faulty.fail("get", StorageDenied("no"))
        with pytest.raises(ObjectExists):
            retrying.put("new", b"mine", if_absent=True)

    def test_a_broken_listing_goes_on_behind_its_last_key(self, retrying: Retrying, faulty: Faulty) -> None:
        keys = [f"l/{number}" for number in range(10)]
        for key in keys:
            retrying.put(key, b"x")
        for keep in (3, 0, 2, 7, 10):
            faulty.break_list(keep)
        assert [info.key for info in retrying.list("l/")] == keys
        assert len(faulty.called("list")) == 6

    def test_a_killed_process_does_nothing_more(self, retrying: Retrying, faulty: Faulty, clock: FakeClock) -> None:
        faulty.die_after(0)
        with pytest.raises(Killed):
            retrying.put("k", b"data")
        assert len(faulty.calls) == 1

    def test_attempts_must_be_some(self, faulty: Faulty, clock: FakeClock) -> None:
        with pytest.raises(ValueError, match="attempts"):
            Retrying(faulty, clock, attempts=0)


class Unreachable(LocalStorage):
    """Only its name is ever asked for."""

    def __init__(self) -> None:
        super().__init__(Path("/"))


class TestThrottled:
    def test_each_put_pays_for_the_one_before(self, faulty: Faulty, clock: FakeClock) -> None:
        storage = Throttled(faulty, clock, 100)
        for key, size in (("a", 200), ("b", 50), ("c", 1000)):
            storage.put(key, bytes(size))
        assert clock.pauses == pytest.approx([2.0, 0.5])

    def test_time_that_passes_anyway_is_no_debt_and_no_credit(self, faulty: Faulty, clock: FakeClock) -> None:
        storage = Throttled(faulty, clock, 100)
        storage.put("a", bytes(200))
        clock.advance(1.5)
        storage.put("b", bytes(200))
        clock.advance(3600)
        storage.put("c", bytes(200))
        storage.put("d", bytes(200))
        assert clock.pauses == pytest.approx([0.5, 2.0])

    def test_threads_share_the_rate(self, faulty: Faulty, clock: FakeClock) -> None:
        storage = Throttled(faulty, clock, 1000)
        began = clock.monotonic()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: storage.put(f"t/{number}", bytes(100)), range(40)))
        # The last of them starts when the 39 before it are paid for; sleeps of threads overlap in no fake time.
        assert clock.monotonic() - began >= 3.9 - 1e-6

    def test_reading_is_free_and_the_condition_passes(self, faulty: Faulty, clock: FakeClock) -> None:
        storage = Throttled(faulty, clock, 1)
        assert storage.get("there") == b"x" * 10
        with pytest.raises(ObjectExists):
            storage.put("there", b"y", if_absent=True)
        assert clock.pauses == []

    def test_the_rate_must_be_above_zero(self, faulty: Faulty, clock: FakeClock) -> None:
        with pytest.raises(ValueError, match="bytes_per_second"):
            Throttled(faulty, clock, 0)


class TestReadOnly:
    def test_nothing_is_changed(self, faulty: Faulty) -> None:
        storage: Storage = ReadOnly(faulty)
        for change in (
            lambda: storage.put("k", b"data"),
            lambda: storage.put("k", b"data", if_absent=True),
            lambda: storage.delete("there"),
        ):
            with pytest.raises(StorageDenied, match="reading only"):
                change()
        assert faulty.calls == []

    def test_reading_passes(self, faulty: Faulty) -> None:
        storage = ReadOnly(faulty)
        assert storage.get("there", 2, 3) == b"xxx"
        assert storage.stat("there").size == 10
        assert [info.key for info in storage.list("")] == ["there"]
        assert storage.capabilities == faulty.capabilities
        assert storage.location == faulty.location
        storage.close()
