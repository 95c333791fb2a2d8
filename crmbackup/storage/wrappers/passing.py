"""The base of the wrappers: hands every call on as it is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from crmbackup.storage.base import Capabilities, ObjectInfo, Storage


class Passing(Storage):
    """A storage around another. A wrapper overrides what it changes. Closing it closes the inner one."""

    def __init__(self, inner: Storage) -> None:
        self._inner = inner

    @property
    def location(self) -> str:
        return self._inner.location

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def put(self, key: str, data: bytes | bytearray, *, if_absent: bool = False) -> None:
        self._inner.put(key, data, if_absent=if_absent)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        return self._inner.get(key, offset, length)

    def stat(self, key: str) -> ObjectInfo:
        return self._inner.stat(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._inner.list(prefix)

    def delete(self, key: str) -> None:
        self._inner.delete(key)

    def kept_until(self, key: str) -> datetime | None:
        return self._inner.kept_until(key)

    def close(self) -> None:
        self._inner.close()
