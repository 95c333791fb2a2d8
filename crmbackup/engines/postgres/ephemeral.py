"""A PostgreSQL server of its own for one drill: made, started, stopped and removed here.

It listens on a socket in a directory that only its owner may enter, and on no network port. It dies with the process
that started it, even when that is killed; what a killed one left is removed at the next start.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from crmbackup.core.errors import LocalDenied, LocalError
from crmbackup.core.files import PRIVATE_DIR, PRIVATE_FILE, local_error
from crmbackup.engines.postgres.connection import Server
from crmbackup.engines.postgres.postmaster import (
    PORT,
    Account,
    append_settings,
    hand_over,
    is_offline,
    make_cluster,
    may,
    server_account,
    socket_server,
    socket_settings,
    start,
    stop,
    usable_programs,
    wait_until_ready,
)
from crmbackup.engines.postgres.programs import find_program

PREFIX = "crmbackup-pg-"
_LOCK, _LOG = "lock", "log"
_POLL_SECONDS = 0.05
_REMOVE_SECONDS = 5.0
#: Bytes of a socket's path in sockaddr_un, without the final NUL.
_LONGEST_SOCKET_PATH = 107
_MEGABYTE = 1024 * 1024


@dataclass(frozen=True)
class Place:
    """A directory that only we may write to. lock: the descriptor of its locked lock file."""

    path: Path
    lock: int


@dataclass(frozen=True)
class PrivateServer:
    """A server that runs. server: its database `postgres`, as superuser. directory: everything of it is in there.

    offline: it can reach no network at all, whatever a restored database makes it do; only where we run as root.
    gone: whether nothing of it is left, neither processes nor files; for after the context was left.
    """

    server: Server
    directory: Path
    major: int
    offline: bool
    gone: Callable[[], bool]


@contextmanager
def private_server(
    directory: Path, major: int, programs: Path | None, *, settings: Mapping[str, str] | None = None
) -> Iterator[PrivateServer]:
    """A fresh server of exactly that major version, in a directory of its own inside `directory`.

    programs: where its programs are, None to search. settings: more of postgresql.conf; they win over ours. Enter it
    from a thread that lives as long as the server: the kernel stops the server when that thread ends.
    Raises ProgramMissing, DiskFull, LocalDenied, LocalError.
    """
    _refuse_another_host()
    initdb = find_program("initdb", at_least=major, exactly=True, directory=programs).path.resolve()
    postgres = find_program("postgres", at_least=major, exactly=True, directory=initdb.parent).path.resolve()
    account = server_account()
    remove_leftovers(directory)
    with ExitStack() as stack:
        place = stack.enter_context(private_place(directory, account))
        sockets = stack.enter_context(_socket_place(place, account))
        data, socket, log = place.path / "data", sockets.path / "socket", place.path / _LOG
        server = socket_server(socket)
        usable = usable_programs(postgres.parent, place.path, account)
        make_cluster(usable, data, account)
        hand_over(socket, account)
        append_settings(data, {**_settings(socket), **(settings or {})})
        process = start(
            usable,
            data,
            log,
            account,
            # Locked until the server is gone too, so that nobody removes files under it.
            keep=(place.lock, sockets.lock),
            offline=True,
            # dblink and foreign servers that name no host get here, not to a server in the usual place.
            environment={"PGHOST": str(socket), "PGPORT": PORT},
        )
        stack.callback(stop, process)
        wait_until_ready(process, server, log, major)

        def gone() -> bool:
            return not (place.path.exists() or sockets.path.exists()) and process.poll() is not None

        yield PrivateServer(server, place.path, major, is_offline(process), gone)


def _refuse_another_host() -> None:
    """A PGHOSTADDR, or one of a PGSERVICE, would lead libpq to that host in spite of the socket that we name."""
    for option in psycopg.pq.Conninfo.get_defaults():
        if option.keyword == b"hostaddr" and option.val:
            raise LocalError(
                f"connections to a private server would go to {option.val.decode('utf-8', 'replace')}",
                why="PGHOSTADDR is set, or PGSERVICE names a service with hostaddr",
                hint="unset it for this command",
            )


def _settings(socket: Path) -> dict[str, str]:
    """For one bulk load that is read once and then thrown away, but with fsync, so that times are honest."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _MEGABYTE
    return {
        **socket_settings(socket),
        "shared_preload_libraries": "",
        "max_connections": "50",
        "max_locks_per_transaction": "1024",  # thousands of tables in one transaction
        "shared_buffers": "128MB",
        "maintenance_work_mem": f"{max(64, min(256, physical // 16))}MB",
        "max_wal_size": "4GB",
        "checkpoint_timeout": "30min",
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "max_logical_replication_workers": "0",  # a restored subscription cannot call its publisher
        "autovacuum": "off",
        "jit": "off",
        "log_min_error_statement": "panic",  # rows of a database have no place in a log
    }


@contextmanager
def private_place(parent: Path, account: Account | None) -> Iterator[Place]:
    """A fresh directory inside `parent`, removed at the end. Raises LocalError kinds."""
    place = _claim(parent, account)
    try:
        if not may(account, "-x", place.path):
            raise LocalDenied(
                f"the user {account.name if account else ''} cannot enter {parent}",
                why="PostgreSQL does not run as root, so the server runs as that user",
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
                _remove(path)
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
def _socket_place(place: Place, account: Account | None) -> Iterator[Place]:
    """Where the socket's directory can be: `place` itself, or a shorter one of its own. Raises LocalError kinds."""
    if _fits(place.path):
        yield place
        return
    for parent in _short_parents():
        if _fits(parent / f"{PREFIX}12345678"):
            with private_place(parent, account) as short:
                yield short
            return
    raise LocalError(
        "there is no place for a private server's socket",
        why=f"{place.path} is too long a path for one, and so is {_short_parents()[0]}",
        hint="name a directory with a shorter path",
    )


def _fits(path: Path) -> bool:
    # In libpq a comma separates hosts.
    whole = path / "socket" / f".s.PGSQL.{PORT}"
    return len(os.fsencode(whole)) <= _LONGEST_SOCKET_PATH and "," not in str(path)


def _short_parents() -> Sequence[Path]:
    return [Path(tempfile.gettempdir()).absolute(), Path("/tmp")]  # noqa: S108 - the names made in it are fresh
