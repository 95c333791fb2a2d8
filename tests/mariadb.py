"""Real MariaDB servers for tests, of the version that this host has, on a socket only, with a binary log by rows.

from tests.mariadb import mariadb  (a session fixture: one server per test process, started when first asked for)

with running_mariadb(settings={"max_allowed_packet": "1M"}) as server:
    database = server.create_database("crm", charset="latin1")
    with server.connect("crm") as connection: ...
    server.crash()
    server.start()
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pymysql
import pytest

from crmbackup.engines.mysql.connection import Server, Version, quoted
from crmbackup.engines.mysql.daemon import (
    AT_ONCE,
    Daemon,
    find_daemon,
    make_data,
    socket_server,
    socket_settings,
    start,
    wait_until_ready,
    write_settings,
)
from crmbackup.engines.private import Account, Place, hand_over, private_place, server_account, stop

STOP_SECONDS = 60
#: Nothing has to outlast the machine, but a killed server loses nothing.
SETTINGS = {
    "log_bin": "binlog",
    "binlog_format": "ROW",
    "server_id": "1",
    "sync_binlog": "0",
    "innodb_flush_log_at_trx_commit": "2",
    "innodb_doublewrite": "0",
    "innodb_buffer_pool_size": "64M",
    "innodb_log_file_size": "32M",
    "max_connections": "100",
    "skip_log_error": "1",
}


class MariadbServer:
    """One server. It is up unless `stop` or `crash` was the last call."""

    def __init__(self, daemon: Daemon, place: Place, account: Account | None) -> None:
        self.version = daemon.version
        self.directory = place.path / "data"
        self.log = place.path / "log"
        self.socket = place.path / "socket"
        self.settings = place.path / "settings.cnf"
        self._daemon = daemon
        self._lock = place.lock
        self._account = account
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process
        return self._process.pid

    def server(self, database: str = "") -> Server:
        """How the engine reaches one of its databases, as root."""
        return socket_server(self.socket).at(database)

    def url(self, database: str, user: str = "root") -> str:
        """For a policy or `--to`."""
        return f"mysql://{user}@localhost/{database}?socket={dict(self.server().options)['socket']}"

    def connect(self, database: str = "", **more: Any) -> pymysql.connections.Connection[Any]:
        """As root, unless `more` says user=...; in autocommit mode."""
        socket = dict(self.server().options)["socket"]
        options = {"user": "root", "charset": "utf8mb4", "autocommit": True, "local_infile": True, **more}
        return pymysql.connect(unix_socket=socket, database=database or None, **options)

    def create_database(self, name: str, *, charset: str = "utf8mb4", collate: str = "") -> Server:
        """Make a database, instead of one that is there, and give how to reach it."""
        self.drop_database(name)
        with self.connect() as connection, connection.cursor() as cursor:
            order = f" COLLATE {collate}" if collate else ""
            cursor.execute(f"CREATE DATABASE {quoted(name)} CHARACTER SET {charset}{order}")
        return self.server(name)

    def drop_database(self, name: str) -> None:
        """Remove a database if it is there. Fails, and does not wait for ever, when a test left a session with locks."""
        with self.connect() as connection, connection.cursor() as cursor:
            cursor.execute("SET lock_wait_timeout = 60")
            cursor.execute(f"DROP DATABASE IF EXISTS {quoted(name)}")

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert self._process is None
        self._process = start(self._daemon, self.settings, self.log, self._account, keep=(self._lock,))
        wait_until_ready(self._process, self.server(), self.log, self.version)

    def stop(self) -> None:
        """Shut it down in order."""
        process = self._down()
        process.terminate()
        process.wait(STOP_SECONDS)

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def crash(self) -> None:
        """kill -9."""
        process = self._down()
        process.kill()
        process.wait(STOP_SECONDS)

    def _down(self) -> subprocess.Popen[bytes]:
        process, self._process = self._process, None
        assert process
        return process

    def close(self) -> None:
        """Stop it whatever its state."""
        if self._process:
            stop(self._down(), AT_ONCE)


@contextmanager
def running_mariadb(*, settings: Mapping[str, str] | None = None) -> Iterator[MariadbServer]:
    """A fresh server that runs; removed at the end. settings: of an option file; they win over ours.

    Nothing of it survives a killed test process but files, which the next private server removes.
    """
    daemon = find_daemon(Version("mariadb", (10, 6)))
    account = server_account()
    with private_place(Path(tempfile.gettempdir()), account) as place:
        server = MariadbServer(daemon, place, account)
        make_data(daemon, server.directory, account)
        hand_over(server.socket, account)
        write_settings(server.settings, {**socket_settings(place.path, server.socket), **SETTINGS, **(settings or {})})
        try:
            server.start()
            yield server
        finally:
            server.close()


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariadbServer]:
    """A server that all tests of a process share: each uses databases of its own."""
    with running_mariadb() as server:
        yield server
