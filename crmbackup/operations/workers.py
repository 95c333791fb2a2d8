"""A pool of worker processes that dies with its parent."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.synchronize import Barrier
from types import TracebackType
from typing import Self, TypeVar

from crmbackup.core.errors import CrmBackupError, LocalError

T = TypeVar("T")
#: All workers meet within milliseconds; one that does not within this time is gone.
_MEETING_SECONDS = 120.0
#: Blocks of memory of at least this many bytes, such as packs, go back to the system as soon as they are free.
_LARGE_BLOCK = 2 * 1024 * 1024
#: What may stay free at the end of a heap: chunks are read into the same memory again and again.
_KEPT_FREE = 2 * _LARGE_BLOCK
#: What asks this process to stop.
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

_barrier: Barrier | None = None


class ProcessWorkers:
    """Forked processes. Start them before any thread, database connection or network client exists in this process.

    Forking keeps start-up short, since every module is loaded already. A worker whose parent is gone, even by kill -9,
    ends at once: it would hold the snapshot's locks on the source otherwise.
    """

    def __init__(self, count: int) -> None:
        _give_back_large_blocks()
        context = multiprocessing.get_context("fork")
        self._count = count
        self._alive, self._lifeline = os.pipe()
        self._cutting = threading.Lock()
        self._cut_off = False
        self._leaving = False
        self._watcher = threading.Thread(target=self._end_all_with_one, daemon=True)
        self._pool = ProcessPoolExecutor(
            count, context, initializer=_start, initargs=(context.Barrier(count), self._alive, self._lifeline)
        )

    @property
    def count(self) -> int:
        """How many processes there are."""
        return self._count

    def __enter__(self) -> Self:
        try:
            with _stopping_later():
                self.each(_ready)
        except BaseException:
            # Nobody calls __exit__ then, and the workers that are there already would wait for work for ever.
            self._cut_lifeline()
            self._pool.shutdown(wait=True, cancel_futures=True)
            os.close(self._alive)
            raise
        # All are there. From now on only workers hold the end of the pipe that results are sent into. A worker that is
        # killed in the middle of a result would else leave the pool waiting for the rest of it for ever.
        self._pool._result_queue._writer.close()  # type: ignore[attr-defined]  # noqa: SLF001 - there is no public way
        self._watcher.start()
        return self

    def _end_all_with_one(self) -> None:
        """When one worker dies, end the others: they wait for the lock of that pipe, or hold it open."""
        processes = list(self._pool._processes.values())  # noqa: SLF001 - as above
        connection.wait([process.sentinel for process in processes])
        if not self._leaving:
            self._cut_lifeline()

    def _cut_lifeline(self) -> None:
        with self._cutting:
            if not self._cut_off:
                os.close(self._lifeline)
            self._cut_off = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving = True
        if kind is None:
            self._pool.shutdown(wait=True)
        else:
            # What runs is of no use any more and may take long: without the lifeline the workers end at once.
            self._cut_lifeline()
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._watcher.join()
        self._cut_lifeline()
        os.close(self._alive)
        if isinstance(error, BrokenProcessPool):
            raise worker_died() from error

    def submit(self, work: Callable[..., T], /, *args: object) -> Future[T]:
        """Run a module-level function in one of the workers."""
        try:
            return self._pool.submit(work, *args)
        except BrokenProcessPool as error:
            raise worker_died() from error

    def each(self, work: Callable[..., T], /, *args: object) -> list[T]:
        """Run a module-level function once in every worker, all at the same time. Raises the first error."""
        futures = [self.submit(_meet, work, args) for _ in range(self._count)]
        try:
            outcomes = [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise worker_died() from error
        for problem, _ in outcomes:
            if problem is not None:
                raise problem
        return [result for _, result in outcomes]  # type: ignore[misc]


def worker_died() -> LocalError:
    """The error for a worker process that ended by itself."""
    return LocalError(
        "a worker process died",
        why="it was killed, perhaps for lack of memory",
        hint="look into the kernel's log (dmesg); fewer limits.jobs need less memory",
    )


def _give_back_large_blocks() -> None:
    """Workers inherit it. By itself glibc raises that size to the largest block that was freed, so that after the first
    pack each worker would keep gaps as large as packs: 15 MiB more in each, and another peak with every run. With that size
    fixed it gives back whatever is above 128 KiB at the end of a heap, so that each chunk would be read into new pages.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries do not have it, and do not need it
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE)


@contextmanager
def _stopping_later() -> Iterator[None]:
    """Hold back signals that stop this process until the end of the block. What is forked in it inherits that.

    An exception from a handler would leave the pool with some of its workers and nobody who ends them, or be lost in
    what Python does after a fork. In a new worker that handler would run too: it has to set its own first.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(barrier: Barrier, alive: int, lifeline: int) -> None:
    global _barrier  # noqa: PLW0603 - how an initializer hands something to later tasks
    _barrier = barrier
    # The terminal sends Ctrl-C and its own end to every process of the group; the parent decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    os.close(lifeline)
    threading.Thread(target=_die_with_parent, args=(alive,), daemon=True).start()


def _die_with_parent(alive: int) -> None:
    os.read(alive, 1)  # ends only when the last copy of the other end, the parent's, is closed
    os._exit(1)


def _ready() -> None:
    pass


def _meet(work: Callable[..., T], args: tuple[object, ...]) -> tuple[CrmBackupError | None, T | None]:
    """Wait until every worker has such a task: so none of them takes two."""
    assert _barrier is not None
    _barrier.wait(_MEETING_SECONDS)
    try:
        return None, work(*args)
    except CrmBackupError as error:
        return error, None
