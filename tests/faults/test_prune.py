"""Forgetting and collecting on a real repository: what goes, what stays, a stop between any two calls, hostile objects."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from crmbackup.core.clock import SystemClock
from crmbackup.core.errors import (
    CrmBackupError,
    ObjectDamaged,
    PackMissing,
    StorageDenied,
    StorageUnavailable,
    TooMuchToDelete,
    UntrustedSignature,
)
from crmbackup.core.events import Event, Warned, discard
from crmbackup.operations.drills import Drills, read_drills
from crmbackup.operations.forget import ForgetPlan, ForgetRules, both_clocks, careful_now, plan_forget, run_forget
from crmbackup.operations.prune import PrunePlan, PruneRules, plan_prune, run_prune
from crmbackup.policy.model import LEAST_GRACE, Retention
from crmbackup.repository.chunks import pack_key
from crmbackup.repository.manifest import ManifestHeader, encode_manifest
from crmbackup.repository.records import DrillRecord, SnapshotPin, find_drills, find_pins, pin_key, put_drill, put_pin
from crmbackup.repository.repository import COMMIT_SECONDS, Repository
from crmbackup.repository.signing import HostKey, SigningKey
from crmbackup.storage.address import S3Address
from crmbackup.storage.base import FOREVER, Storage
from crmbackup.storage.open import open_storage
from tests.faulty import FakeClock, Faulty, Killed
from tests.memory import MemoryStorage
from tests.servers import S3Server
from tests.support_repo import Site

RULES = PruneRules(LEAST_GRACE, 1.0)
DAY = timedelta(days=1)


class Moving(SystemClock):
    """The machine's clock, moved: with it the storage's, which is a memory copy of what the site wrote."""

    def __init__(self) -> None:
        self.off = timedelta()

    def now(self) -> datetime:
        return super().now() + self.off


class Place:
    """A repository in memory with three snapshots of one policy, the last a full one, and what a dead run left."""

    def __init__(self, site: Site, headers: list[ManifestHeader]) -> None:
        self.site, self.headers = site, headers
        self.clock = Moving()
        self.memory = MemoryStorage(self.clock.now)
        for path in sorted(site.repo.rglob("*")):
            if path.is_file():
                self.memory.put(path.relative_to(site.repo).as_posix(), path.read_bytes())
        self.orphan = "ab" * 32
        self.memory.put(f"packs/ab/{self.orphan}", b"left by a run that died")
        self.events: list[Event] = []

    @property
    def author(self) -> SigningKey:
        return self.site.host_key.public, self.site.host_key.sign

    def open(self, storage: Storage | None = None) -> Repository:
        return Repository.open(storage or self.memory, identity=self.site.identity, host_key=self.site.host_key)

    def plan(self, rules: PruneRules = RULES, storage: Storage | None = None) -> PrunePlan:
        return plan_prune(self.open(storage), rules, self.clock, self.events.append, ask_storage=True)

    def prune(self, rules: PruneRules = RULES, storage: Storage | None = None) -> PrunePlan:
        plan = self.plan(rules, storage)
        run_prune(self.open(storage), plan, self.clock, self.events.append)
        return plan

    def plan_forget(self, **changes: object) -> ForgetPlan:
        rules = ForgetRules("crm", Retention(keep_last=1, min_copies=1), "UTC")
        return plan_forget(self.open(), replace(rules, **changes), self.clock.now(), self.events.append)  # type: ignore[arg-type]

    def forget(self) -> list[str]:
        plan = self.plan_forget()
        return [header.snapshot_id for header in run_forget(self.open(), plan, self.clock.now(), self.events.append)]

    def keys(self, prefix: str) -> set[str]:
        return {info.key for info in self.memory.list(prefix)}

    def packs(self) -> set[str]:
        return {key[-64:] for key in self.keys("packs/")}

    def whole(self) -> None:
        """Every snapshot that is there has its packs and opens."""
        repository = self.open()
        listing = repository.snapshots()
        assert not listing.problems
        for header in listing.headers:
            repository.body(header)
            for pack in header.packs:
                repository.open_pack(pack)

    def warnings(self) -> set[str]:
        return {event.code for event in self.events if isinstance(event, Warned)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, list[ManifestHeader]]:
    site = Site.make(tmp_path_factory.mktemp("prune"))
    headers = []
    for kind in ("full", "incremental", "full"):
        site.fill(rows=5)
        headers.append(site.backup(kind).header)  # type: ignore[arg-type]
    return site, headers


@pytest.fixture
def place(made: tuple[Site, list[ManifestHeader]]) -> Place:
    return Place(*made)


def test_two_runs_a_grace_period_apart_delete_what_nobody_needs(place: Place) -> None:
    first, second, third = place.headers
    assert place.forget() == [first.snapshot_id, second.snapshot_id]
    assert not place.prune().changes  # all of it is too young
    place.clock.off = DAY
    assert place.prune().condemns.packs == 1 + len({pack for h in (first, second) for pack in h.packs})
    place.clock.off += LEAST_GRACE - timedelta(minutes=1)
    waiting = place.prune()
    assert not waiting.changes
    assert waiting.next_ripe
    assert timedelta() < waiting.next_ripe - place.clock.now() < timedelta(minutes=2)
    place.clock.off += timedelta(minutes=2)
    place.prune()
    assert place.packs() == {pack.pack_id for pack in third.packs}
    assert place.keys("condemned/") == place.keys("probe/") == set()
    place.whole()


def test_a_run_that_is_stopped_between_any_two_calls_loses_nothing_and_the_next_ends_it(place: Place) -> None:
    """Forget, mark and delete, each stopped before and after each of its writes."""
    place.forget()
    needed = {pack.pack_id for pack in place.headers[2].packs}
    for wait in (DAY, DAY):
        place.clock.off += wait
        for stop in range(40):
            faulty = Faulty(place.memory)
            faulty.die_after(stop, effect=stop % 2 == 1)
            with suppress(Killed):
                place.prune(storage=faulty)
            place.whole()
            assert needed <= place.packs()
    place.clock.off += DAY
    place.prune()
    place.clock.off += DAY
    place.prune()
    assert place.packs() == needed
    assert place.keys("condemned/") == set()


def test_a_forget_that_is_stopped_has_removed_the_oldest_only(place: Place) -> None:
    plan = place.plan_forget()
    for stop in range(3):
        faulty = Faulty(place.memory)
        faulty.die_after(stop)
        with suppress(Killed):
            run_forget(place.open(faulty), plan, place.clock.now(), discard)
        left = [header.snapshot_id for header in place.open().snapshots().headers]
        assert left == [header.snapshot_id for header in place.headers][-len(left) :]
        assert len(left) >= 1
        place.whole()


def test_a_mark_needs_both_clocks_to_grow_old(place: Place) -> None:
    place.clock.off = DAY
    place.prune()
    there = place.memory
    place.clock.off = 400 * DAY  # this host's clock leaps, and the storage's does not
    there._now = lambda: SystemClock().now() + DAY
    plan = place.plan()
    assert (plan.deletes.packs, plan.waiting.packs) == (0, 1)
    place.clock.off = DAY  # and the other way round
    there._now = lambda: SystemClock().now() + 400 * DAY
    assert place.plan().deletes.packs == 0


def test_a_mark_from_a_future_is_put_anew_so_that_nothing_waits_for_ever(place: Place) -> None:
    place.clock.off = 4000 * DAY
    place.prune()
    place.clock.off = DAY
    assert place.prune().condemns.packs == 1
    place.clock.off = 2 * DAY
    assert place.prune().deletes.packs == 1
    assert place.orphan not in place.packs()
    assert place.keys("condemned/") == set()


def test_a_run_that_would_delete_too_much_does_nothing(place: Place) -> None:
    place.forget()
    place.clock.off = DAY
    before = place.keys("")
    with pytest.raises(TooMuchToDelete, match="mark for deletion"):
        place.prune(PruneRules(LEAST_GRACE, 0.1))
    assert place.keys("") == before
    place.prune()
    place.clock.off = 2 * DAY
    with pytest.raises(TooMuchToDelete, match="would delete"):
        place.prune(PruneRules(LEAST_GRACE, 0.1))
    assert place.orphan in place.packs()


def test_a_repository_that_lost_its_manifests_loses_nothing_more(place: Place) -> None:
    for header in place.headers:
        place.memory.delete(header.key)
    place.clock.off = DAY
    assert not place.prune().changes
    assert "nothing-collected" in place.warnings()


@pytest.mark.parametrize("damage", ["flipped", "cut", "garbage", "too new"])
def test_a_manifest_that_cannot_be_read_stops_everything_until_somebody_decides(place: Place, damage: str) -> None:
    key = place.headers[1].key
    data = place.memory.get(key)
    changed = {
        "flipped": data[:100] + bytes([data[100] ^ 1]) + data[101:],
        "cut": data[:60],
        "garbage": b"x" * 500,
        "too new": data[:6] + b"02" + data[8:],
    }[damage]
    place.memory.put(key, changed)
    place.clock.off = DAY
    before = place.keys("")
    with pytest.raises(CrmBackupError) as caught:
        place.prune()
    assert key in str(caught.value)
    assert "--disregard" in caught.value.hint
    assert place.keys("") == before
    for readable in (place.headers[0].key, place.headers[2].key):
        with pytest.raises(CrmBackupError):
            place.plan(replace(RULES, disregard=(readable,)))
    only = {pack.pack_id for pack in place.headers[1].packs} - {pack.pack_id for pack in place.headers[0].packs}
    plan = place.plan(replace(RULES, disregard=(key, place.headers[2].key)))
    assert {pack.pack_id for pack in plan.condemn} == only | {place.orphan}


def test_a_manifest_of_an_unknown_host_protects_what_it_names_and_counts_for_nothing(place: Place) -> None:
    stranger = HostKey.generate()
    pack = replace(place.headers[0].packs[0], pack_id=place.orphan)
    forged = replace(
        place.headers[0], snapshot_id="f" * 16, packs=(pack,), captured=datetime.now(UTC), signer=stranger.public.hex()
    )
    place.memory.put(forged.key, encode_manifest(forged, {}, place.open().recipients, stranger))
    place.clock.off = DAY
    assert place.plan().condemns.packs == 0
    assert "untrusted-signature" in place.warnings()
    # It pushes nothing out either.
    assert place.forget() == [place.headers[0].snapshot_id, place.headers[1].snapshot_id]


def test_what_is_not_a_pack_is_left_alone(place: Place) -> None:
    place.memory.put("packs/README", b"x")
    place.memory.put(f"packs/cd/{'ab' * 32}", b"a pack's name in the wrong place")
    place.clock.off = DAY
    place.prune()
    place.clock.off = 2 * DAY
    place.prune()
    assert {"packs/README", f"packs/cd/{'ab' * 32}"} <= place.keys("packs/")


def test_a_commit_refuses_packs_of_its_own_that_were_condemned_or_deleted_meanwhile(place: Place) -> None:
    repository, header = place.open(), replace(place.headers[2], snapshot_id="e" * 16)
    place.memory.put(f"condemned/{header.packs[0].pack_id}-20260101T000000Z", b"")
    with pytest.raises(PackMissing, match="about to be deleted"):
        repository.commit(header, {}, SystemClock())
    place.memory.delete(f"condemned/{header.packs[0].pack_id}-20260101T000000Z")
    place.memory.delete(f"packs/{header.packs[0].pack_id[:2]}/{header.packs[0].pack_id}")
    with pytest.raises(PackMissing, match="not in storage"):
        repository.commit(header, {}, SystemClock())
    assert header.key not in place.keys("snapshots/")


def test_a_commit_that_looked_too_long_ago_is_not_made_and_one_that_slept_in_the_put_looks_again(place: Place) -> None:
    header = replace(place.headers[2], snapshot_id="e" * 16)
    clock = FakeClock()

    class Sleeping(Faulty):
        """The machine is suspended in a call: its monotonic clock does not notice."""

        sleeps_in = "list"

        def list(self, prefix: str) -> Iterator[object]:  # type: ignore[override]
            if self.sleeps_in == "list":
                clock.advance(COMMIT_SECONDS, suspended=True)
            return super().list(prefix)

        def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
            super().put(key, data, if_absent=if_absent)
            if self.sleeps_in == "put":
                clock.advance(COMMIT_SECONDS * 20, suspended=True)
                place.memory.delete(f"packs/{header.packs[0].pack_id[:2]}/{header.packs[0].pack_id}")

    storage = Sleeping(place.memory)
    with pytest.raises(StorageUnavailable, match="too long, or this machine was suspended"):
        place.open(storage).commit(header, {}, clock)
    storage.sleeps_in = "put"
    with pytest.raises(PackMissing):
        place.open(storage).commit(header, {}, clock)
    assert header.key not in place.keys("snapshots/")


# Pins and drills


def pin(place: Place, number: int, until: datetime | None = None) -> SnapshotPin:
    header = place.headers[number]
    return SnapshotPin("crm", header.snapshot_id, until, "the auditor", "ann", "crm-host", datetime.now(UTC))


def test_a_pin_keeps_until_its_time_and_goes_with_its_snapshot(place: Place) -> None:
    put_pin(place.open(), pin(place, 0, datetime.now(UTC) + DAY), place.author)
    assert place.forget() == [place.headers[1].snapshot_id]
    place.clock.off = 2 * DAY
    assert place.forget() == [place.headers[0].snapshot_id]
    assert place.keys("pins/") == set()


def test_a_pin_put_after_the_plan_was_shown_still_holds(place: Place) -> None:
    plan = place.plan_forget()
    put_pin(place.open(), pin(place, 0), place.author)
    removed = run_forget(place.open(), plan, place.clock.now(), discard)
    assert [header.snapshot_id for header in removed] == [place.headers[1].snapshot_id]


def test_a_pin_that_cannot_be_trusted_keeps_and_is_told(place: Place) -> None:
    stranger = HostKey.generate()
    put_pin(place.open(), pin(place, 0), (stranger.public, stranger.sign))
    # A genuine pin of one snapshot, copied to where that of another belongs.
    put_pin(place.open(), pin(place, 2), place.author)
    place.memory.put(
        pin_key("crm", place.headers[1].snapshot_id), place.memory.get(pin_key("crm", place.headers[2].snapshot_id))
    )
    found = find_pins(place.open(), "crm")
    assert found.doubtful.keys() == {header.snapshot_id for header in place.headers[:2]}
    assert place.forget() == []
    assert place.warnings() == {"untrusted-signature", "object-damaged"}


def test_of_two_clocks_the_slower_one_decides_whether_a_pin_is_over(place: Place) -> None:
    place.clock.off = 400 * DAY
    place.memory._now = SystemClock().now
    assert careful_now(place.open(), place.clock, place.events.append) - datetime.now(UTC) < timedelta(minutes=1)
    assert place.warnings() == {"clocks-differ"}
    # And the quicker one whether a snapshot is of the future.
    earlier, later = both_clocks(place.open(), place.clock, discard)
    assert later - earlier > 399 * DAY


def drill(
    place: Place,
    number: int,
    *,
    passed: bool,
    name: str,
    author: SigningKey | None = None,
    ahead: timedelta = timedelta(0),
) -> None:
    started = datetime.now(UTC) + timedelta(minutes=number + 1) + ahead
    record = DrillRecord(
        *("crm", name * 16, place.headers[number].snapshot_id, started, started, passed, "met", 1.5, "00", "host")
    )
    put_drill(place.open(), record, author or place.author)


def test_what_was_proved_stays_and_a_stranger_proves_nothing(place: Place) -> None:
    stranger = HostKey.generate()
    drill(place, 0, passed=True, name="a")
    drill(place, 1, passed=False, name="b")
    drill(place, 1, passed=True, name="c", author=(stranger.public, stranger.sign))
    assert [record.passed for record, _ in find_drills(place.open(), "crm") if record] == [False, True]
    assert place.forget() == [place.headers[1].snapshot_id]
    assert place.warnings() == {"untrusted-signature"}


def test_whoever_judges_drills_sees_those_of_every_host_and_no_forged_ones(place: Place) -> None:
    """What `status` and `monitor` go by."""
    assert read_drills(place.open(), "crm", datetime.now(UTC)) == Drills()
    drill(place, 0, passed=True, name="a")
    drill(place, 1, passed=False, name="b")
    stranger = HostKey.generate()
    drill(place, 2, passed=True, name="c", author=(stranger.public, stranger.sign))
    drill(place, 2, passed=True, name="d", ahead=DAY)
    drill(place, 2, passed=True, name="e")
    key = max(info.key for info in place.memory.list("drills/") if info.key.endswith("e" * 16))
    place.memory.put(key, place.memory.get(key).replace(b"true", b"null"))
    found = read_drills(place.open(), "crm", datetime.now(UTC))
    assert found.newest
    assert found.passed
    assert (found.newest.verdict, found.newest.drill_id, found.passed.drill_id) == ("failed", "b" * 16, "a" * 16)
    assert {type(each) for each in found.problems} == {ObjectDamaged, UntrustedSignature}
    assert len(found.problems) == 3
    # A new one is all it takes to be rid of them, but for a wrong clock.
    drill(place, 2, passed=True, name="f")
    found = read_drills(place.open(), "crm", datetime.now(UTC))
    assert found.passed == found.newest
    assert [each.what.rpartition(" ")[2] for each in found.problems] == ["future"]


def test_snapshots_that_lack_packs_count_for_nothing(place: Place) -> None:
    newest = place.headers[2].packs[0].pack_id
    place.memory.delete(f"packs/{newest[:2]}/{newest}")
    assert place.forget() == []  # of the two that are whole the newer is the newest, the older the newest full
    verdict = next(each for each in place.plan_forget().verdicts if each.header == place.headers[2])
    assert verdict.decision.reasons[0].startswith("not whole, counts for nothing: 1 of ")
    (gone,) = place.plan_forget(drop_flawed=True).remove
    assert gone.header == place.headers[2]


def test_a_real_directory_is_collected_too(tmp_path: Path, made: tuple[Site, list[ManifestHeader]]) -> None:
    site = made[0].copy(tmp_path / "copy")
    repository = site.open(key=False)
    clock = Moving()
    orphan = site.repo / "packs" / "ab" / ("ab" * 32)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"x")
    old = (datetime.now(UTC) - DAY).timestamp()
    os.utime(orphan, (old, old))
    run_prune(repository, plan_prune(repository, RULES, clock, discard, ask_storage=True), clock, discard)
    (mark,) = (site.repo / "condemned").iterdir()
    os.utime(mark, (old, old))
    clock.off = DAY
    run_prune(repository, plan_prune(repository, RULES, clock, discard, ask_storage=True), clock, discard)
    assert not orphan.exists()
    assert not mark.exists()
    assert site.check().passed


def test_what_the_storage_locks_is_passed_over_and_told(place: Place, seaweed: S3Server) -> None:
    """A real object lock: a pack that is under it is neither hidden by a delete marker nor counted as deleted."""
    client, until = seaweed.client(), (datetime.now(UTC) + timedelta(days=3)).replace(microsecond=0)
    bucket = f"locked-{os.urandom(8).hex()}"
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    address = S3Address(bucket, "", endpoint=seaweed.endpoint)
    with closing(open_storage(address, seaweed.credentials, clock=place.clock, conditional_put=True)) as storage:
        for info in place.memory.list(""):
            storage.put(info.key, place.memory.get(info.key))
        held, free = "cd" * 32, "ef" * 32
        for name in (held, free):
            storage.put(pack_key(name), b"left by another")
        lock = {"Mode": "COMPLIANCE", "RetainUntilDate": until}
        client.put_object_retention(Bucket=bucket, Key=pack_key(place.orphan), Retention=lock)
        client.put_object_legal_hold(Bucket=bucket, Key=pack_key(held), LegalHold={"Status": "ON"})
        assert storage.kept_until(pack_key(place.orphan)) == until
        assert storage.kept_until(pack_key(held)) == FOREVER
        assert storage.kept_until(pack_key(free)) is None

        rules = PruneRules(timedelta(0), 1.0)
        assert place.prune(rules, storage).condemns.packs == 3
        place.clock.off = timedelta(seconds=2)  # marks have whole seconds
        plan = place.prune(rules, storage)
        assert (plan.deletes.packs, plan.locked.packs, plan.unlocked) == (1, 2, until)
        left = {info.key[-64:] for info in storage.list("packs/")}
        assert left >= {held, place.orphan}
        assert free not in left
        assert place.plan(rules, storage).locked.packs == 2  # and they are still marked
        assert place.warnings() == set()


def test_a_refusal_of_some_packs_does_not_end_the_run_and_one_of_all_does(place: Place) -> None:
    """A storage that keeps objects and does not tell, and credentials without the right to delete."""
    place.memory.put(pack_key("cd" * 32), b"left by another")
    place.clock.off = DAY
    place.prune()
    place.clock.off += DAY
    storage = Faulty(place.memory)
    storage.fail("delete", StorageDenied("no"), times=None, when=lambda key: key == pack_key(place.orphan))
    assert place.prune(storage=storage).deletes.packs == 2
    assert place.orphan in place.packs()
    assert "cd" * 32 not in place.packs()
    assert place.warnings() == {"delete-refused"}
    # Its marks stay: no snapshot may use it any more. Once it can go it goes.
    assert place.plan().deletes.packs == 1
    storage.fail("delete", StorageDenied("no"), times=None)
    with pytest.raises(StorageDenied):
        place.prune(storage=storage)
    place.prune()
    assert place.orphan not in place.packs()
