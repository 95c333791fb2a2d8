"""Tries again what may work the next time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TypeVar

from crmbackup.core.clock import Clock
from crmbackup.core.errors import ObjectExists, StorageError
from crmbackup.storage.base import ObjectInfo, Storage
from crmbackup.storage.wrappers.passing import Passing

T = TypeVar("T")


class Retrying(Passing):
    """Repeats calls that raised a retryable error, after pauses of exponential backoff with full jitter.

    The pause before try n + 1 is uniform in [0, min(cap, base * 2^(n - 1))] seconds. The last error is raised with the
    number of tries in its `why`. Errors that are not retryable pass at once.

    A put that failed may have worked all the same, its answer lost. So when a repeated put(if_absent=True) finds the
    object there, the stored bytes are compared with the given ones: equal means that it was our own put, and is
    success. (Another writer of the very same bytes is then indistinguishable, and harmless.)

    A listing that breaks midway goes on behind the last key it gave.

    Args:
        attempts: tries in all, at least 1.
        base: seconds.
        cap: seconds.
        rng: random numbers; None takes the system's, which forked workers do not share.
    """

    def __init__(
        self,
        inner: Storage,
        clock: Clock,
        *,
        attempts: int = 5,
        base: float = 0.5,
        cap: float = 30.0,
        rng: random.Random | None = None,
    ) -> None:
        if attempts < 1:
            raise ValueError("attempts must be at least 1")
        super().__init__(inner)
        self._clock = clock
        self._attempts = attempts
        self._base = base
        self._cap = cap
        self._rng = rng or random.SystemRandom()

    def put(self, key: str, data: bytes | bytearray, *, if_absent: bool = False) -> None:
        failures = 0
        while True:
            try:
                self._inner.put(key, data, if_absent=if_absent)
            except ObjectExists:
                if failures and self._is_ours(key, data):
                    return
                raise
            except StorageError as error:
                failures += 1
                self._pause_or_raise(error, failures)
            else:
                return

    def _is_ours(self, key: str, data: bytes | bytearray) -> bool:
        """Whether the stored object is what we wrote. Not being allowed to look, or finding none, is no."""
        try:
            return self.get(key) == data
        except StorageError as error:
            if error.retryable:
                raise
            return False

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._repeat(lambda: self._inner.get(key, offset, length))

    def stat(self, key: str) -> ObjectInfo:
        return self._repeat(lambda: self._inner.stat(key))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        last = ""
        failures = 0
        while True:
            try:
                for info in self._inner.list(prefix):
                    if info.key > last:
                        last = info.key
                        failures = 0
                        yield info
                return
            except StorageError as error:
                failures += 1
                self._pause_or_raise(error, failures)

    def delete(self, key: str) -> None:
        self._repeat(lambda: self._inner.delete(key))

    def kept_until(self, key: str) -> datetime | None:
        return self._repeat(lambda: self._inner.kept_until(key))

    def _repeat(self, call: Callable[[], T]) -> T:
        failures = 0
        while True:
            try:
                return call()
            except StorageError as error:
                failures += 1
                self._pause_or_raise(error, failures)

    def _pause_or_raise(self, error: StorageError, failures: int) -> None:
        if not error.retryable:
            raise error
        if failures >= self._attempts:
            why = f"{error.why}; tried {failures} times" if error.why else f"tried {failures} times"
            raise type(error)(error.what, why=why, hint=error.hint) from error
        self._clock.sleep(self._rng.uniform(0, min(self._cap, self._base * 2.0 ** (failures - 1))))
