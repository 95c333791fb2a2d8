"""Chains of snapshots of a MariaDB database, each beside what an independent session saw of the same moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymysql
import pytest
from pymysql.constants import ER

from crmbackup.engines.mysql import joining
from crmbackup.engines.mysql.catalog import read_tables
from crmbackup.engines.mysql.connection import Connection, Server, code_of, connect, version_of
from crmbackup.engines.mysql.engine import MysqlSource, Settings
from crmbackup.engines.mysql.layout import decode_layout
from crmbackup.engines.mysql.reader import begin
from crmbackup.engines.mysql.rows import read_rows
from crmbackup.operations.workers import ProcessWorkers
from tests.chains import Chain, Taken

Rows = dict[str, Counter[bytes]]


def lines_of(payload: bytes) -> list[bytes]:
    """Without their line feeds, the only ones that there are."""
    assert payload.endswith(b"\n")
    return payload[:-1].split(b"\n")


def content(taken: Taken) -> Rows:
    """The lines of each table of a snapshot."""
    found: Rows = {}
    for table in decode_layout(taken.image.layout).tables:
        lines: Counter[bytes] = Counter()
        for part in table.parts:
            own = lines_of(taken.chunks[part.chunk])
            assert len(own) == part.rows
            lines.update(own)
        found[table.name] = lines
    return found


@dataclass
class Seen:
    """A snapshot and what the witness saw."""

    taken: Taken
    rows: Rows

    def check(self) -> None:
        """They are the same, and the records count them."""
        held = content(self.taken)
        assert held == self.rows
        for name, rows in self.rows.items():
            assert self.taken.table(name).rows == sum(rows.values())


class Witnessed:
    """A chain whose every snapshot a session of its own looks at too, under the same hold on commits."""

    def __init__(self, server: Server, scratch: Path, workers: ProcessWorkers, settings: Settings) -> None:
        self.settings = settings
        self.scratch = scratch
        self.workers = workers
        self._server = server
        self._chain = Chain(lambda: MysqlSource(server, self.settings), scratch, workers)

    def take(self, *, full: bool = False, meanwhile: Callable[[], None] = lambda: None) -> Seen:
        """One snapshot and what was there."""
        with connect(self._server) as witness:
            real = joining.read_position

            def under_hold(*values: Any, **more: Any) -> joining.Position:
                witness.rollback()
                begin(witness, 1)
                return real(*values, **more)

            rows: Rows = {}

            def look() -> None:
                """While the snapshot keeps definitions, and tables without versions of rows, as they are."""
                for table in read_tables(witness, self._server.database, version_of(witness)):
                    lines: Counter[bytes] = Counter()
                    try:
                        for piece in () if table.elsewhere else read_rows(witness, table.source, table.columns, ""):
                            lines.update(lines_of(piece.payload))
                    except pymysql.Error as error:
                        # Made since and dropped again, so it is none of the snapshot's; if it is, it is missed below.
                        if code_of(error) not in {ER.NO_SUCH_TABLE, ER.TABLE_DEF_CHANGED}:
                            raise
                    else:
                        rows[table.name] = lines
                meanwhile()

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(joining, "read_position", under_hold)
                taken = self._chain.take(full=full, meanwhile=look)
        held = {each.name for each in decode_layout(taken.image.layout).tables}
        return Seen(taken, {name: rows[name] for name in held})

    def why(self) -> str:
        """What the last snapshot said about what it read."""
        assert self._chain.last
        return "; ".join(notice.text for notice in self._chain.last.notices)


@contextmanager
def sessions(make: Callable[[], Connection], count: int) -> Iterator[list[Connection]]:
    """Connections that never wait for a lock."""
    found = [make() for _ in range(count)]
    try:
        for connection in found:
            run(connection, "SET innodb_lock_wait_timeout = 0", "SET lock_wait_timeout = 0")
        yield found
    finally:
        for connection in found:
            connection.close()


def run(connection: Connection, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements; the rows of the last."""
    with connection.cursor() as cursor:
        for text in statements:
            cursor.execute(text)
        return list(cursor.fetchall())
