"""Traps in a storage, processes that can be killed and disks that are full."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

import psutil

from crmbackup.core.errors import CrmBackupError
from crmbackup.storage.base import Storage
from crmbackup.storage.wrappers.passing import Passing
from tests.support_repo import OpensStorage, wait_until


class Kill:
    """Kill a process by signal 9: this one, or another that we then wait for to take us along.

    noted: before that, wait until the run has noted this many packs, so that what it leaves is always the same.
    """

    def __init__(self, pid: int, noted: tuple[Path, int] | None = None) -> None:
        self.pid = pid
        self.noted = noted

    def __call__(self) -> None:
        if self.noted:
            path, lines = self.noted
            wait_until(lambda: lines == 0 or (path.exists() and path.read_bytes().count(b"\n") >= lines), "the notes")
        os.kill(self.pid, signal.SIGKILL)
        signal.pause()


@dataclass(frozen=True)
class KillSelf:
    """Kill the process that springs the trap, such as one worker."""

    def __call__(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Raise:
    """Fail as a storage does."""

    error: CrmBackupError

    def __call__(self) -> None:
        raise self.error


@dataclass(frozen=True)
class Hold:
    """Say so with the file `held` and wait for the file `go`."""

    place: Path

    def __call__(self) -> None:
        (self.place / "held").touch()
        wait_until((self.place / "go").exists, "the go")


@dataclass(frozen=True)
class Rename:
    """Take a directory away."""

    path: Path
    to: Path

    def __call__(self) -> None:
        self.path.rename(self.to)


@dataclass(frozen=True)
class Trap:
    """Opens a storage in which call number `at` (from 1) of one operation runs `action`.

    after: the call takes effect first. Calls of all processes are counted together, in the file `counter`.
    """

    spec: OpensStorage
    counter: Path
    at: int
    action: Callable[[], None]
    operation: Literal["put", "get"] = "put"
    after: bool = False

    def open(self, *, read_only: bool = False) -> Storage:
        return _Trapped(self.spec.open(read_only=read_only), self)


class _Trapped(Passing):
    def __init__(self, inner: Storage, trap: Trap) -> None:
        super().__init__(inner)
        self._trap = trap

    def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        with self._springing("put"):
            super().put(key, data, if_absent=if_absent)

    def get(self, key: str, offset: int = 0, length: int | None = None) -> bytes:
        with self._springing("get"):
            return super().get(key, offset, length)

    @contextmanager
    def _springing(self, operation: str) -> Iterator[None]:
        trap = self._trap
        sprung = operation == trap.operation and _count(trap.counter) == trap.at
        if sprung and not trap.after:
            trap.action()
        yield
        if sprung and trap.after:
            trap.action()


def _count(path: Path) -> int:
    with path.open("ab") as stream:
        stream.write(b".")
        stream.flush()
        return stream.tell()


# Processes

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.support_traps"])


def start(work: Callable[..., object], *args: object) -> BaseProcess:
    """Run a module-level function in a process that is the leader of a session of its own."""
    process = _forks.Process(target=_lead, args=(work, args))
    process.start()
    return process


def _lead(work: Callable[..., object], args: tuple[object, ...]) -> None:
    os.setsid()
    work(*args)


def session(leader: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for process in psutil.process_iter(["pid", "status"]):
        with suppress(ProcessLookupError):
            if process.info["status"] != psutil.STATUS_ZOMBIE and os.getsid(process.info["pid"]) == leader:
                found.append(process.info["pid"])
    return found


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A file system of that size, such as "4m", mounted at a new directory."""
    path.mkdir(parents=True)
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    options = f"size={size},mode=0700,uid={os.geteuid()}"
    subprocess.run([*root, "mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run([*root, "umount", str(path)], check=True)


def use_up(directory: Path) -> Path:
    """Fill a disk to the last byte; gives the file to remove."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(bytes(4096))
    return filler
