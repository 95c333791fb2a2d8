"""Makes put(if_absent=True) safe where the storage's own condition is missing or not atomic.

The protocol. All it asks of the storage is read-after-write: a finished put or delete is seen by every later call.

1. Put an object `claims/<hash of the key>/<random token>`, then list that prefix.
2. Another claim is there: delete the own one and step back. If the key exists by now, raise ObjectExists; otherwise
   wait a random time and begin again, a bounded number of rounds, and then raise StorageUnavailable.
3. No other claim is there: stat the key. If it exists, raise ObjectExists. Otherwise put it, read it back, compare.
4. Delete the own claim.

Why at most one of several racing writers goes on from step 2. Take two, A and B, that both got past it, B's listing
being the later. B did not see A's claim, which A put before its own, earlier listing; so A had deleted it by then,
and A deletes it only when it gave up or after its put of the key was finished. In the second case B's stat comes
later still and finds the key.

A claim is left where it is when the put of the key failed (its answer may be lost and it may still take effect), or
when the writer died. Claims older than STALE_SECONDS, by the storage's clock compared with the own claim's time, are
therefore ignored and deleted. That is sound because a writer puts the key only within MARGIN_SECONDS of its own claim,
by the larger of monotonic and wall time (a suspended machine stops the former), and a put that it started by then ends
long before STALE_SECONDS are over. What remains is a machine that is frozen in the very instant between that check
and the sending, for half an hour, while another writes the same key; reading back does not close that.

Credentials without the right to delete: own claims stay until stale. At most one writer goes on, still; a race then
may have no winner at all, and a stepped-back writer is told to try again.
"""

from __future__ import annotations

import hashlib
import random
import secrets
from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from crmbackup.core.clock import Clock, Stopwatch, to_text
from crmbackup.core.errors import ObjectExists, ObjectNotFound, StorageDenied, StorageError, StorageUnavailable
from crmbackup.storage.base import Capabilities, ObjectInfo, Storage, check_key
from crmbackup.storage.wrappers.passing import Passing

CLAIMS: Final = "claims/"
#: A claim this old, in seconds, was left by a writer that died.
STALE_SECONDS: Final = 3600.0
#: A writer whose claim is this old, in seconds, does not start the put of the key any more.
MARGIN_SECONDS: Final = 1800.0

_ROUNDS = 10
_BASE = 0.05
_CAP = 5.0


class Claiming(Passing):
    """Passes everything on, save put(if_absent=True), which follows the protocol above, and list.

    `list` hides claims unless the prefix asks for them. `capabilities` reports conditional_put.

    Args:
        inner: read-after-write consistent; best one that retries, so that each step is repeated for itself.
        rng: random numbers for the pauses; None takes the system's.
    """

    def __init__(self, inner: Storage, clock: Clock, *, rng: random.Random | None = None) -> None:
        super().__init__(inner)
        self._clock = clock
        self._rng = rng or random.SystemRandom()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(conditional_put=True)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        shown = prefix.startswith(CLAIMS)
        return (info for info in self._inner.list(prefix) if shown or not info.key.startswith(CLAIMS))

    def put(self, key: str, data: bytes | bytearray, *, if_absent: bool = False) -> None:
        check_key(key)
        if not if_absent:
            self._inner.put(key, data)
            return
        group = f"{CLAIMS}{hashlib.sha256(key.encode()).hexdigest()[:32]}/"
        mine: set[str] = set()
        for number in range(1, _ROUNDS + 1):
            claim = f"{group}{secrets.token_hex(16)}"
            mine.add(claim)
            started = Stopwatch(self._clock)
            self._inner.put(claim, b"claim\n")
            other = self._other_claim(group, claim, mine)
            if other is None:
                self._put_alone(key, data, claim, started)
                return
            self._release(claim)
            if self._is_there(key):
                raise self._exists(key)
            if number == _ROUNDS:
                raise self._blocked(key, other)
            self._clock.sleep(self._rng.uniform(0, min(_CAP, _BASE * 2.0**number)))

    def _other_claim(self, group: str, claim: str, mine: set[str]) -> ObjectInfo | None:
        """A live claim that is not ours. Stale ones are deleted."""
        claims = list(self._inner.list(group))
        own = next((info for info in claims if info.key == claim), None)
        if own is None:
            raise StorageUnavailable(
                f"{self.location} does not list an object that was just written",
                why="create-if-absent needs listings that show finished writes",
            )
        live = None
        for info in claims:
            if info.key in mine:
                continue
            if own.modified - info.modified > timedelta(seconds=STALE_SECONDS):
                self._release(info.key)
            else:
                live = info
        return live

    def _put_alone(self, key: str, data: bytes | bytearray, claim: str, started: Stopwatch) -> None:
        """Steps 3 and 4. Should the put itself fail, the claim stays: the object may still appear."""
        try:
            if self._is_there(key):
                raise self._exists(key)
            if started.seconds() > MARGIN_SECONDS:
                raise StorageUnavailable(
                    f"cannot write {key} to {self.location}",
                    why="the claim on it grew too old, as if this machine had been suspended",
                )
        except StorageError:
            self._release(claim)
            raise
        self._inner.put(key, data)
        try:
            if self._inner.get(key) != data:
                raise self._exists(key)
        finally:
            self._release(claim)

    def _is_there(self, key: str) -> bool:
        try:
            self._inner.stat(key)
        except ObjectNotFound:
            return False
        return True

    def _release(self, claim: str) -> None:
        """Delete a claim. Failing to is no harm: it goes stale. What the put came to must not be hidden by it."""
        try:
            self._inner.delete(claim)
        except (StorageDenied, StorageUnavailable):
            return

    def _exists(self, key: str) -> ObjectExists:
        return ObjectExists(f"{key} is already in {self.location}")

    def _blocked(self, key: str, claim: ObjectInfo) -> StorageUnavailable:
        ignored_from = to_text(claim.modified + timedelta(seconds=STALE_SECONDS))
        return StorageUnavailable(
            f"cannot write {key} to {self.location}",
            why=f"another writer's claim stands in the way; if that writer died, it is ignored from {ignored_from} on",
            hint="let the other run end, then try again",
        )
