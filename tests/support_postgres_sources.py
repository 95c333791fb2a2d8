"""One PostgreSQL server with workers for many small databases, each with a chain of snapshots of its own.

with cluster_of(15) as cluster:
    chain = cluster.chain("CREATE TABLE t(a int)")
    taken = chain.take()      # its content is compared with what another session saw
    error = chain.refused(SourceDenied)
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest

from crmbackup.core.errors import CrmBackupError
from crmbackup.engines.postgres import reader
from crmbackup.engines.postgres.connection import Server
from crmbackup.engines.postgres.engine import Settings
from crmbackup.engines.postgres.postmaster import append_settings, socket_settings
from crmbackup.engines.private import hand_over, private_place, server_account
from crmbackup.operations.workers import ProcessWorkers
from tests.postgres import TestServer, running_server
from tests.support_postgres_snapshots import Snapshots, Taken

Connection = psycopg.Connection[Any]
E = TypeVar("E", bound=CrmBackupError)


class Chain:
    """One database and its snapshots."""

    def __init__(self, server: TestServer, name: str, scratch: Path, workers: ProcessWorkers) -> None:
        self.server = server
        self.name = name
        self._workers = workers
        self.snapshots = Snapshots(server.server(name), scratch, workers)

    def connect(self, **more: Any) -> Connection:
        """A session in the database, as superuser unless `more` says user=...."""
        return self.server.connect(self.name, **more)

    def sql(self, *statements: str) -> None:
        """Each in a transaction of its own."""
        with self.connect() as connection:
            for statement in statements:
                connection.execute(statement.encode(connection.info.encoding))

    def value(self, query: str) -> Any:
        """What a query gives."""
        with self.connect() as connection:
            row = connection.execute(query.encode(connection.info.encoding)).fetchone()
            assert row is not None
            return row[0]

    def take(self, *, full: bool = False, meanwhile: Callable[[], None] = lambda: None) -> Taken:
        """A snapshot that holds exactly what another session saw."""
        taken = self.snapshots.take(full=full, meanwhile=meanwhile)
        assert taken.content() == taken.seen
        assert taken.full_because == ""
        for table in taken.layout.tables:
            assert taken.record(table.label).rows == sum(taken.seen[table.label].values())
        return taken

    def refused(self, kind: type[E], *, meanwhile: Callable[[], None] = lambda: None) -> E:
        """A snapshot that fails, and why."""
        try:
            with pytest.raises(kind) as caught:
                self.snapshots.take(meanwhile=meanwhile)
        finally:
            self._workers.each(reader.leave)
        assert caught.type is kind
        return caught.value

    def leave(self) -> None:
        """Let the workers end what they have open."""
        self._workers.each(reader.leave)

    def become(self, **keywords: str) -> Chain:
        """Connect with other keywords from now on, such as user."""
        server = self.snapshots.server
        self.snapshots.server = Server(tuple(sorted({**dict(server.keywords), **keywords}.items())), server.password)
        return self

    def settings(self, **values: Any) -> Chain:
        """Read with other settings from now on."""
        self.snapshots.settings = replace(self.snapshots.settings, **values)
        return self

    def move(self, server: TestServer) -> None:
        """Go on with the same database of another server."""
        self.server = server
        self.snapshots.server = server.server(self.name)


@dataclass
class Cluster:
    """A server and workers; the workers came first."""

    server: TestServer
    workers: ProcessWorkers
    scratch: Path
    made: int = 0

    def chain(self, *setup: str, name: str = "", **options: str) -> Chain:
        """A new database. options: as for CREATE DATABASE."""
        self.made += 1
        name = name or f"crm{self.made}"
        self.server.create_database(name, **options)
        chain = Chain(self.server, name, self.scratch / str(self.made), self.workers)
        chain.settings(lock_seconds=4.0)
        chain.sql(*setup)
        return chain


@contextmanager
def cluster_of(major: int, settings: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """A fresh one."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessWorkers(2) as workers,
        running_server(major, settings=settings) as server,
    ):
        yield Cluster(server, workers, Path(scratch))


@contextmanager
def copy_of(server: TestServer, *, standby: bool = False) -> Iterator[TestServer]:
    """A cold copy of a server that is up, with the same system identifier, up as well; as a standby of it if asked."""
    account = server_account()
    with private_place(Path(tempfile.gettempdir()), account) as place:
        copy = TestServer(server.major, server.programs, place, account)
        server.stop()
        shutil.copytree(server.directory, copy.directory)
        server.start()
        hand_over(copy.socket, account)
        append_settings(copy.directory, socket_settings(copy.socket))
        if standby:
            source = server.conninfo().replace(" dbname=postgres", "")
            append_settings(copy.directory, {"primary_conninfo": source, "hot_standby": "on"})
            (copy.directory / "standby.signal").touch()
        for path in [copy.directory, *copy.directory.rglob("*")]:
            if account:
                os.lchown(path, account.uid, account.gid)
        copy.directory.chmod(0o700)
        try:
            copy.start()
            yield copy
        finally:
            copy.close()


def blocks_of(rows: int, width: int = 900) -> str:
    """Statements that make a table `large` with rows of about that many bytes."""
    return (
        "CREATE TABLE large(id int, v text);"
        f"INSERT INTO large SELECT i, rpad(i::text, {width}, 'x') FROM generate_series(1, {rows}) i"
    )


__all__ = ["Chain", "Cluster", "Connection", "Settings", "blocks_of", "cluster_of", "copy_of"]
