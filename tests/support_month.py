"""A month in a test: a clock that is set, a storage that lives by it, and what the documents promise, said once more.

What is due, what is kept and what lies in the storage is worked out here by hand from docs/policy.md and docs/design.md,
without the product's own code, so that the two can be compared.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from crmbackup.storage.base import ObjectInfo, Storage
from crmbackup.storage.wrappers.passing import Passing

ZONE = "Europe/Berlin"
QUARTER = timedelta(minutes=15)
#: Of the policy: key -> days of the week (0 is Monday) and times of the day.
EVERY_DAY, WORKDAYS = range(7), range(5)
PLAN = {
    "full": ([6], [(2, 30)]),
    "incremental": (WORKDAYS, [(2, 30), (14, 30)]),
    "prune": (EVERY_DAY, [(4, 0)]),
    "check": (EVERY_DAY, [(4, 30)]),
    "drill": ([6], [(5, 0)]),
}
PARTS = 4
GRACE = timedelta(days=2)
RETENTION = {"keep_last": 3, "within": timedelta(hours=30), "daily": 7, "weekly": 4, "monthly": 2}


class SetClock:
    """Runs like the machine's, from the moment that it was last set to."""

    def __init__(self, now: datetime) -> None:
        self._ahead = timedelta()
        self.set(now)

    def set(self, now: datetime) -> None:
        self._ahead = now - datetime.now(UTC)

    def now(self) -> datetime:
        return datetime.now(UTC) + self._ahead

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True)
class Entry:
    """Something done to a storage: "put", "delete" or "read" (an object as a whole)."""

    at: datetime
    what: str
    key: str


class Journal:
    """What any process did to the storage, in order. Each process remembers what it has read of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: list[Entry] = []
        self._position = 0
        path.touch()

    def note(self, at: datetime, what: str, key: str) -> None:
        with self._path.open("a") as stream:
            stream.write(f"{at.isoformat()} {what} {key}\n")

    def entries(self) -> list[Entry]:
        with self._path.open() as stream:
            stream.seek(self._position)
            for line in stream:
                if not line.endswith("\n"):
                    break  # another process is writing it
                at, what, key = line.split()
                self._entries.append(Entry(datetime.fromisoformat(at), what, key))
                self._position += len(line)
        return self._entries

    def put_at(self, key: str) -> datetime:
        """When an object was written last."""
        return next(entry.at for entry in reversed(self.entries()) if (entry.what, entry.key) == ("put", key))


class Dated(Passing):
    """A real storage whose own clock is the test's.

    deadly: when that file is there, a process dies with its parent right after its next pack was put.
    """

    def __init__(self, inner: Storage, clock: SetClock, journal: Journal, deadly: Path) -> None:
        super().__init__(inner)
        self._clock = clock
        self._journal = journal
        self._deadly = deadly

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        self._inner.put(key, data, if_absent=if_absent)
        self._journal.note(self._clock.now(), "put", key)
        if key.startswith("packs/") and self._deadly.exists():
            self._deadly.unlink()
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        data = self._inner.get(key, offset, length)
        if offset == 0 and length is None:
            self._journal.note(self._clock.now(), "read", key)
        return data

    def delete(self, key: str) -> None:
        self._inner.delete(key)
        self._journal.note(self._clock.now(), "delete", key)

    def stat(self, key: str) -> ObjectInfo:
        return replace(self._inner.stat(key), modified=self._journal.put_at(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        put_at = {entry.key: entry.at for entry in self._journal.entries() if entry.what == "put"}
        for info in self._inner.list(prefix):
            yield replace(info, modified=put_at[info.key])


@dataclass(frozen=True)
class Snap:
    """A manifest, by its plain header."""

    id: str
    kind: str
    captured: datetime
    packs: frozenset[str]


def read_snap(data: bytes) -> Snap:
    """As docs/design.md has it, section 5.5."""
    assert data[:8] == b"CRMBMF01"
    (size,) = struct.unpack_from("<I", data, 8)
    header = json.loads(data[12 : 12 + size])
    captured = datetime.fromisoformat(header["captured"])
    return Snap(header["snapshot_id"], header["kind"], captured, frozenset(name for name, _ in header["packs"]))


def quarters(first: date, days: int) -> Iterator[tuple[datetime, frozenset[str]]]:
    """Every quarter of an hour, and what a person with the policy and a clock on the wall expects at it.

    A time that the clock skips is due right after it; one that comes twice, the first time.
    """
    zone = ZoneInfo(ZONE)
    now = datetime(first.year, first.month, first.day, tzinfo=zone).astimezone(UTC)
    end = now + timedelta(days=days)
    done: set[tuple[str, datetime]] = set()
    while now < end:
        here, before = (each.astimezone(zone).replace(tzinfo=None) for each in (now, now - QUARTER))
        due = set()
        for key, (weekdays, times) in PLAN.items():
            for hour, minute in times:
                wall = here.replace(hour=hour, minute=minute)
                if here.weekday() in weekdays and before < wall <= here and (key, wall) not in done:
                    done.add((key, wall))
                    due.add(key)
        yield now, frozenset(due)
        now += QUARTER


def changed(at: datetime) -> bool:
    """Whether clocks are changed within two hours of a moment."""
    one, other = ((at + timedelta(hours=hours)).astimezone(ZoneInfo(ZONE)).utcoffset() for hours in (-2, 2))
    return one != other


def kept(snaps: Iterable[Snap], *, whole: Iterable[str], pinned: Iterable[str], proved: Iterable[str]) -> set[str]:
    """The ids of those that stay by docs/policy.md. whole, pinned, proved: ids.

    Those that are not whole stay and count for nothing.
    """
    everyone = sorted(snaps, key=lambda snap: snap.captured, reverse=True)
    good = [snap for snap in everyone if snap.id in set(whole)]
    stay = {snap.id for snap in everyone if snap not in good or snap.id in set(pinned)}
    stay |= {snap.id for snap in good[:2]}  # min_copies
    stay |= {snap.id for snap in [snap for snap in good if snap.kind == "full"][:1]}
    stay |= {snap.id for snap in [snap for snap in good if snap.id in set(proved)][:1]}
    stay |= {snap.id for snap in good[: RETENTION["keep_last"]]}
    stay |= {snap.id for snap in good if good[0].captured - snap.captured <= RETENTION["within"]}
    for rule, form in (("daily", "%Y-%m-%d"), ("weekly", "%G-%V"), ("monthly", "%Y-%m")):
        last_of = {}
        for snap in reversed(good):
            last_of[snap.captured.astimezone(ZoneInfo(ZONE)).strftime(form)] = snap.id
        newest = sorted(last_of)[-RETENTION[rule] :]
        stay |= {last_of[period] for period in newest}
    return stay
