"""Objects as files below one directory.

A key is a path below the root. Data is written to a temporary name beside its place ("~" and random digits, which
no key can be, so it is never seen), fsynced, then renamed (put) or hard-linked (put if absent: link(2) fails when the
name is taken, which makes the test atomic between processes and machines), and the directory fsynced.

Symbolic links below the root are never followed: every directory of a key is opened in turn with O_NOFOLLOW. The root
itself may be one.

A file system holds "a" or "a/b", not both. The second put of such a pair raises StorageMisconfigured; no two keys
that crmbackup writes are such a pair.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from crmbackup.core.errors import (
    ObjectExists,
    ObjectNotFound,
    StorageDenied,
    StorageError,
    StorageFull,
    StorageMisconfigured,
    StorageUnavailable,
    UsageError,
)
from crmbackup.core.files import PRIVATE_DIR, PRIVATE_FILE, WRITE_SIZE, sync_directory
from crmbackup.storage.address import LocalAddress, format_address
from crmbackup.storage.base import Capabilities, ObjectInfo, Storage, check_key
from crmbackup.storage.ranges import beyond_end, check_range

#: A temporary file older than this was left by a writer that died: no put lasts a day. In seconds.
STALE_SECONDS: Final = 24 * 3600

_TEMPORARY = "~"
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# O_NONBLOCK: a FIFO that somebody put here must not hang us.
_OPEN_OBJECT = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_NO_OBJECT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_CLASHING = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class LocalStorage(Storage):
    """A directory of this machine: a disk, a mounted share.

    Args:
        root: the directory.
        create: make it, and its parents, if it is not there. Otherwise a missing root raises StorageMisconfigured.
        conditional_put: whether the file system has hard links. Without (FAT, exFAT), give False and wrap the storage
            in `Claiming`.

    A root that vanishes later, or becomes another directory (a disk was unmounted), makes every call raise
    StorageUnavailable. It is never made again behind the user's back.
    """

    def __init__(self, root: Path, *, create: bool = False, conditional_put: bool = True) -> None:
        self._root = root
        self._location = format_address(LocalAddress(root))
        self._capabilities = Capabilities(conditional_put=conditional_put)
        # Directories whose own entries this process knows to be on disk. Another writer may have made a directory and
        # not fsynced its parent yet, so seeing it is not enough.
        self._synced: set[tuple[str, ...]] = set()
        # Directories that this process has looked through for what dead writers left.
        self._swept: set[tuple[str, ...]] = set()
        try:
            if create:
                _make_directories(root)
            self._identity = _identity(root.stat())
            if not root.is_dir():
                raise StorageMisconfigured(f"{root} is not a directory")
        except FileNotFoundError as error:
            raise StorageMisconfigured(
                f"there is no directory {root}",
                hint="mount the disk it is on, or correct the address; a new repository is made with init",
            ) from error
        except OSError as error:
            raise storage_error(error, f"open the directory {root}") from error

    @property
    def location(self) -> str:
        return self._location

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def put(self, key: str, data: bytes | bytearray, *, if_absent: bool = False) -> None:
        parents, name = _split(key)
        try:
            with self._directory(parents, create=True) as directory:
                if parents not in self._swept:
                    _remove_stale(directory)
                    self._swept.add(parents)
                temporary = _write_temporary(directory, data)
                try:
                    self._publish(directory, temporary, name, key, if_absent=if_absent)
                finally:
                    _unlink(directory, temporary)
                os.fsync(directory)
        except OSError as error:
            raise storage_error(error, f"write {key} to {self._location}") from error

    def _publish(self, directory: int, temporary: str, name: str, key: str, *, if_absent: bool) -> None:
        """Give the finished file its name. Raises ObjectExists."""
        exists = ObjectExists(f"{key} is already in {self._location}")
        if if_absent and self._capabilities.conditional_put:
            try:
                os.link(temporary, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
            except FileExistsError as error:
                raise exists from error
            except OSError as error:
                if error.errno in _NO_LINKS:
                    raise StorageMisconfigured(
                        f"{self._location} cannot make hard links",
                        why=error.strerror or str(error),
                        hint="if the repository was moved here, `crmbackup init POLICY --join` finds out what this file system can do",
                    ) from error
                raise
            return
        if if_absent and _object_stat(directory, name) is not None:
            raise exists
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        parents, name = _split(key)
        check_range(offset, length)
        try:
            with self._directory(parents) as directory:
                descriptor = os.open(name, _OPEN_OBJECT, dir_fd=directory)
            try:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise self._not_found(key)
                if offset + (length or 0) > found.st_size:
                    raise beyond_end(key, offset, length, found.st_size)
                wanted = found.st_size - offset if length is None else length
                data = _read(descriptor, offset, wanted)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno in _NO_OBJECT:
                raise self._not_found(key) from error
            raise storage_error(error, f"read {key} from {self._location}") from error
        if len(data) != wanted:
            raise beyond_end(key, offset, length)
        return data

    def stat(self, key: str) -> ObjectInfo:
        parents, name = _split(key)
        try:
            with self._directory(parents) as directory:
                found = _object_stat(directory, name)
        except OSError as error:
            if error.errno in _NO_OBJECT:
                raise self._not_found(key) from error
            raise storage_error(error, f"look at {key} in {self._location}") from error
        if found is None:
            raise self._not_found(key)
        return _info(key, found)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        try:
            yield from self._walk((), "", prefix)
        except OSError as error:
            raise storage_error(error, f"list {prefix} in {self._location}") from error

    def _walk(self, parents: tuple[str, ...], path: str, prefix: str) -> Iterator[ObjectInfo]:
        """Objects below a directory. `path` is its key with a slash behind it."""
        found: dict[str, os.stat_result] = {}
        try:
            with self._directory(parents) as directory:
                for name in os.listdir(directory):  # noqa: PTH208 - a descriptor
                    key = path + name
                    if not _is_segment(name) or not (key.startswith(prefix) or prefix.startswith(f"{key}/")):
                        continue
                    try:
                        entry = os.stat(name, dir_fd=directory, follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if stat.S_ISREG(entry.st_mode):
                        found[key] = entry
                    elif stat.S_ISDIR(entry.st_mode):
                        # With its slash a directory sorts among the files just where its objects' keys do.
                        found[f"{key}/"] = entry
        except (FileNotFoundError, NotADirectoryError):
            return  # deleted meanwhile
        for key in sorted(found):
            if key.endswith("/"):
                yield from self._walk((*parents, key[len(path) : -1]), key, prefix)
            elif key.startswith(prefix):
                yield _info(key, found[key])

    def delete(self, key: str) -> None:
        parents, name = _split(key)
        try:
            with self._directory(parents) as directory:
                if _object_stat(directory, name) is not None:
                    _unlink(directory, name)
        except OSError as error:
            if error.errno not in _NO_OBJECT:
                raise storage_error(error, f"delete {key} from {self._location}") from error

    def close(self) -> None:
        """Nothing is held between calls."""

    @contextmanager
    def _directory(self, parents: tuple[str, ...], *, create: bool = False) -> Iterator[int]:
        """A descriptor of the directory, reached from the root without following a link."""
        current = self._open_root()
        try:
            for depth, name in enumerate(parents, start=1):
                above = current
                current = self._enter(above, name, parents[:depth], create=create)
                os.close(above)
            yield current
        finally:
            os.close(current)

    def _enter(self, above: int, name: str, path: tuple[str, ...], *, create: bool) -> int:
        """A descriptor of the directory `name` in `above`; with `create`, one that a crash does not take away."""
        try:
            below = os.open(name, _OPEN_DIRECTORY, dir_fd=above)
            known = path in self._synced
        except FileNotFoundError:
            if not create:
                raise
            with suppress(FileExistsError):
                os.mkdir(name, PRIVATE_DIR, dir_fd=above)
            below = os.open(name, _OPEN_DIRECTORY, dir_fd=above)
            known = False
        if create and not known:
            try:
                os.fsync(above)
            except BaseException:
                os.close(below)
                raise
            self._synced.add(path)
        return below

    def _open_root(self) -> int:
        try:
            descriptor = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._vanished() from error
        if _identity(os.fstat(descriptor)) != self._identity:
            os.close(descriptor)
            raise self._vanished()
        return descriptor

    def _vanished(self) -> StorageUnavailable:
        return StorageUnavailable(
            f"the directory {self._root} is no longer the one that was opened",
            why="it was removed, or a disk was mounted or unmounted",
            hint="mount the disk again",
        )

    def _not_found(self, key: str) -> ObjectNotFound:
        return ObjectNotFound(f"there is no {key} in {self._location}")


def storage_error(error: OSError, doing: str) -> StorageError:
    """The error of ours that says what an OSError means to a user. `doing` is like "write packs/x to /srv/y"."""
    what = f"cannot {doing}"
    why = error.strerror or str(error)
    if error.errno in _FULL:
        return StorageFull(what, why=why, hint="free some space, raise the quota or run prune")
    if error.errno in _DENIED:
        return StorageDenied(what, why=why, hint="check owner, mode and mount options, and who runs crmbackup")
    if error.errno in _CLASHING:
        return StorageMisconfigured(
            what, why=why, hint="a file or a symbolic link stands where a directory should be, or the reverse"
        )
    return StorageUnavailable(what, why=why, hint="check the disk or the share, and the kernel's log")


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _make_directories(path: Path) -> None:
    """Make a directory and its parents, each durable before what is in it."""
    missing = [path]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    for directory in reversed(missing):
        directory.mkdir(mode=PRIVATE_DIR, exist_ok=True)
        sync_directory(directory.parent)


def _write_temporary(directory: int, data: bytes | bytearray) -> str:
    """Write and fsync a file under a name of its own; nothing is left if that fails."""
    name = f"{_TEMPORARY}{secrets.token_hex(8)}"
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, PRIVATE_FILE, dir_fd=directory)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as stream:
            remaining = memoryview(data)
            while remaining:
                remaining = remaining[stream.write(remaining[:WRITE_SIZE]) :]
            os.fsync(descriptor)
    except BaseException:
        _unlink(directory, name)
        raise
    return name


def _unlink(directory: int, name: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def _remove_stale(directory: int) -> None:
    """Remove what dead writers left. Age is told by the storage's own clock: that of a file made just now."""
    left = [name for name in os.listdir(directory) if name.startswith(_TEMPORARY)]
    if not left:
        return
    reference = _write_temporary(directory, b"")
    try:
        now = os.stat(reference, dir_fd=directory, follow_symlinks=False).st_mtime
        for name in left:
            try:
                age = now - os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime
            except FileNotFoundError:
                continue
            if age > STALE_SECONDS:
                _unlink(directory, name)
    finally:
        _unlink(directory, reference)


def _object_stat(directory: int, name: str) -> os.stat_result | None:
    """What the ordinary file of that name is like; None for no file, a directory or a link."""
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _split(key: str) -> tuple[tuple[str, ...], str]:
    """The directories of a key and its last segment. Raises UsageError."""
    *parents, name = check_key(key).split("/")
    return tuple(parents), name


def _read(descriptor: int, offset: int, length: int) -> bytes:
    """Up to `length` bytes; fewer only at the end of the file. One read(2) gives 2 GiB at most."""
    parts: list[bytes] = []
    while length > 0:
        part = os.pread(descriptor, length, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _is_segment(name: str) -> bool:
    try:
        check_key(name)
    except UsageError:
        return False
    return True


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))
