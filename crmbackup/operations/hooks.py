"""Programs of the policy that run before and after an action."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import IO

from crmbackup.core.clock import Clock
from crmbackup.core.errors import HookFailed

#: Of what a hook prints, the end is kept: bytes.
OUTPUT_BYTES = 4096
_READ_BYTES = 64 * 1024
#: How often to look whether a program is over that left its output to one in the background.
_LOOK_SECONDS = 0.1
#: Waits beside the hook, with the reading end of a pipe of which only we hold the other. It reads the hook's process group
#: and then that the hook is over; when the pipe ends before that we were killed, and it ends the group. A signal of the
#: kernel at our death (PR_SET_PDEATHSIG) would reach the hook alone, not what it has started.
_WATCHER = (
    "/bin/sh",
    "-c",
    'read -r group || exit 0; read -r over || kill -s KILL -- "-$group"',
    "crmbackup-hook-watcher",
)


def run_hook(name: str, argv: Sequence[str], environ: Mapping[str, str], seconds: float, clock: Clock) -> str:
    """Run a program to its end; gives the end of what it printed, at most `OUTPUT_BYTES`.

    name: like "hooks.backup.before", for messages. It gets a process group of its own, nothing to read, and `environ`
    as its whole environment. What it leaves running in the background is left alone, unless it is the reason for which
    the limit passes. Raises HookFailed when it cannot be started, ends with another code than 0, or runs for longer
    than `seconds`; then, and when a signal stops us or we are killed, its whole group is killed.
    """
    with _watcher(name) as lifeline:
        return _run(name, argv, environ, seconds, clock, lifeline)


def _run(
    name: str, argv: Sequence[str], environ: Mapping[str, str], seconds: float, clock: Clock, lifeline: IO[bytes]
) -> str:
    process: subprocess.Popen[bytes] | None = None
    try:
        with _signals_held() as held:
            process = _started(name, argv, environ)
        assert process.stdout is not None
        lifeline.write(b"%d\n" % process.pid)
        for number in held:
            os.kill(os.getpid(), number)
        output = _end_of_output(process, process.stdout, clock, clock.monotonic() + seconds)
    except BaseException:  # a handler may raise as soon as signals are not held any more
        if process:
            _kill(process)
        raise
    finally:
        if process and process.stdout:
            process.stdout.close()
    text = output.decode("utf-8", "replace").strip()
    if process.returncode is None:
        _kill(process)
        raise _failed(name, argv, f"it took longer than {seconds:g} s and was killed", text)
    if process.returncode < 0:
        raise _failed(name, argv, f"it was ended by signal {signal.Signals(-process.returncode).name[3:]}", text)
    if process.returncode:
        raise _failed(name, argv, f"it ended with exit code {process.returncode}", text)
    return text


def _started(name: str, argv: Sequence[str], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """With a group of its own, so that it and what it starts can be ended together. Raises HookFailed."""
    try:
        return subprocess.Popen(
            list(argv),
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise HookFailed(
            f"{name} could not be started: {argv[0]}", why=reason, hint="check the path and its mode"
        ) from error


@contextlib.contextmanager
def _watcher(name: str) -> Iterator[IO[bytes]]:
    """A process that outlives us; gives where to write the hook's process group. Raises HookFailed."""
    watcher: subprocess.Popen[bytes] | None = None
    try:
        with _signals_held() as held:
            watcher = _started_watcher(name)
        assert watcher.stdin is not None
        for number in held:
            os.kill(os.getpid(), number)
        yield watcher.stdin
    finally:
        if watcher and watcher.stdin:
            with contextlib.suppress(BrokenPipeError), watcher.stdin:
                watcher.stdin.write(b"over\nover\n")  # twice: also where there is no hook that it has read of
            watcher.wait()


def _started_watcher(name: str) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            _WATCHER,
            env={},
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
    except OSError as error:
        raise HookFailed(f"{name} could not be started: {_WATCHER[0]}", why=error.strerror or str(error)) from error


@contextlib.contextmanager
def _signals_held() -> Iterator[list[int]]:
    """Signals that came meanwhile, for later: what a handler raises within Popen would lose the only handle on a process
    that runs already. Handlers of ours do not outlive the exec in it.
    """
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    ours = {number: handler for number, handler in before.items() if callable(handler)}
    try:
        for number in ours:
            signal.signal(number, lambda caught, _: came.append(caught))
        yield came
    finally:
        _put_back(ours)


def _put_back(handlers: dict[signal.Signals, Callable[[int, FrameType | None], object]]) -> None:
    """Each of them, also when one that is there again raises for a signal that comes just then."""
    raised: BaseException | None = None
    waiting = list(handlers.items())
    while waiting:
        try:
            signal.signal(*waiting[-1])
            waiting.pop()
        except BaseException as problem:  # noqa: BLE001 - raised below
            raised = problem
    if raised:
        raise raised


def _end_of_output(process: subprocess.Popen[bytes], stream: IO[bytes], clock: Clock, deadline: float) -> bytes:
    """The end of what the program prints until it is over or `deadline` passes; then `returncode` stays None."""
    kept = b""
    os.set_blocking(stream.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while (left := deadline - clock.monotonic()) > 0:
            over = process.poll() is not None
            if selector.select(0 if over else min(left, _LOOK_SECONDS)):
                data = os.read(stream.fileno(), _READ_BYTES)
                if data:
                    kept = (kept + data)[-OUTPUT_BYTES:]
                    continue
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(left)
                break
            if over:
                break
    return kept


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    # Not Popen.wait: where a handler has raised within Popen.poll, that may have kept the lock that both take.
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, 0)
    if process.returncode is None:
        process.returncode = -signal.SIGKILL


def _failed(name: str, argv: Sequence[str], why: str, output: str) -> HookFailed:
    printed = f"; it printed:\n{output}" if output else "; it printed nothing"
    return HookFailed(f"{name} failed: {argv[0]}", why=why + printed, hint="run it by hand, as the same user")
