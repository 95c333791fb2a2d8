"""A PostgreSQL server of its own for one drill: made, started, stopped and removed here.

It listens on a socket in a directory that only its owner may enter, and on no network port. It dies with the process
that started it, even when that is killed; what a killed one left is removed at the next start.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from crmbackup.core.errors import LocalError
from crmbackup.engines.postgres.connection import Server
from crmbackup.engines.postgres.postmaster import (
    AT_ONCE,
    OTHER_ACCOUNT,
    PORT,
    append_settings,
    make_cluster,
    socket_server,
    socket_settings,
    start,
    usable_programs,
    wait_until_ready,
)
from crmbackup.engines.postgres.programs import find_program
from crmbackup.engines.private import (
    hand_over,
    is_offline,
    private_place,
    remove_leftovers,
    server_account,
    socket_place,
    stop,
)

_MEGABYTE = 1024 * 1024


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
    account = server_account(OTHER_ACCOUNT)
    remove_leftovers(directory)
    with ExitStack() as stack:
        place = stack.enter_context(private_place(directory, account))
        sockets = stack.enter_context(socket_place(place, f".s.PGSQL.{PORT}", account))
        data, socket, log = place.path / "data", sockets.path / "socket", place.path / "log"
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
        stack.callback(stop, process, AT_ONCE)
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
