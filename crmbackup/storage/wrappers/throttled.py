"""An upper limit for the upload rate."""

from __future__ import annotations

import threading

from crmbackup.core.clock import Clock
from crmbackup.storage.base import Storage
from crmbackup.storage.wrappers.passing import Passing


class Throttled(Passing):
    """Holds back each put until the ones before it are paid for.

    An object goes out in one piece at the line's full speed and is paid for by the pause behind it, so the limit holds
    over times much longer than one object takes. All threads of one Throttled share its rate. Processes do not know of
    each other: whoever starts n workers gives each an n-th of the rate.

    Args:
        bytes_per_second: above zero.
    """

    def __init__(self, inner: Storage, clock: Clock, bytes_per_second: int) -> None:
        if bytes_per_second <= 0:
            raise ValueError("bytes_per_second must be above zero")
        super().__init__(inner)
        self._clock = clock
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = clock.monotonic()

    def put(self, key: str, data: bytes | bytearray, *, if_absent: bool = False) -> None:
        with self._lock:
            now = self._clock.monotonic()
            start = max(now, self._free_at)
            self._free_at = start + len(data) / self._rate
        if start > now:
            self._clock.sleep(start - now)
        super().put(key, data, if_absent=if_absent)
