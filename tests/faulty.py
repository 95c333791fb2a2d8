"""Faults on the storage interface, scripted. With no fault scripted it is a storage like any other.

storage = Faulty(inner)
storage.fail("put", StorageUnavailable("no answer"), times=2, after=1, when=lambda key: key.startswith("packs/"))
storage.die_after(3)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Literal, TypeVar

from crmbackup.core.errors import CrmBackupError, StorageUnavailable
from crmbackup.storage.base import Capabilities, ObjectInfo, Storage
from crmbackup.storage.ranges import beyond_end

T = TypeVar("T")

Operation = Literal["put", "get", "stat", "list", "delete"]


class FakeClock:
    """A clock that moves only when told to, or slept on. `pauses` holds the sleeps, in seconds."""

    def __init__(self, now: datetime = datetime(2026, 3, 1, tzinfo=UTC)) -> None:
        self._lock = threading.Lock()
        self._now = now
        self._monotonic = 1000.0
        self.pauses: list[float] = []

    def now(self) -> datetime:
        with self._lock:
            return self._now

    def monotonic(self) -> float:
        with self._lock:
            return self._monotonic

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.advance(seconds)

    def advance(self, seconds: float, *, suspended: bool = False) -> None:
        """Let time pass; in a suspended machine the monotonic clock stands still."""
        with self._lock:
            self._now += timedelta(seconds=seconds)
            self._monotonic += 0 if suspended else seconds


class Killed(BaseException):
    """The process is gone: no handler for Exception may see this."""


@dataclass(frozen=True)
class Call:
    """One call as it came in. `size` is the length of what was put."""

    operation: Operation
    key: str
    size: int | None = None
    if_absent: bool = False


@dataclass
class _Fault:
    times: int | None
    when: Callable[[str], bool]
    operation: Operation
    error: CrmBackupError
    after: int
    effect: bool


@dataclass
class _Damage:
    times: int | None
    when: Callable[[str], bool]
    change: Callable[[bytes], bytes]


@dataclass
class _Cut:
    times: int | None
    when: Callable[[str], bool]
    keep: int


Rule = TypeVar("Rule", _Fault, _Damage, _Cut)


def _any(key: str) -> bool:
    return True


class Faulty(Storage):
    """A storage around another that fails as told. `calls` records every call, in order of arrival."""

    def __init__(self, inner: Storage) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._faults: list[_Fault] = []
        self._damages: list[_Damage] = []
        self._cuts: list[_Cut] = []
        self._vanished = False
        self._dead = False
        self._writes_left: int | None = None
        self._last_write_happens = False
        self.calls: list[Call] = []

    def fail(
        self,
        operation: Operation,
        error: CrmBackupError,
        *,
        times: int | None = 1,
        after: int = 0,
        when: Callable[[str], bool] = _any,
        effect: bool = False,
    ) -> None:
        """Let matching calls raise `error`: `times` of them (None: for ever), after the first `after` have passed.

        With `effect` the call takes effect first and then fails, like an answer that got lost.
        """
        self._faults.append(_Fault(times, when, operation, error, after, effect))

    def truncate_get(self, keep: int, *, times: int | None = None, when: Callable[[str], bool] = _any) -> None:
        """Let gets see only the first `keep` bytes of the object, as if the rest were lost in the storage."""
        self._damages.append(_Damage(times, when, lambda data: data[:keep]))

    def flip_byte(self, position: int, *, times: int | None = None, when: Callable[[str], bool] = _any) -> None:
        """Let gets see one byte of the object changed. A negative position counts from the end."""

        def change(data: bytes) -> bytes:
            damaged = bytearray(data)
            damaged[position] ^= 1
            return bytes(damaged)

        self._damages.append(_Damage(times, when, change))

    def break_list(self, keep: int, *, times: int | None = 1, when: Callable[[str], bool] = _any) -> None:
        """Let listings raise StorageUnavailable behind the first `keep` objects. `when` is given the prefix."""
        self._cuts.append(_Cut(times, when, keep))

    def vanish(self) -> None:
        """Let everything raise StorageUnavailable from now on."""
        self._vanished = True

    def come_back(self) -> None:
        """Undo `vanish`."""
        self._vanished = False

    def die_after(self, writes: int, *, effect: bool = False) -> None:
        """Let the process die at write number `writes` + 1 (put or delete), before it or, with `effect`, after it.

        That call raises Killed, and so does every later one.
        """
        self._writes_left = writes
        self._last_write_happens = effect

    def called(self, operation: Operation) -> list[str]:
        """The keys of the calls of one kind, in order."""
        return [call.key for call in self.calls if call.operation == operation]

    @property
    def location(self) -> str:
        return self._inner.location

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        self._run(Call("put", key, len(data), if_absent), lambda: self._inner.put(key, data, if_absent=if_absent))

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._run(Call("get", key), lambda: self._get(key, offset, length))

    def _get(self, key: str, offset: int, length: int | None) -> bytes:
        with self._lock:
            damage = _next(self._damages, key)
        if damage is None:
            return self._inner.get(key, offset, length)
        data = damage.change(self._inner.get(key))
        if offset + (length or 0) > len(data):
            raise beyond_end(key, offset, length, len(data))
        return data[offset:] if length is None else data[offset : offset + length]

    def stat(self, key: str) -> ObjectInfo:
        return self._run(Call("stat", key), lambda: self._inner.stat(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        found = self._run(Call("list", prefix), lambda: self._inner.list(prefix))
        with self._lock:
            cut = _next(self._cuts, prefix)
        return found if cut is None else _broken(found, cut.keep)

    def delete(self, key: str) -> None:
        self._run(Call("delete", key), lambda: self._inner.delete(key))

    def close(self) -> None:
        self._inner.close()

    def _run(self, call: Call, action: Callable[[], T]) -> T:
        with self._lock:
            self.calls.append(call)
            if self._dead:
                raise Killed
            if self._vanished:
                raise StorageUnavailable(f"{self.location} is gone", why="a test took it away")
            dying = call.operation in ("put", "delete") and self._count_write()
            fault = self._fault_for(call)
        if dying:
            if self._last_write_happens:
                action()
            raise Killed
        if fault is None:
            return action()
        if fault.effect:
            action()
        raise fault.error

    def _count_write(self) -> bool:
        """Whether the process dies at this write."""
        if self._writes_left is None:
            return False
        self._writes_left -= 1
        self._dead = self._writes_left < 0
        return self._dead

    def _fault_for(self, call: Call) -> _Fault | None:
        for fault in self._faults:
            if fault.operation == call.operation and fault.when(call.key) and fault.times != 0:
                if fault.after > 0:
                    fault.after -= 1
                    continue
                _use(fault)
                return fault
        return None


def _next(rules: list[Rule], key: str) -> Rule | None:
    """The first rule that still holds for the key, counted as used."""
    for rule in rules:
        if rule.times != 0 and rule.when(key):
            _use(rule)
            return rule
    return None


def _use(rule: _Fault | _Damage | _Cut) -> None:
    if rule.times is not None:
        rule.times -= 1


def _broken(found: Iterator[ObjectInfo], keep: int) -> Iterator[ObjectInfo]:
    yield from islice(found, keep)
    raise StorageUnavailable("the listing broke", why="a test cut it")
