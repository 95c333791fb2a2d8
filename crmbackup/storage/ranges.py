"""What all storages check about ranges, so that all refuse the same ones."""

from __future__ import annotations

from crmbackup.core.errors import StorageUnavailable, UsageError


def check_range(offset: int, length: int | None) -> None:
    """Raises UsageError for a range that cannot be meant."""
    if offset < 0 or (length is not None and length < 0):
        raise UsageError(f"offset {offset} and length {length} are not a range")


def beyond_end(key: str, offset: int, length: int | None, size: int | None = None) -> StorageUnavailable:
    """The error for a range that the object does not hold. `size` is the object's, where known."""
    wanted = f"from byte {offset}" if length is None else f"{length} bytes from byte {offset}"
    return StorageUnavailable(
        f"cannot read {wanted} of {key}",
        why="the answer is short" if size is None else f"the object has {size} bytes",
        hint="if this stays so, the object is truncated: run a check",
    )
