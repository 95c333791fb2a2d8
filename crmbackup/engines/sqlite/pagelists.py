"""Lists of page numbers in files: those of all tables would need 1 MiB of memory for each GiB of the database."""

from __future__ import annotations

import mmap
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Self

from crmbackup.core.files import PRIVATE_FILE, local_error

NUMBER_SIZE = array("I").itemsize
#: Numbers that are in memory at a time.
_PIECE = 16 * 1024


class PageMarks:
    """Which pages are marked. Marks that are far from any that was set take no memory: the system shares zeros."""

    def __init__(self, page_count: int) -> None:
        marks = mmap.mmap(-1, page_count + 1, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.at: Callable[[int], int] = marks.__getitem__
        self._marks = marks

    def add(self, pages: Iterable[int]) -> None:
        """Mark pages."""
        for page in pages:
            self._marks[page] = 1


@dataclass(frozen=True, slots=True)
class PageList:
    """`count` page numbers of a file, from number `start` on. In this machine's byte order."""

    path: Path
    start: int
    count: int

    def pieces(self) -> Iterator[array[int]]:
        """The numbers, in order. Raises LocalError."""
        left = self.count
        try:
            with self.path.open("rb") as stream:
                stream.seek(self.start * NUMBER_SIZE)
                while left:
                    piece = array("I")
                    piece.fromfile(stream, min(left, _PIECE))
                    left -= len(piece)
                    yield piece
        except EOFError as error:
            raise local_error(OSError(f"it ends {left} numbers too early"), f"read {self.path}") from error
        except OSError as error:
            raise local_error(error, f"read {self.path}") from error

    def first(self) -> int:
        """The first number of a list that is not empty. Raises LocalError."""
        return next(self.pieces())[0]

    def same_as(self, other: PageList) -> bool:
        """Whether both hold the same numbers in the same order. Raises LocalError."""
        # Equal counts are cut into pieces of equal lengths.
        return self.count == other.count and all(a == b for a, b in zip(self.pieces(), other.pieces(), strict=True))

    def meets(self, changed: PageMarks) -> bool:
        """Whether one of the pages is marked, or lies behind the last that can be. Raises LocalError."""
        try:
            return any(map(changed.at, chain.from_iterable(self.pieces())))
        except IndexError:
            return True

    def part(self, start: int, count: int) -> PageList:
        """Up to `count` of the numbers, from the one that is number `start` of this list."""
        return PageList(self.path, self.start + start, max(0, min(count, self.count - start)))


class PageListWriter:
    """Writes lists into one new file. They can be read after it was closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting = array("I")
        self._written = 0
        with self._writing():
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, PRIVATE_FILE)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise local_error(error, f"write {self.path}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            os.close(self._descriptor)

    @property
    def count(self) -> int:
        """How many numbers there are so far."""
        return self._written + len(self._waiting)

    def add(self, pages: array[int]) -> None:
        """Append numbers."""
        self._waiting.extend(pages)
        if len(self._waiting) >= _PIECE:
            self._flush()

    def since(self, start: int) -> PageList:
        """The list of what was added when there were `start` numbers, up to now."""
        return PageList(self.path, start, self.count - start)

    def copy(self, pages: PageList) -> PageList:
        """Append the numbers of a list of another file."""
        start = self.count
        for piece in pages.pieces():
            self.add(piece)
        return self.since(start)

    def sync(self) -> None:
        """Make durable what was added."""
        self._flush()
        with self._writing():
            os.fsync(self._descriptor)

    def _flush(self) -> None:
        data = memoryview(self._waiting.tobytes())
        with self._writing():
            while data:
                data = data[os.write(self._descriptor, data) :]
        self._written += len(self._waiting)
        self._waiting = array("I")
