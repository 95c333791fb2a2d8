"""Rebuilding a database file from its pages, and reading it back as the snapshot was read."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import secrets
import shutil
import stat
import threading
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from crmbackup.core.errors import DiskFull, LocalError, TargetExists, VerificationFailed
from crmbackup.core.files import WRITE_SIZE, local_error, sync_directory
from crmbackup.engines.ahead import begun_ahead
from crmbackup.engines.base import Restore, Workers
from crmbackup.engines.sqlite.pages import Extents, block_hashes, decode_layout, image_digest

#: Files that belong to a database of that name; a stale one would corrupt the restored file.
SIDE_FILES = ("-wal", "-shm", "-journal")
#: Read back by one task, and at once.
_READ = 64 * 1024 * 1024
_PIECE = 1024 * 1024
_FLUSH_SECONDS = 0.2
#: The bytes that SQLite locks (https://sqlite.org/lockingv3.html).
_LOCK_FIRST, _LOCK_SIZE = 0x40000000, 512


@dataclass(frozen=True)
class Placement:
    """Where the pages of one chunk go: (offset in the chunk, length, offset in the file), in bytes."""

    file: Path
    pieces: tuple[tuple[int, int, int], ...]


def place(placement: object, data: bytes) -> int:
    """Write one chunk's pages; gives how many bytes. Runs in a worker."""
    assert isinstance(placement, Placement)
    view = memoryview(data)
    written = 0
    try:
        descriptor = os.open(placement.file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for start, length, offset in placement.pieces:
                piece = view[start : start + length]
                while piece:
                    done = os.pwrite(descriptor, piece[:WRITE_SIZE], offset)
                    piece, offset = piece[done:], offset + done
                written += length
        finally:
            os.close(descriptor)
    except OSError as error:
        raise local_error(error, f"write {placement.file}") from error
    return written


class _Placements(Mapping[int, Placement]):
    """Where each chunk goes, put together when it is asked for."""

    def __init__(self, extents: Extents, page_size: int, file: Path) -> None:
        self._extents = extents
        self._page_size = page_size
        self._file = file
        self._by_chunk = array("I", sorted(range(len(extents)), key=extents.chunk))

    def __iter__(self) -> Iterator[int]:
        return (chunk for chunk, _ in groupby(map(self._extents.chunk, self._by_chunk)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, chunk: int) -> Placement:
        size, pieces = self._page_size, []
        for place in range(bisect_left(self._by_chunk, chunk, key=self._extents.chunk), len(self._by_chunk)):
            extent = self._extents[self._by_chunk[place]]
            if extent.chunk != chunk:
                break
            pieces.append((extent.start * size, extent.length * size, (extent.first - 1) * size))
        if not pieces:
            raise KeyError(chunk)
        return Placement(self._file, tuple(pieces))


class SqliteRestore(Restore):
    """A file under a temporary name beside its target."""

    def __init__(self, layout: Mapping[str, Any], digest: str, target: Path, *, overwrite: bool) -> None:
        self._extents, self._page_size, self._page_count = decode_layout(layout)
        self._digest = digest
        self._target = target.resolve()  # what a symbolic link leads to is replaced, not the link
        self._overwrite = overwrite
        self._size = self._page_size * self._page_count
        self._file = self._target.with_name(f".{self._target.name}.{secrets.token_hex(4)}.restoring")
        self._committed = False
        try:
            self._check_target()
            self._flusher = _Flusher(self._file, self._size)
        except OSError as error:
            self._file.unlink(missing_ok=True)
            raise local_error(error, f"write {self._file} ({self._size} bytes)") from error

    def _check_target(self) -> None:
        directory = self._target.parent
        if not directory.is_dir():
            raise LocalError(f"the directory {directory} does not exist", hint="create it, or restore elsewhere")
        if self._target.is_dir():
            raise TargetExists(f"{self._target} is a directory", hint="name the database file that is to be made")
        if self._target.exists() and not self._target.is_file():
            raise TargetExists(f"{self._target} is not a file", hint="name the database file that is to be made")
        if self._target.exists() and not self._overwrite:
            raise TargetExists(
                f"{self._target} exists already", hint="restore elsewhere, or add --overwrite to replace it"
            )
        _remove_leftovers(self._target)
        free = shutil.disk_usage(directory).free
        if free < self._size:
            raise DiskFull(
                f"no room for {self._target}",
                why=f"it needs {self._size} bytes and {directory} has {free} free",
                hint="free some space or restore to a larger disk",
            )
        with _nobody_using(self._target):
            pass  # better said before everything is fetched

    def stages(self) -> Iterator[Mapping[int, Placement]]:
        yield _Placements(self._extents, self._page_size, self._file)

    @property
    def place(self) -> Callable[[object, bytes], object]:
        return place

    def commit(self, placed: Mapping[int, object], workers: Workers) -> None:
        written = sum(int(str(count)) for count in placed.values())
        if written != self._size:
            raise VerificationFailed(f"the restored image has {written} bytes instead of {self._size}")
        found = file_digest(self._file, self._size, workers)
        if found != self._digest:
            raise VerificationFailed(
                "the restored image is not the snapshot's",
                why=f"its digest is {found[:16]} instead of {self._digest[:16]}",
            )
        try:
            with _nobody_using(self._target) as replaced:
                if replaced and not self._overwrite:
                    raise TargetExists(
                        f"{self._target} has appeared meanwhile", hint="restore elsewhere, or add --overwrite"
                    )
                self._finish_file(replaced)
                for suffix in SIDE_FILES:
                    self._target.with_name(self._target.name + suffix).unlink(missing_ok=True)
                # Durable before the new file has the name: an old log beside it would be played into it.
                sync_directory(self._target.parent)
                self._file.replace(self._target)
                self._committed = True
                sync_directory(self._target.parent)
        except OSError as error:
            raise local_error(error, f"write {self._target}") from error

    def _finish_file(self, replaced: os.stat_result | None) -> None:
        descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if replaced:
                # The application must be able to use the database as before; only root may give files away.
                with contextlib.suppress(PermissionError):
                    os.fchown(descriptor, replaced.st_uid, replaced.st_gid)
                    os.fchmod(descriptor, stat.S_IMODE(replaced.st_mode))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Remove what was not committed."""
        self._flusher.stop()
        if not self._committed:
            self._file.unlink(missing_ok=True)


@contextlib.contextmanager
def _nobody_using(path: Path) -> Iterator[os.stat_result | None]:
    """Hold SQLite's locks on a file that is about to be replaced; None when there is none. Raises LocalError.

    A connection in WAL mode holds a lock for as long as it is open, one in another mode only while it reads or writes.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, _LOCK_SIZE, _LOCK_FIRST)
        except BlockingIOError as error:
            raise LocalError(
                f"{path} is in use",
                why="a program has the database open that would be replaced",
                hint="stop the application first: it would go on with the old file and mix it with the new one",
            ) from error
        yield os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _remove_leftovers(target: Path) -> None:
    """Remove what restores to this target left that were killed: nobody holds the lock of such a file any more."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.{'[0-9a-f]' * 8}.restoring"):
        with path.open("rb") as stream, contextlib.suppress(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def file_digest(path: Path, size: int, workers: Workers) -> str:
    """The image digest of a database file of `size` bytes, read back from the disk's cache by all workers."""
    parts = (workers.submit(_read_back, path, start, min(_READ, size - start)) for start in range(0, size, _READ))
    return image_digest(part.result() for part in begun_ahead(parts, workers))


def _read_back(path: Path, start: int, length: int) -> bytes:
    """The block hashes of a part of a file. Runs in a worker."""
    with path.open("rb") as stream:
        stream.seek(start)
        sizes = (min(left, _PIECE) for left in range(length, 0, -_PIECE))
        return b"".join(block_hashes(memoryview(stream.read(size))) for size in sizes)


class _Flusher:
    """Sends what is written to the disk while the rest is still being fetched, so that the last fsync is short."""

    def __init__(self, file: Path, size: int) -> None:
        """Make the file. Its lock, which ends with this process, tells that it is no leftover. Raises OSError."""
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            os.posix_fallocate(self._descriptor, 0, size)
        except OSError:
            os.close(self._descriptor)
            raise
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._done.wait(_FLUSH_SECONDS):
            # A failure here is no loss: the fsync that counts comes at the end, and reports it.
            with contextlib.suppress(OSError):
                os.fdatasync(self._descriptor)

    def stop(self) -> None:
        """End the thread."""
        self._done.set()
        self._thread.join()
        os.close(self._descriptor)
