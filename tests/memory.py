"""A storage in memory: keeps the contract, forgets everything when it ends."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from datetime import datetime

from crmbackup.core.clock import SystemClock
from crmbackup.core.errors import ObjectExists, ObjectNotFound
from crmbackup.storage.base import Capabilities, ObjectInfo, Storage, check_key
from crmbackup.storage.ranges import beyond_end, check_range


class MemoryStorage(Storage):
    """now: the storage's clock; the machine's by default."""

    def __init__(self, now: Callable[[], datetime] | None = None) -> None:
        self._now = now or SystemClock().now
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[bytes, datetime]] = {}
        self._keys: list[str] = []

    @property
    def location(self) -> str:
        return "/memory"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(conditional_put=True)

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        check_key(key)
        with self._lock:
            there = key in self._objects
            if there and if_absent:
                raise ObjectExists(f"{key} is already in {self.location}")
            if not there:
                insort(self._keys, key)
            self._objects[key] = (bytes(data), self._now())

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        check_range(offset, length)
        data, _ = self._found(key)
        if offset + (length or 0) > len(data):
            raise beyond_end(key, offset, length, len(data))
        return data[offset:] if length is None else data[offset : offset + length]

    def stat(self, key: str) -> ObjectInfo:
        data, modified = self._found(key)
        return ObjectInfo(key, len(data), modified)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Looks for the next key each time it is asked: what is put or deleted meanwhile may be seen or not."""
        last = ""
        while True:
            with self._lock:
                place = bisect_right(self._keys, last) if last else bisect_left(self._keys, prefix)
                if place == len(self._keys) or not self._keys[place].startswith(prefix):
                    return
                last = self._keys[place]
                data, modified = self._objects[last]
            yield ObjectInfo(last, len(data), modified)

    def delete(self, key: str) -> None:
        check_key(key)
        with self._lock:
            if self._objects.pop(key, None) is not None:
                del self._keys[bisect_left(self._keys, key)]

    def close(self) -> None:
        pass

    def _found(self, key: str) -> tuple[bytes, datetime]:
        check_key(key)
        with self._lock:
            if key not in self._objects:
                raise ObjectNotFound(f"{key} is not in {self.location}")
            return self._objects[key]
