"""Hooks: what they get, what becomes of their output, and that none outlives its limit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from crmbackup.core.clock import SystemClock
from crmbackup.core.errors import HookFailed, Interrupted
from crmbackup.operations.hooks import OUTPUT_BYTES, run_hook
from tests.support_repo import wait_until

ENVIRON = {"PATH": "/usr/bin:/bin", "CRMBACKUP_POLICY": "crm"}


def hook(*argv: str, seconds: float = 60) -> str:
    return run_hook("hooks.backup.before", argv, ENVIRON, seconds, SystemClock())


def gone(pid_file: Path) -> bool:
    try:
        return psutil.Process(int(pid_file.read_text())).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_it_gets_its_environment_and_nothing_more() -> None:
    seen = json.loads(
        hook(sys.executable, "-c", "import json, os, sys; print(json.dumps([dict(os.environ), sys.stdin.read()]))")
    )
    assert seen[0].items() >= ENVIRON.items()
    assert "HOME" not in seen[0]
    assert seen[1] == ""


def test_arguments_are_no_shell_words() -> None:
    assert hook("echo", "$HOME; `id`", "*") == "$HOME; `id` *"


def test_both_streams_are_kept_and_only_the_end_of_them() -> None:
    assert hook("sh", "-c", "echo out; echo err >&2") == "out\nerr"
    text = hook("sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x; printf end")
    assert len(text) == OUTPUT_BYTES
    assert text.endswith("xend")


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (("sh", "-c", "echo no mount; exit 3"), "exit code 3; it printed:\nno mount"),
        (("sh", "-c", "kill -TERM $$"), "ended by signal TERM; it printed nothing"),
        (("/nowhere/hook",), "No such file"),
        (("/",), "ermission denied"),
    ],
)
def test_failures_say_why(argv: tuple[str, ...], why: str) -> None:
    with pytest.raises(HookFailed) as caught:
        hook(*argv)
    assert "hooks.backup.before" in caught.value.what
    assert why in str(caught.value)


def test_at_the_limit_all_that_it_started_is_killed(tmp_path: Path) -> None:
    child = tmp_path / "child"
    with pytest.raises(HookFailed, match=r"(?s)longer than 1 s.*said so"):
        hook("sh", "-c", f"trap '' TERM; echo said so; sleep 300 & echo $! > {child}; wait", seconds=1)
    wait_until(lambda: gone(child), "the end of the grandchild")


def test_whoever_kills_us_ends_the_hook_and_all_that_it_started(tmp_path: Path) -> None:
    """As kill -9 and a lack of memory do: nobody of ours is left to end it."""
    hooked, child = tmp_path / "hook", tmp_path / "child"
    script = f"echo $$ > {hooked}; sleep 300 & echo $! > {child}.new; mv {child}.new {child}; wait"
    program = (
        "from crmbackup.core.clock import SystemClock; from crmbackup.operations.hooks import run_hook; "
        f"run_hook('hooks.backup.before', ['sh', '-c', {script!r}], {ENVIRON!r}, 300, SystemClock())"
    )
    with subprocess.Popen([sys.executable, "-c", program], start_new_session=True) as ours:
        wait_until(child.exists, "the start of the hook")
        watchers = [each.pid for each in psutil.Process(ours.pid).children()]
        assert len(watchers) == 2  # the hook is one of them
        os.killpg(ours.pid, signal.SIGKILL)
    wait_until(lambda: gone(hooked) and gone(child), "the end of hook and grandchild")
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in watchers), "the end of the watcher")


def test_what_it_leaves_in_the_background_is_not_waited_for_nor_killed(tmp_path: Path) -> None:
    child = tmp_path / "child"
    assert hook("sh", "-c", f"sleep 300 & echo $! > {child}; echo started") == "started"
    assert not gone(child)
    os.kill(int(child.read_text()), signal.SIGKILL)


def test_a_program_that_closes_its_output_is_still_limited() -> None:
    with pytest.raises(HookFailed, match="longer than"):
        hook("sh", "-c", "exec >&- 2>&-; sleep 300", seconds=0.3)


def test_a_signal_to_us_ends_it(tmp_path: Path) -> None:
    child = tmp_path / "child"

    def stop(number: int, frame: object) -> None:
        raise Interrupted("stopped")

    def press() -> None:
        wait_until(lambda: child.exists() and child.read_text().endswith("\n"), "the hook")
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, stop)
    presser = threading.Thread(target=press)
    presser.start()
    try:
        with pytest.raises(Interrupted):
            hook("sh", "-c", f"echo $$ > {child}; exec sleep 300")
    finally:
        presser.join()
        signal.signal(signal.SIGUSR1, before)
    assert gone(child)


def test_a_signal_at_any_moment_of_its_start_leaves_nothing_behind() -> None:
    """Some of them come just when signals are not held any more and before anything else is done."""

    def stop(number: int, frame: object) -> None:
        raise Interrupted("stopped")

    def begin(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        hook("sleep", "300")

    chance = random.Random(1)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        for _ in range(500):
            with pytest.raises(Interrupted):
                begin(chance.uniform(0.0005, 0.005))
            assert signal.getsignal(signal.SIGALRM) is stop
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert [child.cmdline() for child in psutil.Process().children() if "300" in child.cmdline()] == []
