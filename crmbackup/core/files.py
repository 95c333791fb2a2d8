"""Durable files: written to a temporary name, fsynced, renamed, the directory fsynced."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from pathlib import Path

from crmbackup.core.clock import Clock
from crmbackup.core.errors import DiskFull, LocalDenied, LocalError

PRIVATE_DIR = 0o700
PRIVATE_FILE = 0o600
#: Bytes handed to write(2) at once. For larger ones Linux (6.16 and later, ext4) takes free blocks of up to 2 MiB, which a
#: virtual machine has given back to its host: writing 9 MiB at once took eight times as long as in such parts.
WRITE_SIZE = 256 * 1024
#: How long to wait for another process that holds a file for the milliseconds of a write.
LOCK_SECONDS = 10.0
_LOCK_PAUSE = 0.02


def local_error(error: OSError, doing: str) -> LocalError:
    """The error of ours that says what an OSError means to a user. `doing` is like "write /srv/x"."""
    why = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"cannot {doing}", why=why, hint="free some space or point the setting at a larger disk")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return LocalDenied(f"cannot {doing}", why=why, hint="check owner and mode, and who runs crmbackup")
    return LocalError(f"cannot {doing}", why=why)


def sync_directory(path: Path) -> None:
    """Make renames and new names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private_directory(path: Path) -> None:
    """Create a directory, and its parents, that only their owner may enter. Raises LocalError."""
    try:
        # Not parents=True: that gives the parents whatever mode the umask leaves.
        for each in (*reversed(path.parents), path):
            if not each.is_dir():
                each.mkdir(mode=PRIVATE_DIR, exist_ok=True)
    except OSError as error:
        raise local_error(error, f"create the directory {path}") from error


def write_durably(path: Path, data: bytes, mode: int = PRIVATE_FILE) -> None:
    """Replace or create a file so that a crash leaves the old content or the new, never a part. Raises LocalError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise local_error(error, f"write {path}") from error


def lock_file(descriptor: int, path: Path, clock: Clock) -> None:
    """Keep other processes that do the same out until the file is closed. Raises LocalError after `LOCK_SECONDS`."""
    deadline = clock.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if clock.monotonic() >= deadline:
                raise LocalError(f"cannot write {path}", why="another process keeps it locked") from error
            clock.sleep(_LOCK_PAUSE)
