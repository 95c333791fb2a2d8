"""The storage interface and its contract."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from crmbackup.core.errors import UsageError

FOREVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing tells of an object. `size` in bytes; `modified` aware, by the storage's clock."""

    key: str
    size: int
    modified: datetime


@dataclass(frozen=True)
class Capabilities:
    """What a storage was seen to do.

    conditional_put: `put(..., if_absent=True)` is atomic: of two racing writers exactly one succeeds.
    """

    conditional_put: bool


class Storage(ABC):
    """A flat map from keys to immutable byte strings. Safe for use by several threads.

    Keys are ASCII segments of `[A-Za-z0-9._-]`, joined by "/", with no empty segment and none of "." or ".."
    (`check_key`). No key is the directory of another: some stores would lose one of the two. Every method raises StorageError or one of its kinds, never a library's own exception:
    StorageUnavailable is the one that may be tried again; the `Retrying` wrapper does that, implementations do not.

    Obligations of an implementation:

    * `put` is atomic and durable: when it returns, the whole object survives a crash of either side; when it
      raises or the process dies, either the whole object is there or nothing of it. A half-written object is never
      visible to get, stat or list. Without if_absent it replaces what was there.
    * `put(if_absent=True)` raises ObjectExists and leaves the old object as it was. If `capabilities.conditional_put`
      is false, that test is not atomic; the `Claiming` wrapper makes it so by a protocol of several steps.
    * Read-after-write: get, stat and list see a finished put, and no longer see a finished delete.
    * `get` returns exactly the bytes asked for: a range that ends behind the object's end raises StorageUnavailable
      (it may be a short read), as does any answer of another length. `get` of an absent key raises ObjectNotFound.
    * `list` yields every object whose key starts with prefix (plain string prefix), in key order, each once, with no
      limit on their number; objects put or deleted meanwhile may or may not be seen.
    * `delete` of an absent key is no error.
    """

    @property
    @abstractmethod
    def location(self) -> str:
        """The address, for messages and recovery sheets. Never holds a secret."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """What this storage was seen to do, or may be relied on for by its nature."""

    @abstractmethod
    def put(self, key: str, data: bytes | bytearray, *, if_absent: bool = False) -> None:
        """Store an object."""

    @abstractmethod
    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        """The object's bytes from `offset`: `length` of them, or all to its end when None."""

    @abstractmethod
    def stat(self, key: str) -> ObjectInfo:
        """Size and time of one object. Raises ObjectNotFound."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """The objects whose keys start with `prefix`, in key order."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object if it is there."""

    def kept_until(self, key: str) -> datetime | None:
        """Until when the storage itself keeps an object from being deleted, `FOREVER` for as long as somebody holds it.

        By the storage's clock; the time may be over. None where there is no such thing, or where it does not tell.
        """
        return None

    @abstractmethod
    def close(self) -> None:
        """Give back connections. The storage is of no use afterwards."""


_SEGMENT = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def check_key(key: str) -> str:
    """The key itself when it is a valid one. Raises UsageError otherwise."""
    for segment in key.split("/"):
        if not segment or segment in (".", "..") or not _SEGMENT.issuperset(segment):
            raise UsageError(f"{key!r} is not a valid object key")
    return key
