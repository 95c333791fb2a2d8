"""A storage that cannot be changed through this handle."""

from __future__ import annotations

from crmbackup.core.errors import StorageDenied
from crmbackup.storage.wrappers.passing import Passing


class ReadOnly(Passing):
    """Reads pass; put and delete raise StorageDenied."""

    def put(self, key: str, data: bytes | bytearray, *, if_absent: bool = False) -> None:
        raise self._refused("write", key)

    def delete(self, key: str) -> None:
        raise self._refused("delete", key)

    def _refused(self, verb: str, key: str) -> StorageDenied:
        return StorageDenied(f"cannot {verb} {key}", why=f"{self.location} was opened for reading only")
