"""Which pages of a snapshot lie in the write-ahead log.

Source of the formats: https://sqlite.org/walformat.html. Reading pages through the database file alone is right for
a rollback-journal database, whose file does not change while a reader holds its SHARED lock. In WAL mode a page is in
the log if a frame at or below the snapshot's last frame M holds it; else the file's page is right, because no
checkpoint moves frames above a reader's mark, and moves of frames at or below it only write what the snapshot holds.

Let B be the number of frames already copied into the file (nBackfill), read after all readers joined:

* B = M: the file holds everything up to M. Either a reader's lock keeps checkpoints off, or none may go beyond M.
* B < M: every reader joined while B < M, so each holds a mark above zero: the log cannot start over beneath us, and
  frames B+1 .. M stay where they are. Frames up to B are in the file.
"""

from __future__ import annotations

import os
import struct
from array import array
from bisect import bisect_left
from dataclasses import dataclass

import apsw

from crmbackup.core.errors import SourceChanged, SourceUnreadable
from crmbackup.engines.sqlite.connection import RIGHTS

_HEADER_SIZE = 48
#: two copies of the header, then nBackfill
_INDEX_SIZE = 2 * _HEADER_SIZE + 4
_INDEX = struct.Struct("=IIIBBHII2I2I2I")
_VERSION = 3007000
WAL_HEADER_SIZE = 32
FRAME_HEADER_SIZE = 24
_PAGE_NUMBER = struct.Struct(">I")
_WHICH_DATABASE, _WHICH_LOG = 0, 1


@dataclass(frozen=True)
class WalIndex:
    """The shared memory's header. Two equal ones mean that nothing was committed in between.

    last_frame: M. backfilled: B. pages: size of the database in pages at M.
    """

    raw: bytes
    page_size: int
    last_frame: int
    pages: int
    backfilled: int

    def same_commit(self, other: WalIndex | None) -> bool:
        """Whether both were read with no commit in between. Checkpoints do not count."""
        return other is not None and self.raw == other.raw


class SharedMemory:
    """Reads the header from the -shm file of a database.

    `close` must come after every SQLite connection of this process to the database is closed: closing the descriptor
    drops the process's POSIX locks on that file.
    """

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def open(self, database: str) -> None:
        """Find the shared memory of a database that is open in WAL mode. Nothing happens the second time."""
        if self._descriptor is None:
            try:
                self._descriptor = os.open(database + "-shm", os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise SourceUnreadable(
                    f"cannot read the shared memory of {database}", why=error.strerror or "", hint=RIGHTS
                ) from error

    def read(self) -> WalIndex | None:
        """The header as of now; None while a writer is changing it."""
        assert self._descriptor is not None
        data = os.pread(self._descriptor, _INDEX_SIZE, 0)
        if len(data) < _INDEX_SIZE or data[:_HEADER_SIZE] != data[_HEADER_SIZE : 2 * _HEADER_SIZE]:
            return None
        version, _, _, initialised, _, page_size, last_frame, pages, *_ = _INDEX.unpack_from(data)
        if not initialised:
            return None
        if version != _VERSION:
            raise SourceUnreadable("the write-ahead log has a format this version does not know", why=str(version))
        (backfilled,) = struct.unpack_from("=I", data, 2 * _HEADER_SIZE)
        # 64 KiB does not fit into 16 bits and is written as 1.
        return WalIndex(data[:_HEADER_SIZE], 65536 if page_size == 1 else page_size, last_frame, pages, backfilled)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._descriptor is not None:
            os.close(self._descriptor)


@dataclass(frozen=True)
class Logged:
    """The snapshot's pages that the database file does not hold yet: ascending numbers, and the frame of each."""

    pages: array[int]
    frames: array[int]

    def among(self, first: int, count: int) -> list[tuple[int, int]]:
        """(page, frame) of those of `count` pages from page `first` that lie in the log."""
        low = bisect_left(self.pages, first)
        high = bisect_left(self.pages, first + count, low)
        return list(zip(self.pages[low:high], self.frames[low:high], strict=True))


NOTHING_LOGGED = Logged(array("I"), array("I"))


def logged(connection: apsw.Connection, index: WalIndex) -> Logged:
    """What of the snapshot lies in the log."""
    frames: dict[int, int] = {}
    frame_size = FRAME_HEADER_SIZE + index.page_size
    for frame in range(index.backfilled + 1, index.last_frame + 1):
        offset = WAL_HEADER_SIZE + (frame - 1) * frame_size
        complete, header = connection.read("main", _WHICH_LOG, offset, FRAME_HEADER_SIZE)
        if not complete:
            raise SourceChanged("the write-ahead log ended before the snapshot did", hint="try again")
        frames[_PAGE_NUMBER.unpack_from(header)[0]] = frame
    # Pages behind the end were given up by a later commit.
    pages = array("I", sorted(page for page in frames if page <= index.pages))
    return Logged(pages, array("I", map(frames.__getitem__, pages)))


def read_frame(connection: apsw.Connection, frame: int, page_size: int) -> bytes:
    """The page that a frame of the log holds."""
    offset = WAL_HEADER_SIZE + (frame - 1) * (FRAME_HEADER_SIZE + page_size) + FRAME_HEADER_SIZE
    complete, data = connection.read("main", _WHICH_LOG, offset, page_size)
    if not complete:
        raise SourceChanged("the write-ahead log ended before the snapshot did", hint="try again")
    return data


def read_file(connection: apsw.Connection, offset: int, length: int) -> tuple[bool, bytes]:
    """Bytes of the database file through SQLite's own descriptor; whether they were all there, zeros if not."""
    complete, data = connection.read("main", _WHICH_DATABASE, offset, length)
    return complete, data
