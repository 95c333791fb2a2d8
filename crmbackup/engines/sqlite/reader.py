"""What runs in the workers: joining a snapshot and reading pages from it.

A worker process holds at most one open read transaction, in module variables, because tasks reach it as plain
function calls.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import apsw
import blake3

from crmbackup.core.errors import SourceUnreadable
from crmbackup.core.files import local_error
from crmbackup.engines.base import SliceData
from crmbackup.engines.sqlite import opaque, wal
from crmbackup.engines.sqlite.connection import begin_read, open_source, source_errors
from crmbackup.engines.sqlite.pages import (
    BLOCK_HASH_SIZE,
    BLOCK_SIZE,
    PAGE_HASH_SIZE,
    block_hashes,
    page_hashes,
)

CACHE_KIB = 8 * 1024


@dataclass(frozen=True)
class Source:
    """Which database, and how to open it. Picklable."""

    path: Path
    busy_seconds: float
    encrypted: bool


class View(NamedTuple):
    """What a reader sees on joining; readers of one snapshot see the same."""

    journal_mode: str
    page_size: int
    page_count: int
    schema_version: int
    first_page: str


_connection: apsw.Connection | opaque.OpaqueFile | None = None
_logged = wal.NOTHING_LOGGED


def join(source: Source) -> View:
    """Open a connection in this worker and begin its read transaction."""
    global _connection  # noqa: PLW0603 - see the module's docstring
    leave()
    if source.encrypted:
        _connection = opaque.OpaqueFile(source.path)
        return View("opaque", _connection.page_size, _connection.pages, 0, "")
    with source_errors(source.path):
        connection = open_source(source.path, source.busy_seconds)
        _connection = connection
        connection.pragma("cache_size", -CACHE_KIB)
        schema_version = begin_read(connection, source.busy_seconds)
        page_size = connection.pragma("page_size")
        _, first = wal.read_file(connection, 0, page_size)
        mode = connection.pragma("journal_mode")
        # In WAL mode the file's first page may change by a checkpoint without any commit.
        fingerprint = "" if mode == "wal" else blake3.blake3(first).hexdigest()
        return View(mode, page_size, connection.pragma("page_count"), schema_version, fingerprint)


def use_log(logged: wal.Logged) -> None:
    """Which pages of the snapshot this worker must read from the write-ahead log."""
    global _logged  # noqa: PLW0603 - see the module's docstring
    _logged = logged


def leave() -> None:
    """End the read transaction of this worker, if it has one."""
    global _connection, _logged
    if _connection is not None:
        _connection.close()
    _connection, _logged = None, wal.NOTHING_LOGGED


def connection() -> apsw.Connection:
    """The connection of this worker, within its read transaction."""
    if not isinstance(_connection, apsw.Connection):
        raise SourceUnreadable("this worker has not joined a snapshot")
    return _connection


def read_pages(source: Source, first: int, count: int, page_size: int) -> bytes | bytearray:
    """The bytes of `count` pages from page `first`, as the snapshot has them."""
    if isinstance(_connection, opaque.OpaqueFile):
        return _connection.read(first, count)
    with source_errors(source.path):
        frames = _logged.among(first, count)
        complete, data = wal.read_file(connection(), (first - 1) * page_size, count * page_size)
        if not complete:
            _require_covered(source, first, count, page_size, frames)
        if not frames:
            return data
        patched = bytearray(data)
        for page, frame in frames:
            start = (page - first) * page_size
            patched[start : start + page_size] = wal.read_frame(connection(), frame, page_size)
        return patched


def _require_covered(source: Source, first: int, count: int, page_size: int, frames: list[tuple[int, int]]) -> None:
    """The file ends within these pages: those behind its end must all lie in the log, else the database is cut off."""
    in_log = {page for page, _ in frames}
    for page in range(first, first + count):
        if page not in in_log and not wal.read_file(connection(), (page - 1) * page_size, page_size)[0]:
            raise SourceUnreadable(
                f"the database {source.path} is cut short",
                why=f"page {page} of its image is behind the end of the file",
                hint="restore an older snapshot; look for a full disk or an interrupted copy",
            )


class PageFacts(NamedTuple):
    """Hashes of what a slice held: of each block, and of each page."""

    blocks: bytes
    pages: bytes


@dataclass(frozen=True)
class PageSlice:
    """Consecutive pages that begin at a block's border: the slice of a full snapshot."""

    source: Source
    first: int
    count: int
    page_size: int
    page_key: bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * self.page_size

    def read(self) -> Iterator[SliceData]:
        """The pages, and their hashes."""
        data = read_pages(self.source, self.first, self.count, self.page_size)
        view = memoryview(data)
        yield SliceData(data, PageFacts(block_hashes(view), page_hashes(view, self.page_size, self.page_key)))


@dataclass(frozen=True)
class ChangedPages:
    """Runs (first page, number of pages) that differ from the parent's: the slice of an incremental."""

    source: Source
    runs: tuple[tuple[int, int], ...]
    page_size: int

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(count for _, count in self.runs) * self.page_size

    def read(self) -> Iterator[SliceData]:
        """The pages, one behind the other."""
        parts = [read_pages(self.source, first, count, self.page_size) for first, count in self.runs]
        yield SliceData(parts[0] if len(parts) == 1 else b"".join(parts), None)


@dataclass(frozen=True)
class ScanRange:
    """A range of pages to compare with the parent's hashes. `first` begins a block.

    old_blocks, old_pages: the files with the hashes of the parent's blocks and pages, which may end before this range.
    """

    source: Source
    first: int
    count: int
    page_size: int
    page_key: bytes
    old_blocks: Path
    old_pages: Path


class ScanResult(NamedTuple):
    """The block hashes of a range, the pages that differ, and the new hashes of those, one behind the other."""

    blocks: bytes
    changed: array[int]
    page_hashes: bytes


READ_SIZE = 1024 * 1024


def scan(task: ScanRange) -> ScanResult:
    """Compare a range with the parent: blocks first, the pages of a block only when it differs."""
    per_block = BLOCK_SIZE // task.page_size
    first_block = (task.first - 1) // per_block
    old_blocks = _part(task.old_blocks, first_block, -(-task.count // per_block), BLOCK_HASH_SIZE)
    old_pages = _part(task.old_pages, task.first - 1, task.count, PAGE_HASH_SIZE)
    blocks: list[bytes] = []
    changed = array("I")
    new_hashes: list[bytes] = []
    step = READ_SIZE // task.page_size
    for skipped in range(0, task.count, step):
        view = memoryview(
            read_pages(task.source, task.first + skipped, min(step, task.count - skipped), task.page_size)
        )
        hashes = block_hashes(view)
        blocks.append(hashes)
        for number in _differing(hashes, old_blocks, skipped // per_block, BLOCK_HASH_SIZE):
            block = view[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE]
            before = skipped + number * per_block
            pages = page_hashes(block, task.page_size, task.page_key)
            for index in _differing(pages, old_pages, before, PAGE_HASH_SIZE):
                changed.append(task.first + before + index)
                new_hashes.append(pages[index * PAGE_HASH_SIZE : (index + 1) * PAGE_HASH_SIZE])
    return ScanResult(b"".join(blocks), changed, b"".join(new_hashes))


def _part(path: Path, first: int, count: int, size: int) -> bytes:
    """`count` hashes of `size` bytes from number `first` of a file, fewer where it ends."""
    try:
        with path.open("rb") as stream:
            stream.seek(first * size)
            return stream.read(count * size)
    except OSError as error:
        raise local_error(error, f"read the local state {path}") from error


def _differing(new: bytes, old: bytes, skipped: int, size: int) -> list[int]:
    """Which of the new hashes are not those of the old ones behind `skipped`."""
    start = skipped * size
    if new == old[start : start + len(new)]:
        return []
    return [at // size for at in range(0, len(new), size) if new[at : at + size] != old[start + at : start + at + size]]
