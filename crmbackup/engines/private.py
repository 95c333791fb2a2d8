"""What servers that we start for ourselves have in common, whatever the product.

Each lives in a directory that only its owner may enter, is reached through a socket in there, and dies with the process
that started it, even when that is killed; what a killed one left is removed at the next start. Under root it runs as
`nobody`, and so does whatever a restored database makes it do; then it also has no network.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from crmbackup.core.errors import DiskFull, LocalDenied, LocalError
from crmbackup.core.files import PRIVATE_DIR, PRIVATE_FILE, local_error

PREFIX = "crmbackup-private-"
START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_PREPARE_SECONDS = 300.0
_REMOVE_SECONDS = 5.0
_POLL_SECONDS = 0.05
_LOCK = "lock"
#: Bytes of a socket's path in sockaddr_un, without the final NUL.
_LONGEST_SOCKET_PATH = 107
#: Of a server's last words.
_TAIL_LINES = 8
#: Nothing of our environment reaches a server: no variables of its clients, no secrets.
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}

#: `nobody` first: servers on this host may let the products' own users in as superuser, without a password, and what a
#: restored database does would be done as that user.
_ACCOUNT = "nobody"

# Leaves the network when it may (Linux: 0x40000000 is CLONE_NEWNET), gives up root, asks the kernel for a signal when its
# parent dies (Linux: 1 is PR_SET_PDEATHSIG), then becomes the program. In a process of its own, since code between fork
# and exec is unsafe with threads; after the change of user, since that clears the request. A parent that died before the
# request is seen by the changed parent id.
_LAUNCHER = """
import ctypes, os, sys
owner, number, offline, uid, gid = map(int, sys.argv[1:6])
program = sys.argv[6:]
try:
    libc = ctypes.CDLL(None)
    if offline and uid and sys.platform == "linux":
        libc.unshare(0x40000000)
    if uid:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        libc.prctl(1, number)
    if os.getppid() != owner:
        sys.exit("its owner is gone")
    os.execv(program[0], program)
except OSError as error:
    sys.exit(f"{program[0]}: {error.strerror}")
"""


@dataclass(frozen=True)
class Account:
    """Who the server runs as, when that is not us."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True)
class Place:
    """A directory that only we may write to. lock: the descriptor of its locked lock file."""

    path: Path
    lock: int


def server_account(*others: str) -> Account | None:
    """Whom to run a server as: None for ourselves; under root `nobody`, or the first of `others` that exists.

    Raises LocalError.
    """
    if os.geteuid() != 0:
        return None
    names = (_ACCOUNT, *others)
    for name in names:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid:
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise LocalError(
        "a private database server cannot run as root",
        why=f"none of {', '.join(names)} is a user here",
        hint=f"run crmbackup as another user, or create the user {names[-1]}",
    )


def hand_over(directory: Path, account: Account | None) -> None:
    """Make a directory that only the server's user may enter. Raises LocalError kinds."""
    try:
        directory.mkdir(mode=PRIVATE_DIR)
        if account:
            os.chown(directory, account.uid, account.gid)
    except OSError as error:
        raise local_error(error, f"create {directory}") from error


def may(account: Account | None, test: str, path: Path) -> bool:
    """Whether the server's user passes a `test` on a path."""
    if account is None:
        return True
    command = ["test", test, str(path)]
    done = subprocess.run(
        command, user=account.uid, group=account.gid, extra_groups=[], env=_ENVIRONMENT, cwd="/", check=False
    )
    return done.returncode == 0


def _launched(
    program: Sequence[str], account: Account | None, on_death: signal.Signals, *, offline: bool = False
) -> list[str]:
    """The command that runs a program as the server's user, and ends it with a signal when we die."""
    uid, gid = (account.uid, account.gid) if account else (0, 0)
    numbers = [str(int(number)) for number in (os.getpid(), on_death, offline, uid, gid)]
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, *numbers, *program]


def prepare(command: Sequence[str], account: Account | None, what: str) -> str:
    """Run a program that makes a server's files, as the server's user, to its end. Gives what it complained of; empty
    when it succeeded. Raises LocalError kinds.
    """
    try:
        done = subprocess.run(
            _launched(command, account, signal.SIGKILL),
            env=_ENVIRONMENT,
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            start_new_session=True,
            timeout=_PREPARE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{what} took longer than {_PREPARE_SECONDS:.0f} s"
    except OSError as error:
        raise local_error(error, f"run {what}") from error
    if done.returncode == 0:
        return ""
    return (done.stderr or done.stdout).decode("utf-8", "replace").strip() or f"{what} ended with {done.returncode}"


def launch(
    command: Sequence[str],
    log: Path,
    account: Account | None,
    on_death: signal.Signals,
    *,
    keep: Sequence[int] = (),
    offline: bool = False,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server; it may not answer yet. Raises LocalError kinds.

    on_death: the signal that it gets when we die. keep: descriptors that it holds open, such as locks. offline: without
    any network, where we have the right to do that (see `is_offline`).
    """
    try:
        log.touch(PRIVATE_FILE)
        with log.open("ab") as output:
            return subprocess.Popen(
                _launched(command, account, on_death, offline=offline),
                env={**_ENVIRONMENT, **(environment or {})},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal is for us alone
                pass_fds=tuple(set(keep)),
            )
    except OSError as error:
        raise local_error(error, f"run {command[0]}") from error


def wait_until_ready(
    process: subprocess.Popen[bytes], refusal: Callable[[], str], log: Path, what: str, on_stop: signal.Signals
) -> None:
    """Until `refusal`, which tries to connect, is empty. Raises DiskFull, LocalError; stops the server then."""
    deadline = time.monotonic() + START_SECONDS
    text = ""
    while process.poll() is None and time.monotonic() < deadline:
        text = refusal()
        if not text:
            return
        with suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_SECONDS)
    ended = process.poll() is not None
    stop(process, on_stop)
    raise failure(f"{what} does not start", log.read_text("utf-8", "replace") if ended else text)


def is_offline(process: subprocess.Popen[bytes]) -> bool:
    """Whether a server is in a network namespace of its own, from which nothing outside can be reached."""
    try:
        return Path(f"/proc/{process.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    except OSError:
        return False


def failure(what: str, text: str) -> LocalError:
    """Of a server that could not be made or started: the last lines of its `text`."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    why = "; ".join(lines[-_TAIL_LINES:])
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return DiskFull(what, why=why, hint="free some space, or name a directory on a larger disk")
    return LocalError(what, why=why, hint="look whether the programs of this version run at all on this host")


def stop(process: subprocess.Popen[bytes], first: signal.Signals) -> None:
    """End a server at once, by the signal `first` or else by force: its files are about to be removed."""
    for number in (first, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)


@contextmanager
def private_place(parent: Path, account: Account | None) -> Iterator[Place]:
    """A fresh directory inside `parent`, removed at the end. Raises LocalError kinds."""
    place = _claim(parent, account)
    try:
        if not may(account, "-x", place.path):
            raise LocalDenied(
                f"the user {account.name if account else ''} cannot enter {parent}",
                why="database servers do not run as root, so this one runs as that user",
                hint="name a directory that everybody may pass through (chmod a+x), such as /var/tmp",
            )
        yield place
    finally:
        _remove(place.path)
        os.close(place.lock)


def _claim(parent: Path, account: Account | None) -> Place:
    """Make a directory and lock it. A cleaner may be faster than we are: then try again."""
    try:
        while True:
            path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent.absolute()))
            lock = _try_lock(path)
            if lock is None:
                continue
            if os.fstat(lock).st_nlink:
                # Another user has to pass through, but not to look around.
                path.chmod(0o711 if account else PRIVATE_DIR)
                return Place(path, lock)
            os.close(lock)
    except OSError as error:
        raise local_error(error, f"create a directory for a private server in {parent}") from error


def _try_lock(path: Path) -> int | None:
    """The locked lock file of a directory; None when a living process holds it, or the directory is gone."""
    try:
        descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, PRIVATE_FILE)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def remove_leftovers(directory: Path) -> None:
    """Remove what killed processes of ours left in `directory`, and their sockets' directories elsewhere."""
    for parent in {directory.absolute(), *_short_parents()}:
        for path in parent.glob(f"{PREFIX}*"):
            try:
                if path.is_symlink() or path.stat().st_uid != os.geteuid():
                    continue
                lock = _try_lock(path)
            except OSError:
                continue  # not ours to judge; a fresh name never clashes with it
            if lock is not None:
                # Under its own name, somebody who just made it could lock it while its files go one by one.
                gone = path.with_name(f"{PREFIX}gone-{secrets.token_hex(8)}")
                with suppress(OSError):  # whoever else was faster removes it
                    path.rename(gone)
                    _remove(gone)
                os.close(lock)


def _remove(path: Path) -> None:
    """Remove a tree to which the last processes of a killed server may still add files."""
    deadline = time.monotonic() + _REMOVE_SECONDS
    while path.exists():
        shutil.rmtree(path, ignore_errors=True)
        if time.monotonic() > deadline:
            return
        if path.exists():
            time.sleep(_POLL_SECONDS)


@contextmanager
def socket_place(place: Place, file: str, account: Account | None) -> Iterator[Place]:
    """Where a directory `socket` with a socket of that name can be: `place` itself, or a shorter one of its own.

    Raises LocalError kinds.
    """
    if _fits(place.path, file):
        yield place
        return
    for parent in _short_parents():
        if _fits(parent / f"{PREFIX}12345678", file):
            with private_place(parent, account) as short:
                yield short
            return
    raise LocalError(
        "there is no place for a private server's socket",
        why=f"{place.path} is too long a path for one, and so is {_short_parents()[0]}",
        hint="name a directory with a shorter path",
    )


def _fits(path: Path, file: str) -> bool:
    # In libpq a comma separates hosts.
    return len(os.fsencode(path / "socket" / file)) <= _LONGEST_SOCKET_PATH and "," not in str(path)


def _short_parents() -> Sequence[Path]:
    return [Path(tempfile.gettempdir()).absolute(), Path("/tmp")]  # noqa: S108 - the names made in it are fresh
