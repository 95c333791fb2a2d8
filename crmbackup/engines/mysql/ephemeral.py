"""A server of its own for one drill: made, started, stopped and removed here.

Of the source's product, and at least of its version. See `engines/private.py` for what it shares with others of its kind.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from crmbackup.engines.mysql.connection import Server, Version
from crmbackup.engines.mysql.daemon import (
    AT_ONCE,
    SOCKET,
    find_daemon,
    make_data,
    socket_server,
    socket_settings,
    start,
    wait_until_ready,
    write_settings,
)
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
_MOST_BUFFERS = 512


@dataclass(frozen=True)
class PrivateServer:
    """A server that runs. server: without a database, as root. directory: everything of it is in there.

    offline: it can reach no network at all; only where we run as root. gone: whether nothing of it is left, neither
    process nor files; for after the context was left.
    """

    server: Server
    directory: Path
    version: Version
    offline: bool
    gone: Callable[[], bool]


@contextmanager
def private_server(
    directory: Path, wanted: Version, programs: Path | None, *, settings: Mapping[str, str] | None = None
) -> Iterator[PrivateServer]:
    """A fresh server of that product, at least of that version, in a directory of its own inside `directory`.

    programs: where its programs are, None to search. settings: more of its option file; they win over ours. Enter it
    from a thread that lives as long as the server: the kernel stops the server when that thread ends.
    Raises ProgramMissing, DiskFull, LocalDenied, LocalError.
    """
    daemon = find_daemon(wanted, programs)
    account = server_account()
    remove_leftovers(directory)
    with ExitStack() as stack:
        place = stack.enter_context(private_place(directory, account))
        sockets = stack.enter_context(socket_place(place, SOCKET, account))
        socket, log, options = sockets.path / "socket", place.path / "log", place.path / "settings.cnf"
        server = socket_server(socket)
        make_data(daemon, place.path / "data", account)
        hand_over(socket, account)
        write_settings(
            options, {**socket_settings(place.path, socket), **_settings(daemon.version), **(settings or {})}
        )
        # Locked until the server is gone too, so that nobody removes files under it.
        process = start(daemon, options, log, account, keep=(place.lock, sockets.lock), offline=True)
        stack.callback(stop, process, AT_ONCE)
        wait_until_ready(process, server, log, daemon.version)

        def gone() -> bool:
            return not (place.path.exists() or sockets.path.exists()) and process.poll() is not None

        yield PrivateServer(server, place.path, daemon.version, is_offline(process), gone)


def _settings(version: Version) -> dict[str, str]:
    """For one bulk load that is read once and then thrown away. Nothing acts by itself, nothing is logged."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _MEGABYTE
    common = {
        "event_scheduler": "OFF",
        "skip_log_bin": "1",
        "log_bin_trust_function_creators": "1",
        "innodb_flush_log_at_trx_commit": "0",
        "innodb_doublewrite": "0",
        "innodb_autoinc_lock_mode": "2",  # several loads into one table at once
        "innodb_buffer_pool_size": f"{max(64, min(_MOST_BUFFERS, physical // 8))}M",
        "max_connections": "100",
        "table_definition_cache": "4000",
    }
    if version.mariadb:
        return {**common, "innodb_log_file_size": "512M", "feedback": "OFF"}
    return {**common, "innodb_redo_log_capacity": "512M", "mysqlx": "OFF"}
