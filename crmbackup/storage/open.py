"""From an address to a storage that is fit for use."""

from __future__ import annotations

from dataclasses import replace

from crmbackup.core.clock import Clock
from crmbackup.core.errors import StorageError
from crmbackup.storage.address import Address, Credentials, LocalAddress
from crmbackup.storage.base import Capabilities, Storage
from crmbackup.storage.local import LocalStorage
from crmbackup.storage.probe import Examination, examine, probe
from crmbackup.storage.wrappers.claiming import Claiming
from crmbackup.storage.wrappers.readonly import ReadOnly
from crmbackup.storage.wrappers.retrying import Retrying
from crmbackup.storage.wrappers.throttled import Throttled


def open_storage(
    address: Address,
    credentials: Credentials | None = None,
    *,
    clock: Clock,
    conditional_put: bool | None = None,
    upload_rate: int | None = None,
    attempts: int = 5,
    read_only: bool = False,
    create: bool = False,
) -> Storage:
    """The storage at an address, wrapped. Cheap: no request is made, and every argument can be sent to a worker.

    Args:
        address: where.
        credentials: for S3; None lets boto3 look in its own places.
        clock: for pauses and claims.
        conditional_put: what `probe_address` found. None is unknown: S3 then counts as without, a directory as with
            (its own way fails loudly on a file system that cannot do it).
        upload_rate: bytes per second for this handle; with n workers each gets an n-th. None is no limit.
        attempts: tries of each call in all.
        read_only: put and delete raise StorageDenied.
        create: make the directory of a local address if it is not there; no meaning for S3.

    From the inside out: Throttled next to the storage, so that repeated uploads count too. Retrying around it, so that
    each step of a claim is repeated for itself, and a claim is not given up for one lost packet. Claiming around that,
    where the storage has no atomic condition. ReadOnly outermost, so that nothing inside can write either.

    Raises StorageMisconfigured for a directory that is not there.
    """
    storage = _bare(address, credentials, conditional_put=conditional_put, create=create and not read_only)
    if upload_rate is not None:
        storage = Throttled(storage, clock, upload_rate)
    atomic = storage.capabilities.conditional_put
    storage = Retrying(storage, clock, attempts=attempts)
    if not atomic:
        storage = Claiming(storage, clock)
    return ReadOnly(storage) if read_only else storage


def probe_address(address: Address, credentials: Credentials | None = None, *, clock: Clock) -> Capabilities:
    """What the storage at an address does, found by trial; see `probe`. Give the answer to `open_storage` from then on.

    A local directory must exist.
    """
    storage = Retrying(_bare(address, credentials, conditional_put=True, create=False), clock)
    try:
        return probe(storage)
    finally:
        storage.close()


def examine_address(address: Address, credentials: Credentials | None, *, name: str, clock: Clock) -> Examination:
    """What this host may do there and what its clock says; see `examine`. Writes one object and tries to delete it."""
    storage = _bare(address, credentials, conditional_put=None, create=False)
    try:
        lock = None
        if not isinstance(address, LocalAddress):
            from crmbackup.storage.s3 import S3Storage

            assert isinstance(storage, S3Storage)
            try:
                lock = storage.object_lock()
            except StorageError as error:
                lock = f"unknown: {error}"
        return replace(examine(Retrying(storage, clock, attempts=2), name, clock), object_lock=lock)
    finally:
        storage.close()


def _bare(address: Address, credentials: Credentials | None, *, conditional_put: bool | None, create: bool) -> Storage:
    if isinstance(address, LocalAddress):
        return LocalStorage(address.path, create=create, conditional_put=conditional_put is not False)
    from crmbackup.storage.s3 import S3Storage

    return S3Storage(address, credentials, conditional_put=conditional_put is True)
