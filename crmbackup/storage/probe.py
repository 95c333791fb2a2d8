"""Finds out by trial what a storage does: its abilities, once, when a repository is made; and what time it has."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from crmbackup.core.clock import Clock
from crmbackup.core.errors import (
    ObjectExists,
    ObjectNotFound,
    StorageDenied,
    StorageError,
    StorageMisconfigured,
    StorageUnavailable,
)
from crmbackup.storage.base import Capabilities, Storage

PROBES: Final = "probe/"

_RACERS = 8
_RACES = 3


def probe(storage: Storage) -> Capabilities:
    """Try the rights and guarantees that a repository needs, on fresh objects below `probe/`.

    Conditional put is tried only when the storage relies on it, that is when `storage.capabilities.conditional_put` is
    true: one that looks before it writes would pass a trial and still not be atomic. `crmbackup.storage.open.
    probe_address` opens a storage in the right way. Several servers were seen to honour the condition one after the
    other but not in a race, so racing threads are part of the trial.

    The objects are deleted whatever happens. Not being allowed to delete is no error: then they stay.

    Raises StorageDenied with a hint when the right to write, read or list is missing, StorageMisconfigured when the
    storage does not show finished writes, and other StorageErrors as they come.
    """
    made: list[str] = []
    root = f"{PROBES}{secrets.token_hex(8)}/"
    try:
        _try_basics(storage, root, made)
        conditional = storage.capabilities.conditional_put and _try_condition(storage, root, made)
        _try_delete(storage, f"{root}basics")
    finally:
        for key in made:
            # What the trial came to matters more than what is left of it.
            with suppress(StorageError):
                storage.delete(key)
    return Capabilities(conditional_put=conditional)


@dataclass(frozen=True)
class Examination:
    """What a short look at a storage told.

    skew: how far the storage's clock is ahead of this host's, in seconds, to about a second and the time of a request.
    may_delete: this host can delete objects. object_lock: in words; None where there is no such thing.
    """

    skew: float
    may_delete: bool
    object_lock: str | None = None


def examine(storage: Storage, name: str, clock: Clock) -> Examination:
    """Write a small object, look when the storage says that was, and try to delete it.

    name: of the object below `probe/`, always the same from one host: where deleting is not allowed, only one stays.
    Raises StorageDenied with a hint when the right to write or read is missing, other StorageErrors as they come.
    """
    key = f"{PROBES}{name}"
    before = clock.now()
    with _needing("write objects (s3:PutObject)"):
        storage.put(key, b"crmbackup doctor\n")
    after = clock.now()
    with _needing("read objects (s3:GetObject)"):
        modified = storage.stat(key).modified
    try:
        storage.delete(key)
        may_delete = True
    except StorageDenied:
        may_delete = False
    middle = before + (after - before) / 2
    return Examination((modified - middle).total_seconds(), may_delete)


def storage_now(storage: Storage) -> datetime:
    """The present moment by the storage's clock: the time that it gives an object which is written now.

    Raises StorageError; not being allowed to delete that object is none.
    """
    key = f"{PROBES}clock-{secrets.token_hex(8)}"
    storage.put(key, b"clock\n")
    try:
        return storage.stat(key).modified
    finally:
        with suppress(StorageDenied):
            storage.delete(key)


def _try_basics(storage: Storage, root: str, made: list[str]) -> None:
    key = f"{root}basics"
    data = secrets.token_bytes(1000)
    made.append(key)
    with _needing("write objects (s3:PutObject)"):
        storage.put(key, data)
    with _needing("read objects (s3:GetObject)"):
        whole = storage.get(key)
        part = storage.get(key, 100, 50)
        size = storage.stat(key).size
    if (whole, part, size) != (data, data[100:150], len(data)):
        raise StorageMisconfigured(
            f"{storage.location} does not give back what was written",
            hint="look for a cache or a proxy that changes objects on the way",
        )
    with _needing("list objects (s3:ListBucket)"):
        listed = [info.key for info in storage.list(root)]
    if listed != [key]:
        raise StorageMisconfigured(
            f"{storage.location} does not list what was written",
            hint="a repository needs listings that show every finished write at once",
        )


def _try_condition(storage: Storage, root: str, made: list[str]) -> bool:
    """Whether put(if_absent=True) keeps what is there, one after the other and in a race."""
    key = f"{root}condition"
    made.append(key)
    try:
        storage.put(key, b"first", if_absent=True)
        try:
            storage.put(key, b"second", if_absent=True)
        except ObjectExists:
            kept = storage.get(key) == b"first"
        else:
            kept = False
    except StorageMisconfigured:
        return False  # some servers refuse the request for its condition
    return kept and all(_race(storage, f"{root}race{number}", made) for number in range(_RACES))


def _race(storage: Storage, key: str, made: list[str]) -> bool:
    """Whether of racing writers at most one succeeds, and keeps its place."""
    made.append(key)
    start = threading.Barrier(_RACERS)

    def run(data: bytes) -> bool:
        start.wait()
        try:
            storage.put(key, data, if_absent=True)
        except (ObjectExists, StorageUnavailable):
            return False
        return True

    offers = [f"racer {number}".encode() for number in range(_RACERS)]
    with ThreadPoolExecutor(_RACERS) as pool:
        winners = [data for data, won in zip(offers, pool.map(run, offers), strict=True) if won]
    return len(winners) == 1 and storage.get(key) == winners[0]


def _try_delete(storage: Storage, key: str) -> None:
    try:
        storage.delete(key)
    except StorageDenied:
        return
    try:
        storage.stat(key)
    except ObjectNotFound:
        return
    raise StorageMisconfigured(
        f"{storage.location} still shows an object after it was deleted",
        hint="a repository needs deletes that are seen at once",
    )


@contextmanager
def _needing(right: str) -> Iterator[None]:
    try:
        yield
    except StorageDenied as error:
        raise StorageDenied(
            error.what,
            why=error.why,
            hint=f"a repository needs the right to {right}; deleting is not needed to back up",
        ) from error
