"""Opening SQLite databases without changing them, and what SQLite's errors mean to a user."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import apsw

from crmbackup.core.errors import (
    DiskFull,
    SourceEmpty,
    SourceError,
    SourceLocked,
    SourceMissing,
    SourceNotADatabase,
    SourceUnreadable,
)

MAGIC = b"SQLite format 3\0"
RIGHTS = "run as the user who owns the database, or give read and write rights on the file and its directory"
_LOG_IN_CHANGE = (apsw.SQLITE_READONLY_RECOVERY, apsw.SQLITE_READONLY_CANTLOCK)
_LOG_PAUSE = 0.002
_BUILT_IN = ("BINARY", "NOCASE", "RTRIM")
ENGINE_VERSION = f"SQLite {apsw.sqlite_lib_version()}"


def look_at(path: Path) -> int:
    """The size in bytes of a source file that could be a database. Raises SourceError kinds."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise SourceMissing(
            f"the database {path} does not exist", hint="check source.path in the policy, and that its disk is mounted"
        ) from error
    except OSError as error:
        raise SourceUnreadable(f"cannot look at the database {path}", why=error.strerror or "", hint=RIGHTS) from error
    if not stat.S_ISREG(status.st_mode):
        raise SourceNotADatabase(f"{path} is not a file", hint="source.path must name the database file itself")
    if status.st_size == 0:
        raise SourceEmpty(
            f"the database {path} is empty",
            why="the file has 0 bytes",
            hint="check source.path; an application that lost its database often leaves an empty file",
        )
    return status.st_size


def check_magic(path: Path) -> None:
    """The file begins as an SQLite database does. Raises SourceNotADatabase, SourceUnreadable.

    Must run before any connection to the file is open in this process: closing a file drops the process's POSIX locks
    on it, SQLite's included.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(len(MAGIC))
    except OSError as error:
        raise SourceUnreadable(f"cannot read the database {path}", why=error.strerror or "", hint=RIGHTS) from error
    if head != MAGIC:
        raise SourceNotADatabase(
            f"{path} is not an SQLite database",
            why="it does not begin as one",
            hint="check source.path; for an encrypted database (SQLCipher) set source.encrypted: true",
        )


def open_database(path: Path, *, write: bool = False, busy_seconds: float = 5.0) -> apsw.Connection:
    """A connection that changes nothing by itself: never creates a database, no checkpoint at close, hostile schemas
    cannot run functions. `write` asks for write access where rights allow, which hot journals and locks need.
    """
    uri = "file://" + quote(os.fsencode(path.absolute())) + ("?mode=rw" if write else "?mode=ro")
    flags = apsw.SQLITE_OPEN_URI | (apsw.SQLITE_OPEN_READWRITE if write else apsw.SQLITE_OPEN_READONLY)
    connection = apsw.Connection(uri, flags=flags)
    try:
        connection.set_busy_timeout(int(busy_seconds * 1000))
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    except BaseException:
        connection.close()
        raise
    return connection


def open_source(path: Path, busy_seconds: float) -> apsw.Connection:
    """A reader of the source. Opened for writing where rights allow, since recovering a hot journal or making the
    shared memory of a WAL needs it; query_only keeps the connection itself from changing anything.

    A collation that only the application knows is stood in for: reading a table in its stored order compares nothing,
    and whatever does compare fails.
    """
    connection = open_database(path, write=True, busy_seconds=busy_seconds)
    try:
        connection.pragma("query_only", True)
        connection.collation_needed(_stand_in)
    except BaseException:
        connection.close()
        raise
    return connection


def begin_read(connection: apsw.Connection, busy_seconds: float) -> int:
    """Begin a read transaction, and read the schema's version, which takes the snapshot.

    Raises apsw.ReadOnlyError when the log must be recovered first and we may not. A reader without the right to write
    is told so too while another process changes the log's header, so it counts only when it lasts for `busy_seconds`.
    """
    connection.execute("BEGIN")
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            return int(connection.pragma("schema_version"))
        except apsw.ReadOnlyError as error:
            code = error.extendedresult  # type: ignore[attr-defined]  # missing in the stubs of apsw
            if code not in _LOG_IN_CHANGE or time.monotonic() >= deadline:
                connection.execute("ROLLBACK")
                raise
            time.sleep(_LOG_PAUSE)
        except apsw.Error:
            connection.execute("ROLLBACK")
            raise


def _stand_in(connection: apsw.Connection, name: str) -> None:
    if name.upper() in _BUILT_IN:
        return  # asked for in UTF-16 databases, before SQLite adapts its own

    def compare(_one: str, _other: str) -> int:
        raise apsw.SQLError(f"no such collation sequence: {name}")

    connection.create_collation(name, compare)


@contextmanager
def source_connection(path: Path, busy_seconds: float) -> Iterator[apsw.Connection]:
    """`open_source` for a while. It must be the last connection of ours to be closed.

    The empty log and the shared memory that opening a WAL database makes are removed again, unless somebody uses them:
    left behind they would belong to us, and an application that runs as another user could not write to its database.
    """
    nothing_logged = _nothing_logged(path)
    connection = open_source(path, busy_seconds)
    try:
        yield connection
    finally:
        if nothing_logged:
            # SQLite removes both when the last connection is closed with this off, and does nothing otherwise.
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        connection.close()


def _nothing_logged(path: Path) -> bool:
    try:
        return side_file(path, "-wal").stat().st_size == 0
    except FileNotFoundError:  # also one that an application removes just now
        return True


def side_file(path: Path, suffix: str) -> Path:
    """The log or journal that belongs to a database; symbolic links are followed as SQLite does."""
    real = path.resolve()
    return real.with_name(real.name + suffix)


@contextmanager
def source_errors(path: Path, table: str = "") -> Iterator[None]:
    """Turn SQLite's errors into ours. `table` is what was being read, if it was one table."""
    place = f"table {table}: " if table else ""
    try:
        yield
    except apsw.BusyError as error:
        raise SourceLocked(
            f"the database {path} is locked",
            why="another process holds it for writing",
            hint="raise source.busy_timeout, or look who holds it (fuser, lsof)",
        ) from error
    except apsw.NotADBError as error:
        raise SourceNotADatabase(
            f"{path} is not an SQLite database",
            why="encrypted, or damaged in its first page",
            hint="for an encrypted database (SQLCipher) set source.encrypted: true",
        ) from error
    except apsw.CorruptError as error:
        raise SourceUnreadable(
            f"the database {path} is damaged",
            why=place + str(error),
            hint="run `sqlite3 FILE 'PRAGMA integrity_check'` and restore an older snapshot if it confirms",
        ) from error
    except (apsw.CantOpenError, apsw.PermissionsError, apsw.AuthError, apsw.ReadOnlyError) as error:
        raise SourceUnreadable(f"cannot open the database {path}", why=str(error), hint=RIGHTS) from error
    except apsw.FullError as error:
        raise DiskFull(f"no room beside the database {path}", why=str(error)) from error
    except apsw.IOError as error:
        raise SourceUnreadable(
            f"cannot read the database {path}", why=place + str(error), hint="look at the disk and dmesg"
        ) from error
    except apsw.Error as error:
        raise SourceError(f"the database {path} cannot be read", why=str(error)) from error
    except UnicodeDecodeError as error:
        raise SourceError(f"the database {path} cannot be read", why=f"text that is not valid: {error}") from error


def quoted(name: str) -> str:
    """An SQL identifier, whatever it holds."""
    return '"' + name.replace('"', '""') + '"'
