"""Locks between processes of one host."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crmbackup.core.errors import Locked
from crmbackup.core.files import local_error, make_private_directory


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file, in a directory that is made if need be. Raises Locked (`what` is at work), LocalError.

    The kernel gives it back when the process ends, however it ends.
    """
    make_private_directory(path.parent)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise local_error(error, f"write {path}") from error
    try:
        try:
            # A POSIX lock: unlike flock it is not shared with forked workers, so it ends with this process.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            raise Locked(
                f"{what} is at work (process {holder or 'unknown'})",
                hint="wait for it to end; a crashed run leaves no lock behind",
            ) from error
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        except OSError as error:
            raise local_error(error, f"write {path}") from error
        yield
    finally:
        os.close(descriptor)
