"""The pool of worker processes: whoever dies, at whatever moment, nobody waits for ever and nobody is left."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from crmbackup.core.errors import LocalError, StorageFull
from crmbackup.operations.workers import ProcessWorkers
from tests.support_repo import MIB, PATIENCE, wait_until
from tests.support_traps import session, start


def is_sending(tid: int) -> bool:
    """Whether a thread of this process sits in a system call whose third argument, its size, is large."""
    fields = Path(f"/proc/self/task/{tid}/syscall").read_text().split()
    return len(fields) > 3 and int(fields[3], 16) > MIB


def large_result(then: Callable[[], None]) -> bytes:
    """More than a pipe holds; does `then` when a part of it is on its way."""
    sender = threading.get_native_id()

    def act() -> None:
        wait_until(lambda: is_sending(sender), "the result to be on its way")
        then()

    threading.Thread(target=act).start()
    return bytes(256 * MIB)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt_parent() -> None:
    os.kill(os.getppid(), signal.SIGUSR1)


def sleep_on() -> None:
    signal.pause()


def report(count: int, then: Callable[[], None], report_to: Path) -> None:
    """Use workers, one of which does something while it sends; writes what came of it."""

    def interrupt(number: int, frame: object) -> None:
        raise StorageFull("whatever comes from a handler")

    signal.signal(signal.SIGUSR1, interrupt)
    try:
        with ProcessWorkers(count) as workers:
            for _ in range(count - 1):
                workers.submit(sleep_on)
            workers.submit(large_result, then).result()
    except (LocalError, StorageFull) as error:
        report_to.write_text(error.code)


def ends(process: BaseProcess) -> None:
    """The process comes to an end by itself, and all that it started does."""
    process.join(PATIENCE)
    alive = process.is_alive()
    process.kill()
    assert not alive, "it waits for ever"
    assert process.exitcode == 0
    assert session(process.pid or 0) == []


@pytest.mark.parametrize("count", [1, 3])
def test_a_worker_that_dies_while_it_sends_a_result_is_told(tmp_path: Path, count: int) -> None:
    ends(start(report, count, die, tmp_path / "report"))
    assert (tmp_path / "report").read_text() == "local"


@pytest.mark.parametrize("count", [1, 3])
def test_a_run_that_is_interrupted_while_a_worker_sends_ends(tmp_path: Path, count: int) -> None:
    ends(start(report, count, interrupt_parent, tmp_path / "report"))
    assert (tmp_path / "report").read_text() == "storage-full"


def die_alone(report_to: Path) -> None:
    try:
        with ProcessWorkers(3) as workers:
            for _ in range(2):
                workers.submit(sleep_on)
            workers.submit(die).result()
    except LocalError as error:
        report_to.write_text(error.what)


def test_one_dead_worker_ends_all(tmp_path: Path) -> None:
    ends(start(die_alone, tmp_path / "report"))
    assert "worker" in (tmp_path / "report").read_text()


def wait_in_all(place: Path) -> None:
    with ProcessWorkers(3) as workers:
        for number in range(3):
            workers.submit(mark_and_sleep, place / str(number))
        signal.pause()


def mark_and_sleep(path: Path) -> None:
    path.touch()
    signal.pause()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    process = start(wait_in_all, tmp_path)
    wait_until(lambda: len(list(tmp_path.iterdir())) == 3, "the workers")
    assert len(session(process.pid or 0)) >= 4
    os.kill(process.pid or 0, number)
    process.join()
    assert process.exitcode == -number
    wait_until(lambda: session(process.pid or 0) == [], "the workers to end")


def pid_of_worker() -> int:
    return os.getpid()


def fail() -> None:
    raise StorageFull("no room")


def test_each_reaches_every_worker_once_and_raises_what_one_raises(tmp_path: Path) -> None:
    ends(start(use_each, tmp_path / "report"))
    assert (tmp_path / "report").exists()


def use_each(report_to: Path) -> None:
    with ProcessWorkers(4) as workers:
        for _ in range(5):
            assert len(set(workers.each(pid_of_worker))) == 4
        with pytest.raises(StorageFull):
            workers.each(fail)
        assert workers.submit(pid_of_worker).result() in workers.each(pid_of_worker)
    report_to.touch()


def test_a_pool_leaves_no_open_file_and_no_thread(tmp_path: Path) -> None:
    ends(start(count_what_is_left, tmp_path / "report"))
    assert (tmp_path / "report").exists()


def count_what_is_left(report_to: Path) -> None:
    def use() -> None:
        with ProcessWorkers(2) as workers:
            workers.each(pid_of_worker)
        with pytest.raises(KeyError), ProcessWorkers(2):
            raise KeyError

    use()
    before = (len(os.listdir("/proc/self/fd")), threading.active_count())  # noqa: PTH208 - names only
    for _ in range(3):
        use()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before  # noqa: PTH208
    report_to.touch()


def begin(trouble: Callable[[], None], report_to: Path) -> None:
    """Begin to use workers; after the first of them is forked, there is trouble."""

    def stop(number: int, frame: object) -> None:
        # As the command line does: only the first signal counts.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise StorageFull("whatever comes from a handler")

    def start_and_trouble(process: BaseProcess) -> None:
        start_process(process)
        trouble()

    signal.signal(signal.SIGTERM, stop)
    start_process, BaseProcess.start = BaseProcess.start, start_and_trouble  # type: ignore[method-assign]
    try:
        with ProcessWorkers(2):
            report_to.write_text("nothing")
    except (StorageFull, LocalError, BlockingIOError) as error:
        report_to.write_text(type(error).__name__)


def stop_self() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def refuse() -> None:
    raise BlockingIOError("no more processes")


def kill_first() -> None:
    """The pool ends the second worker then, which has not come to its first line yet."""
    if not _killed:
        (first,) = multiprocessing.active_children()
        os.kill(first.pid or 0, signal.SIGKILL)
        _killed.append(first)
        os.register_at_fork(after_in_child=lambda: wait_until(is_told_to_end, "the signal that ends it"))


_killed: list[BaseProcess] = []


def is_told_to_end() -> bool:
    return signal.SIGTERM in signal.sigpending()


@pytest.mark.parametrize(
    ("trouble", "told"), [(stop_self, "StorageFull"), (refuse, "BlockingIOError"), (kill_first, "LocalError")]
)
def test_trouble_while_workers_are_forked_ends_all(tmp_path: Path, trouble: Callable[[], None], told: str) -> None:
    ends(start(begin, trouble, tmp_path / "report"))
    assert (tmp_path / "report").read_text() == told
