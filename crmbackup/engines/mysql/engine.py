"""The side of the MySQL and MariaDB engine that reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from crmbackup.core.clock import Clock
from crmbackup.core.errors import SourceEmpty, SourceError, SourceMissing
from crmbackup.core.events import Emit, Notice
from crmbackup.engines.base import Parent, SourceEngine, Workers
from crmbackup.engines.mysql.catalog import read_database, read_tables
from crmbackup.engines.mysql.connection import NAMES, OLDEST, Server, Version, connect, source_errors, version_of
from crmbackup.engines.mysql.daemon import find_daemon, find_installer
from crmbackup.engines.mysql.joining import joined
from crmbackup.engines.mysql.rights import require_rights
from crmbackup.engines.mysql.rows import PIECE_BYTES
from crmbackup.engines.mysql.snapshot import MysqlSnapshot


@dataclass(frozen=True)
class Settings:
    """How to read. lock_seconds: how long to try to join all workers. lock_others: lock tables that belong to no
    snapshot while they are read, else refuse them. users: carry accounts and their rights. binlog: let the binary log
    say what changed since the parent, where it can. piece: bytes of a chunk, unless a row is longer. key: 32 bytes, keys
    the digests in the local state, the same for a snapshot and its parent; without it none are made. programs: where the
    server's program for drills is; None searches.
    """

    lock_seconds: float = 60.0
    lock_others: bool = True
    users: bool = False
    binlog: bool = True
    piece: int = PIECE_BYTES
    key: bytes | None = None
    programs: Path | None = None


class MysqlSource(SourceEngine):
    """One database of a MySQL or MariaDB server."""

    name = "mysql"

    def __init__(self, server: Server, settings: Settings) -> None:
        self.server = server
        self._settings = settings
        self._version: Version | None = None

    def preflight(self, jobs: int) -> int:
        server = self.server
        with source_errors(server), closing(connect(server)) as connection:
            version = version_of(connection)
            oldest = OLDEST[version.flavour]
            if version.number < oldest:
                raise SourceError(
                    f"{server.name} is {version.text}",
                    why=f"this crmbackup knows {NAMES[version.flavour]} {'.'.join(map(str, oldest))} and later",
                    hint="upgrade the server",
                )
            if not read_database(connection, server.database)["charset"]:
                raise SourceMissing(f"the database {server.name} does not exist", hint="check source.url in the policy")
            require_rights(connection, server, version, jobs=jobs, users=self._settings.users)
            tables = read_tables(connection, server.database, version)
        if not tables:
            raise SourceEmpty(
                f"the database {server.name} holds no tables that this user can see",
                why="it is empty, or the user has no rights on it",
                hint="check source.url; docs/mysql.md lists what a backup user needs",
            )
        self._version = version
        return jobs

    def programs(self, *, drills: bool) -> Sequence[str]:
        assert self._version is not None
        if not drills:
            return ()
        daemon = find_daemon(self._version, self._settings.programs)
        paths = dict.fromkeys((daemon.path, find_installer(daemon)))
        return [f"{path.name} of {daemon.version.text} in {path.parent}" for path in paths]

    @contextmanager
    def open_snapshot(
        self, workers: Workers, parent: Parent | None, state: Path, clock: Clock, emit: Emit
    ) -> Iterator[MysqlSnapshot]:
        settings = self._settings
        with joined(
            workers, self.server, settings.lock_seconds, clock, emit, lock_others=settings.lock_others
        ) as moment:
            if not moment.position.file and moment.held != "nothing":
                emit(Notice("no place in a binary log is known: it is off, or the user may not look"))
            yield MysqlSnapshot(
                self.server,
                moment,
                parent,
                state,
                accounts=settings.users,
                binlog=settings.binlog,
                piece=settings.piece,
                key=settings.key,
                clock=clock,
                emit=emit,
            )
