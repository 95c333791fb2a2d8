"""Databases that SQLite itself cannot open here, such as SQLCipher's: bytes only.

Consistency comes from SQLite's own lock protocol, which such libraries keep (https://sqlite.org/lockingv3.html): a
SHARED lock keeps every writer from changing the file. It works for rollback-journal databases only; one with a
write-ahead log is refused, because which of its frames count cannot be told without the key.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from crmbackup.core.errors import SourceLocked, SourceUnreadable
from crmbackup.engines.sqlite.connection import RIGHTS, side_file

#: Bytes of an image's pages. Whole numbers of them make up every file, whatever the page size of the library.
PAGE_SIZES = (1024, 512)
_PENDING = 0x40000000
_SHARED_FIRST = _PENDING + 2
_SHARED_SIZE = 510


class OpaqueFile:
    """An encrypted database file under a SHARED lock. Raises SourceLocked, SourceUnreadable; does not wait."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceUnreadable(f"cannot open the database {path}", why=error.strerror or "", hint=RIGHTS) from error
        try:
            self._lock()
            refuse_log(path)
            self._refuse_journal()
            size = os.fstat(self._descriptor).st_size
            if size % PAGE_SIZES[-1]:
                raise SourceUnreadable(
                    f"the encrypted database {path} is cut short",
                    why=f"{size} bytes are not whole pages of {PAGE_SIZES[-1]}",
                )
            self.page_size = next(each for each in PAGE_SIZES if size % each == 0)
            self.pages = size // self.page_size
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        try:
            # A writer that waits holds PENDING; readers must pass it to come in.
            fcntl.lockf(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, _PENDING)
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB, _SHARED_SIZE, _SHARED_FIRST)
            finally:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _PENDING)
        except OSError as error:
            raise SourceLocked(
                f"the database {self._path} is locked",
                why="another process holds it for writing",
                hint="raise source.busy_timeout, or look who holds it (fuser, lsof)",
            ) from error

    def _refuse_journal(self) -> None:
        journal = side_file(self._path, "-journal")
        try:
            with journal.open("rb") as stream:
                begun = stream.read(1) not in (b"", b"\0")  # a journal that is kept (PERSIST) begins with zeros
        except FileNotFoundError:
            return
        except OSError as error:
            raise SourceUnreadable(f"cannot read {journal}", why=error.strerror or "", hint=RIGHTS) from error
        if begun:
            raise SourceLocked(
                f"the encrypted database {self._path} has the journal of an unfinished transaction",
                why=f"a writer is at work, or one has crashed and left {journal.name}",
                hint="if nobody writes, let the application open the database once: it rolls back what is unfinished",
            )

    def read(self, first: int, count: int) -> bytes:
        """The bytes of `count` pages from page `first`."""
        data = os.pread(self._descriptor, count * self.page_size, (first - 1) * self.page_size)
        if len(data) != count * self.page_size:
            raise SourceUnreadable(f"the database {self._path} is cut short", why="the file ended before its size")
        return data

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)


def refuse_log(path: Path) -> None:
    """Raises SourceUnreadable when a write-ahead log with content lies beside an encrypted database."""
    log = side_file(path, "-wal")
    try:
        size = log.stat().st_size
    except FileNotFoundError:
        return
    except OSError as error:
        raise SourceUnreadable(f"cannot look at {log}", why=error.strerror or "", hint=RIGHTS) from error
    if size:
        raise SourceUnreadable(
            f"the encrypted database {path} has a write-ahead log",
            why=f"{log.name} holds data that needs the key",
            hint="let the application leave WAL mode (PRAGMA journal_mode=DELETE), then back up",
        )
