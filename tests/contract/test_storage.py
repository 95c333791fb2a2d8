"""The contract of crmbackup.storage.base.Storage, kept by every implementation and every wrapper."""

from __future__ import annotations

import multiprocessing
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crmbackup.core.clock import SystemClock
from crmbackup.core.errors import ObjectExists, ObjectNotFound, StorageUnavailable, UsageError
from crmbackup.storage.address import LocalAddress
from crmbackup.storage.base import Storage
from crmbackup.storage.local import LocalStorage
from crmbackup.storage.open import open_storage, probe_address
from crmbackup.storage.s3 import S3Storage
from crmbackup.storage.wrappers.claiming import Claiming
from crmbackup.storage.wrappers.retrying import Retrying
from crmbackup.storage.wrappers.throttled import Throttled
from tests.faulty import Faulty
from tests.memory import MemoryStorage
from tests.servers import S3Server


class HastyClock(SystemClock):
    """Real time, but pauses are short: it is not their length that is tested here."""

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds / 20)


CLOCK = HastyClock()
Make = Callable[[], Storage]


def _local(request: pytest.FixtureRequest) -> LocalStorage:
    return LocalStorage(request.getfixturevalue("tmp_path") / "root", create=True)


def _unlinked(request: pytest.FixtureRequest) -> LocalStorage:
    """As on a file system without hard links."""
    return LocalStorage(request.getfixturevalue("tmp_path") / "root", create=True, conditional_put=False)


def _seaweed(request: pytest.FixtureRequest, *, checksums: str = "when_required") -> S3Storage:
    server: S3Server = request.getfixturevalue("seaweed")
    address = replace(server.address("some/prefix"), checksums=checksums)
    return S3Storage(address, server.credentials, conditional_put=True)


def _rclone(request: pytest.FixtureRequest) -> Storage:
    """Retried, as in the product: rclone answers 500 to a put while another makes the same directory."""
    server: S3Server = request.getfixturevalue("rclone_s3")
    return Retrying(S3Storage(server.address(), server.credentials), CLOCK)


def _opened_rclone(request: pytest.FixtureRequest) -> Storage:
    server: S3Server = request.getfixturevalue("rclone_s3")
    return open_storage(server.address("prefix"), server.credentials, clock=CLOCK, conditional_put=False)


# Those whose put(if_absent=True) is atomic, and those for which it is not promised.
ATOMIC: dict[str, Callable[[pytest.FixtureRequest], Storage]] = {
    "local": _local,
    "memory": lambda request: MemoryStorage(),
    "seaweed": _seaweed,
    "seaweed-crc": lambda request: _seaweed(request, checksums="when_supported"),
    "retrying": lambda request: Retrying(_local(request), CLOCK),
    "throttled": lambda request: Throttled(_local(request), CLOCK, 10**12),
    "faulty": lambda request: Faulty(_local(request)),
    "claiming": lambda request: Claiming(_unlinked(request), CLOCK),
    "claiming-rclone": _opened_rclone,
}
OTHERS: dict[str, Callable[[pytest.FixtureRequest], Storage]] = {
    "local-without-links": _unlinked,
    "rclone": _rclone,
}


@contextmanager
def _closing(storage: Storage) -> Iterator[Storage]:
    try:
        yield storage
    finally:
        storage.close()


@pytest.fixture(params=[*ATOMIC, *OTHERS])
def storage(request: pytest.FixtureRequest) -> Iterator[Storage]:
    with _closing((ATOMIC | OTHERS)[request.param](request)) as made:
        yield made


@pytest.fixture(params=list(ATOMIC))
def atomic(request: pytest.FixtureRequest) -> Iterator[Storage]:
    with _closing(ATOMIC[request.param](request)) as made:
        yield made


# rclone may give a reader the old size and the new bytes while an object is being replaced; another process cannot see
# what is in the memory of this one.
@pytest.fixture(params=[name for name in ATOMIC | OTHERS if "rclone" not in name and name != "memory"])
def replaceable(request: pytest.FixtureRequest) -> Iterator[Storage]:
    with _closing((ATOMIC | OTHERS)[request.param](request)) as made:
        yield made


def _keys(storage: Storage, prefix: str = "") -> list[str]:
    return [info.key for info in storage.list(prefix)]


def test_what_is_put_is_got_back(storage: Storage) -> None:
    for number, data in enumerate([b"", b"x", bytes(range(256)) * 5, b"\r\n" * 100]):
        key = f"packs/{number}/x.1_2-3"
        storage.put(key, data)
        assert storage.get(key) == data
        info = storage.stat(key)
        assert (info.key, info.size) == (key, len(data))
        (listed,) = storage.list(f"packs/{number}/")
        assert listed == replace(info, modified=listed.modified)


def test_times_are_aware_and_now(storage: Storage) -> None:
    storage.put("a", b"x")
    for info in (storage.stat("a"), *storage.list("a")):
        assert info.modified.utcoffset() == timedelta(0)
        assert abs(info.modified.astimezone(UTC) - CLOCK.now()) < timedelta(minutes=5)


def test_put_replaces(storage: Storage) -> None:
    storage.put("a/b", b"a longer first one")
    storage.put("a/b", b"second")
    assert storage.get("a/b") == b"second"
    assert [info.size for info in storage.list("")] == [6]


def test_put_if_absent_keeps_what_is_there(storage: Storage) -> None:
    storage.put("snapshots/p/1", b"first", if_absent=True)
    with pytest.raises(ObjectExists):
        storage.put("snapshots/p/1", b"second", if_absent=True)
    assert storage.get("snapshots/p/1") == b"first"
    storage.delete("snapshots/p/1")
    storage.put("snapshots/p/1", b"third", if_absent=True)
    assert storage.get("snapshots/p/1") == b"third"


def test_put_if_absent_sees_a_plain_put_and_an_empty_object(storage: Storage) -> None:
    storage.put("a", b"")
    with pytest.raises(ObjectExists):
        storage.put("a", b"second", if_absent=True)
    assert storage.get("a") == b""


def test_ranges(storage: Storage) -> None:
    data = secrets.token_bytes(1000)
    storage.put("r", data)
    for offset, length in [(0, 1000), (0, 1), (999, 1), (500, 100), (0, 0), (1000, 0), (300, 0)]:
        assert storage.get("r", offset, length) == data[offset : offset + length]
    for offset in (0, 1, 999, 1000):
        assert storage.get("r", offset) == data[offset:]


def test_a_range_beyond_the_end_is_a_short_read(storage: Storage) -> None:
    storage.put("r", bytes(1000))
    for offset, length in [(0, 1001), (999, 2), (1000, 1), (2000, 1), (1001, None), (1001, 0)]:
        with pytest.raises(StorageUnavailable):
            storage.get("r", offset, length)


def test_a_range_that_cannot_be_meant(storage: Storage) -> None:
    storage.put("r", bytes(10))
    for offset, length in [(-1, None), (0, -1), (-5, 3)]:
        with pytest.raises(UsageError):
            storage.get("r", offset, length)


def test_absent_objects(storage: Storage) -> None:
    storage.put("there/x", b"x")
    for key in ("absent", "there", "there/y", "there/x/y", "nowhere/at/all"):
        with pytest.raises(ObjectNotFound):
            storage.get(key)
        with pytest.raises(ObjectNotFound):
            storage.get(key, 3, 4)
        with pytest.raises(ObjectNotFound):
            storage.stat(key)
        # No key that crmbackup uses is the directory of another. Servers that keep objects as files do not know what
        # to do about a delete of such a pair's other half: rclone deletes there/x for there/x/y.
        if key not in ("there", "there/x/y"):
            storage.delete(key)
    assert _keys(storage) == ["there/x"]
    assert _keys(storage, "absent") == []


def test_a_deleted_object_is_gone(storage: Storage) -> None:
    storage.put("a/b", b"x")
    storage.put("a/c", b"x")
    storage.delete("a/b")
    storage.delete("a/b")
    with pytest.raises(ObjectNotFound):
        storage.get("a/b")
    with pytest.raises(ObjectNotFound):
        storage.stat("a/b")
    assert _keys(storage) == ["a/c"]
    storage.delete("a/c")
    assert _keys(storage) == []
    storage.put("a/b", b"y")
    assert storage.get("a/b") == b"y"


def test_invalid_keys_are_refused(storage: Storage) -> None:
    puts = (lambda key: storage.put(key, b"x"), lambda key: storage.put(key, b"x", if_absent=True))
    for key in ("", "/a", "a/", "a//b", ".", "..", "a/../b", "a/./b", "a b", "ä", "~x", "a\n", "a\0b"):
        for call in (storage.get, storage.stat, storage.delete, *puts):
            with pytest.raises(UsageError):
                call(key)


# Policies "crm" and "crm-2" make such neighbours: "-" and "." sort before "/", digits and letters behind it.
NEIGHBOURS = ["crm-2/1", "crm-2/2", "crm.old/1", "crm/1", "crm/2/x", "crm/3", "crm0/1", "crm2", "crm_x/1", "z"]


def test_list_is_in_key_order_by_plain_prefix(storage: Storage) -> None:
    for key in reversed(NEIGHBOURS):
        storage.put(key, b"x")
    assert sorted(NEIGHBOURS) == NEIGHBOURS
    for prefix in ("", "c", "crm", "crm-", "crm/", "crm/2", "crm/2/", "crm/2/x", "crm/2/x/", "crm2", "z", "y", "crm//"):
        assert _keys(storage, prefix) == [key for key in NEIGHBOURS if key.startswith(prefix)], prefix


def test_prefixes_that_are_no_keys_find_nothing(storage: Storage) -> None:
    storage.put("a/b", b"x")
    for prefix in ("/", "a//", "..", "../", "a/../", "~", "a/b/", "ä", "A"):
        assert _keys(storage, prefix) == []


def test_more_objects_than_one_page_holds(storage: Storage) -> None:
    """A page of S3 holds 1,000."""
    keys = [f"{place}/{number:04}" for place in ("many-1", "many", "many.x") for number in range(334)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: storage.put(key, key.encode()), keys))
    assert _keys(storage) == sorted(keys)
    assert _keys(storage, "many") == sorted(keys)
    assert _keys(storage, "many/") == sorted(key for key in keys if key.startswith("many/"))
    assert all(info.size == len(info.key) for info in storage.list("many"))


def test_a_listing_survives_deletes_of_what_it_lists(storage: Storage) -> None:
    for number in range(20):
        storage.put(f"d/{number:02}/x", b"x")
    seen = []
    for info in storage.list("d/"):
        storage.delete(info.key)
        seen.append(info.key)
    assert seen == sorted(seen)
    assert seen[0] == "d/00/x"
    assert _keys(storage, "d/") == []


def test_a_large_object(storage: Storage) -> None:
    data = secrets.token_bytes(21 * 1024 * 1024 + 17)
    storage.put("packs/large", data)
    assert storage.stat("packs/large").size == len(data)
    assert storage.get("packs/large") == data
    assert storage.get("packs/large", 20_000_000, 1000) == data[20_000_000:20_001_000]
    assert storage.get("packs/large", len(data) - 5) == data[-5:]


def test_many_threads_use_one_storage(storage: Storage) -> None:
    def work(number: int) -> bool:
        key, data = f"t/{number % 4}/{number:03}", str(number).encode() * 1000
        storage.put(key, data)
        return storage.get(key) == data and storage.stat(key).size == len(data) and key in _keys(storage, key)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(100)))


def test_replacing_is_never_half_seen(replaceable: Storage) -> None:
    """Readers beside a writer see one whole version or the other."""
    versions = [bytes([letter]) * size for letter, size in ((65, 300_000), (66, 500_000))]
    replaceable.put("v", versions[0])

    def write() -> None:
        for number in range(20):
            replaceable.put("v", versions[number % 2])

    seen = set()
    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(write)
        over = False
        while not over:
            over = writer.done()  # once more behind its end: it may be faster than our first look
            # A server may be unable to answer in the middle of a change; it must not give a part of one.
            with suppress(StorageUnavailable):
                seen.add(replaceable.get("v"))
                assert replaceable.stat("v").size in (300_000, 500_000)
        writer.result()
    assert seen
    assert seen <= set(versions)


def _race(storage: Storage, key: str, racers: int = 8) -> list[bytes]:
    """What the winners of a race for a key wrote."""
    start = threading.Barrier(racers)

    def run(number: int) -> bytes | None:
        data = f"racer {number} ".encode() * 100
        start.wait()
        try:
            storage.put(key, data, if_absent=True)
        except (ObjectExists, StorageUnavailable):
            return None
        return data

    with ThreadPoolExecutor(racers) as pool:
        return [data for data in pool.map(run, range(racers)) if data is not None]


def test_of_racing_writers_exactly_one_wins(atomic: Storage) -> None:
    assert atomic.capabilities.conditional_put
    for number in range(3):
        key = f"race/{number}"
        winners = _race(atomic, key)
        assert len(winners) == 1
        assert atomic.get(key) == winners[0]
    assert _keys(atomic) == [f"race/{number}" for number in range(3)]


def test_location_names_the_place(storage: Storage) -> None:
    assert storage.location.startswith(("/", "s3://test-"))


class TestProbe:
    """What trials find out about real storages. Here, since it needs the same servers."""

    def test_a_directory(self, tmp_path: Path) -> None:
        assert probe_address(LocalAddress(tmp_path), clock=CLOCK).conditional_put
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    def test_seaweed_has_the_condition(self, seaweed: S3Server) -> None:
        address = seaweed.address()
        assert probe_address(address, seaweed.credentials, clock=CLOCK).conditional_put
        with _closing(S3Storage(address, seaweed.credentials)) as storage:
            assert _keys(storage) == []

    def test_rclone_ignores_the_condition(self, rclone_s3: S3Server) -> None:
        address = rclone_s3.address()
        assert not probe_address(address, rclone_s3.credentials, clock=CLOCK).conditional_put
        with _closing(S3Storage(address, rclone_s3.credentials)) as storage:
            assert _keys(storage) == []


def _put_in_process(root: Path, number: int, start: multiprocessing.synchronize.Barrier) -> bool:
    storage = LocalStorage(root)
    start.wait()
    try:
        storage.put("new/dir/key", str(number).encode(), if_absent=True)
    except ObjectExists:
        return False
    return True


def test_processes_race_for_a_local_key(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(4) as pool:
        start = manager.Barrier(4)
        won = pool.starmap(_put_in_process, [(tmp_path, number, start) for number in range(4)])
    assert sum(won) == 1
    assert LocalStorage(tmp_path).get("new/dir/key") == str(won.index(True)).encode()


_segments = st.text("abz0.-_AZ", min_size=1, max_size=3).filter(lambda text: text not in (".", ".."))
_some_keys = st.lists(_segments, min_size=1, max_size=3).map("/".join)


def _no_directory_of_another(keys: list[str]) -> bool:
    return not any(other.startswith(f"{key}/") for key in keys for other in keys)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.lists(_some_keys, max_size=12, unique=True).filter(_no_directory_of_another),
    prefix=st.text("ab/.-", max_size=4),
)
def test_a_directory_lists_any_keys_in_order(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], prefix: str
) -> None:
    storage = LocalStorage(tmp_path_factory.mktemp("keys"))
    for key in keys:
        storage.put(key, b"x")
    assert _keys(storage, prefix) == sorted(key for key in keys if key.startswith(prefix))
