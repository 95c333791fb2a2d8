"""Running PostgreSQL's own server: as whom, from which programs, its cluster, its start and its stop.

PostgreSQL refuses to run as root. Under root the server runs as `nobody`, or `postgres` where that does not exist, and
so do `initdb` and whatever a restored database makes it do. It dies with the process that started it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from crmbackup.core.errors import DiskFull, LocalDenied, LocalError
from crmbackup.core.files import PRIVATE_DIR, PRIVATE_FILE, local_error
from crmbackup.engines.postgres.connection import Server

SUPERUSER = "postgres"
#: The port only names the socket's file.
PORT = "5432"
START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_INITDB_SECONDS = 300.0
_POLL_SECONDS = 0.05
#: Not `postgres` first: servers on this host may let that user in as superuser, without a password, and a function of a
#: restored database that calls dblink would be that user.
_ACCOUNTS = ("nobody", "postgres")
#: C.UTF-8 knows letters beyond ASCII; some older systems lack it, none lacks C.
_LOCALES = ("C.UTF-8", "C")
_TAIL_LINES = 8
#: Nothing of our environment reaches the server: no PG variables, no secrets.
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}

# Leaves the network when it may (Linux: 0x40000000 is CLONE_NEWNET), gives up root, asks the kernel for a signal when its parent dies (Linux: 1 is PR_SET_PDEATHSIG), then becomes the
# program. In a process of its own, since code between fork and exec is unsafe with threads; after the change of user,
# since that clears the request. A parent that died before the request is seen by the changed parent id.
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


def socket_settings(socket: Path) -> dict[str, str]:
    """Reachable through the socket in that directory only; everything it makes is in its own directories."""
    quoted = str(socket).replace('"', '""')
    return {
        "listen_addresses": "",
        "unix_socket_directories": f'"{quoted}"',
        "unix_socket_permissions": "0700",
        "port": PORT,
        # In containers /dev/shm may be tiny, and what a killed server leaves there stays.
        "dynamic_shared_memory_type": "mmap",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "lc_messages": "C",
    }


def socket_server(socket: Path) -> Server:
    """How to reach the server whose socket is in that directory."""
    keywords = {"host": str(socket), "port": PORT, "user": SUPERUSER, "dbname": "postgres"}
    return Server(tuple(sorted(keywords.items())))


def server_account() -> Account | None:
    """Whom to run a server as: None for ourselves. Raises LocalError."""
    if os.geteuid() != 0:
        return None
    for name in _ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid:
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise LocalError(
        "a private PostgreSQL server cannot run as root",
        why=f"neither {' nor '.join(_ACCOUNTS)} is a user here",
        hint="run crmbackup as another user, or create the user postgres",
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


def usable_programs(programs: Path, place: Path, account: Account | None) -> Path:
    """A directory with `initdb` and `postgres` that the server's user can run: `programs`, or a copy inside `place`.

    A tree in a virtual environment below /root cannot be reached by others. Raises LocalError kinds.
    """
    if may(account, "-x", programs / "postgres"):
        return programs
    home = programs.parent
    if not (any((home / "share").glob("**/postgres.bki")) and (home / "lib").is_dir()):
        raise LocalDenied(
            f"the user {account.name if account else ''} cannot run {programs / 'postgres'}",
            hint="let everybody pass through its directories (chmod a+x)",
        )
    # Programs find the rest of their tree by relative paths, and a wheel keeps its libraries beside the package.
    copy = place / "programs" / home.parent.name / home.name
    wheel = home.parent.with_name(f"{home.parent.name}.libs")
    try:
        for part in ("lib", "share"):
            shutil.copytree(home / part, copy / part, symlinks=True, ignore=shutil.ignore_patterns("*.a"))
        if wheel.is_dir():
            shutil.copytree(wheel, place / "programs" / wheel.name, symlinks=True)
        (copy / programs.name).mkdir()
        for name in ("initdb", "postgres"):
            shutil.copy2(programs / name, copy / programs.name)
        for root, directories, files in os.walk(place / "programs"):
            for path in [Path(root), *(Path(root, name) for name in directories + files)]:
                if not path.is_symlink():
                    executable = path.is_dir() or path.stat().st_mode & 0o100
                    path.chmod(0o755 if executable else 0o644)
    except OSError as error:
        raise local_error(error, f"copy {home} to {copy}") from error
    return copy / programs.name


def make_cluster(programs: Path, data: Path, account: Account | None) -> None:
    """Run initdb into a new directory: UTF-8, data checksums, the superuser `postgres` without a password.

    Not synced to disk: nothing in there is worth it yet. Raises DiskFull, LocalError kinds.
    """
    hand_over(data, account)
    options = ["-D", str(data), "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--data-checksums", "--no-sync"]
    text = ""
    for locale in _LOCALES:
        command = _launched([str(programs / "initdb"), *options, f"--locale={locale}"], account, signal.SIGKILL)
        try:
            done = subprocess.run(
                command,
                env=_ENVIRONMENT,
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                start_new_session=True,
                timeout=_INITDB_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            text = f"initdb took longer than {_INITDB_SECONDS:.0f} s"
            break
        except OSError as error:
            raise local_error(error, "run initdb") from error
        if done.returncode == 0:
            return
        text = done.stderr.decode("utf-8", "replace")
        if "invalid locale" not in text:
            break
    raise _failure("a private PostgreSQL server cannot be made", text)


def _launched(
    program: Sequence[str], account: Account | None, on_death: signal.Signals, *, offline: bool = False
) -> list[str]:
    """The command that runs a program as the server's user, and ends it with a signal when we die."""
    uid, gid = (account.uid, account.gid) if account else (0, 0)
    numbers = [str(int(number)) for number in (os.getpid(), on_death, offline, uid, gid)]
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, *numbers, *program]


def append_settings(data: Path, settings: Mapping[str, str]) -> None:
    """At the end of postgresql.conf, where the last word counts. Raises LocalError kinds."""
    path = data / "postgresql.conf"
    escaped = {name: value.replace("\\", "\\\\").replace("'", "''") for name, value in settings.items()}
    try:
        with path.open("a", encoding="utf-8", errors="surrogateescape") as stream:
            stream.writelines(f"{name} = '{value}'\n" for name, value in escaped.items())
    except OSError as error:
        raise local_error(error, f"write {path}") from error


def start(
    programs: Path,
    data: Path,
    log: Path,
    account: Account | None,
    *,
    keep: Sequence[int] = (),
    offline: bool = False,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server; it may not answer yet. Raises LocalError kinds.

    keep: descriptors that it holds open, such as locks. offline: without any network, where we have the right to do
    that (see `is_offline`).
    """
    command = _launched([str(programs / "postgres"), "-D", str(data)], account, signal.SIGQUIT, offline=offline)
    try:
        log.touch(PRIVATE_FILE)
        with log.open("ab") as output:
            return subprocess.Popen(
                command,
                env={**_ENVIRONMENT, **(environment or {})},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at the terminal is for us alone
                pass_fds=tuple(set(keep)),
            )
    except OSError as error:
        raise local_error(error, f"run {programs / 'postgres'}") from error


def is_offline(process: subprocess.Popen[bytes]) -> bool:
    """Whether a server is in a network namespace of its own, from which nothing outside can be reached."""
    try:
        return Path(f"/proc/{process.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    except OSError:
        return False


def wait_until_ready(process: subprocess.Popen[bytes], server: Server, log: Path, major: int) -> None:
    """Until a connection succeeds. Raises DiskFull, LocalError; stops the server then."""
    deadline = time.monotonic() + START_SECONDS
    refusal = ""
    while process.poll() is None and time.monotonic() < deadline:
        try:
            psycopg.connect(**dict(server.keywords), connect_timeout=10).close()  # type: ignore[arg-type]
            return
        except psycopg.OperationalError as error:
            refusal = " ".join(str(error).split())
        try:
            process.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    ended = process.poll() is not None
    stop(process)
    text = log.read_text("utf-8", "replace") if ended else refusal
    raise _failure(f"a private PostgreSQL server of version {major} does not start", text)


def _failure(what: str, text: str) -> LocalError:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    why = "; ".join(lines[-_TAIL_LINES:])
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return DiskFull(what, why=why, hint="free some space, or name a directory on a larger disk")
    return LocalError(what, why=why, hint="look whether the programs of this version run at all on this host")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server at once, without a checkpoint: its files are about to be removed."""
    for number in (signal.SIGQUIT, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(number)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
