"""The definitions of all objects, by pg_dump, under the snapshot that the rows are read from."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from crmbackup.core.clock import Clock
from crmbackup.core.errors import DiskFull, SourceDenied, SourceError, SourceLocked, SourceUnavailable
from crmbackup.core.files import local_error
from crmbackup.engines.base import SliceData
from crmbackup.engines.postgres.connection import Server
from crmbackup.engines.postgres.programs import Program, complaint, environment

#: What pg_dump says when its session, or the one that holds the snapshot, has ended.
_LOST = (
    "server closed the connection",
    "terminating connection",
    "connection to server",
    "could not import the requested snapshot",
    "invalid snapshot identifier",
)
_PIECE = 8 * 1024 * 1024
#: How often it is asked whether pg_dump has its locks, which takes it some tenths of a second.
_LOOK_SECONDS = 0.005
#: What the session of that name has locked.
_HELD = """
SELECT l.relation FROM pg_catalog.pg_locks l
 WHERE l.granted AND l.locktype = 'relation'
   AND l.pid = (SELECT a.pid FROM pg_catalog.pg_stat_activity a WHERE a.application_name = %s)
"""
_STATISTICS_SINCE = 18


class Archiving:
    """pg_dump at work, in a process of its own, beside the workers."""

    def __init__(
        self, program: Program, server: Server, snapshot: str, encoding: str, path: Path, lock_seconds: float
    ) -> None:
        """Start it. encoding: the database's. `path` is the archive, in a private directory. Raises LocalError."""
        self._server = server
        self._token = f"crmbackup-pg_dump-{secrets.token_hex(8)}"
        self.path = path
        self._messages = path.with_suffix(".messages")
        options = [
            "--format=custom",
            "--compress=0",  # the repository compresses, and equal parts must look equal
            "--schema-only",
            "--no-password",
            f"--snapshot={snapshot}",
            f"--encoding={encoding}",  # whatever the role's sessions usually have
            f"--file={path}",
            f"--lock-wait-timeout={max(1, int(lock_seconds * 1000))}",
        ]
        if program.major >= _STATISTICS_SINCE:
            options.append("--no-statistics")
        try:
            with self._messages.open("wb") as messages:
                self._process = subprocess.Popen(
                    [str(program.path), *options],
                    env={**environment(server.environment()), "PGAPPNAME": self._token, "PGTZ": "UTC"},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=messages,
                    start_new_session=True,
                )
        except OSError as error:
            raise local_error(error, f"run {program.path}") from error

    def has_locks(self, connection: psycopg.Connection[tuple[Any, ...]], tables: Iterable[int], clock: Clock) -> bool:
        """Wait until it has locked these tables (or is done); False when it could not.

        A migration that came after our locks waits for us, and pg_dump behind it: that would never end.
        Raises psycopg.Error.
        """
        wanted = set(tables)
        while self._process.poll() is None:
            if wanted <= {oid for (oid,) in connection.execute(_HELD, (self._token,))}:
                return True
            clock.sleep(_LOOK_SECONDS)
        return not self._lacked_locks()

    def _lacked_locks(self) -> bool:
        # pg_dump waits for its locks with a statement_timeout.
        text = self._messages.read_text("utf-8", "replace")
        return any(part in text for part in ("lock timeout", "statement timeout", "could not obtain lock"))

    def wait(self) -> int:
        """Until it is done; gives the archive's size in bytes. Raises SourceError kinds, DiskFull."""
        code = self._process.wait()
        text = self._messages.read_text("utf-8", "replace")
        if code == 0:
            return self.path.stat().st_size
        why = complaint(text) or f"it ended with {code}"
        if "permission denied" in text:
            raise SourceDenied(
                f"pg_dump may not read all definitions of {self._server.name}",
                why=why,
                hint="docs/postgresql.md lists what a backup role needs",
            )
        if self._lacked_locks():
            raise SourceLocked(f"pg_dump could not lock a table of {self._server.name}", why=why, hint="try again")
        if "No space left" in text:
            raise DiskFull(f"no room for {self.path}", why=why)
        if any(part in text for part in _LOST):
            raise SourceUnavailable(f"pg_dump lost {self._server.name}", why=why, hint="look into the server's log")
        raise SourceError(f"pg_dump could not read the definitions of {self._server.name}", why=why)

    def stop(self) -> None:
        """End it if it still runs, and remove what it wrote."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self.path.unlink(missing_ok=True)
        self._messages.unlink(missing_ok=True)


@dataclass(frozen=True)
class ArchiveSlice:
    """The archive, as chunks."""

    path: Path
    length: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.length

    def read(self) -> Iterator[SliceData]:
        """The file's bytes, in pieces."""
        try:
            with self.path.open("rb") as stream:
                while data := stream.read(_PIECE):
                    yield SliceData(data, len(data))
        except OSError as error:
            raise local_error(error, f"read {self.path}") from error
