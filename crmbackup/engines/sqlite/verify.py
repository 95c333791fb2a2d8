"""Reading a restored database the way the snapshot was read, and asking SQLite whether it is sound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import islice
from pathlib import Path

import apsw

from crmbackup.core.errors import SourceError
from crmbackup.core.events import Emit, PhaseStarted, Progress
from crmbackup.engines.ahead import begun_ahead
from crmbackup.engines.base import CheckOutcome, Segment, TableRecord, Verification, Workers
from crmbackup.engines.sqlite import reader
from crmbackup.engines.sqlite.checksums import SegmentTask, digest_segments
from crmbackup.engines.sqlite.connection import ENGINE_VERSION, open_database, quoted, source_errors
from crmbackup.engines.sqlite.reader import Source
from crmbackup.engines.sqlite.schema import Contents, Table, read_contents
from crmbackup.engines.sqlite.structure import longest_rows
from crmbackup.engines.sqlite.tables import (
    RowCounts,
    record_of_count,
    record_of_failure,
    record_of_segments,
    record_without_rows,
    share_out,
)

#: How many findings of a check are told.
_FINDINGS = 20
#: How many segments one task reads, so that progress moves and all workers stay busy.
_SEGMENTS = 16
_Group = list[tuple[Table, SegmentTask]]
#: How long a restored database, which nobody else uses, may be busy.
_BUSY_SECONDS = 5.0


def verify(workers: Workers, target: Path, expected: Sequence[TableRecord], emit: Emit) -> Verification:
    """Read every table in parallel and run SQLite's checks beside. An unreadable table is a result, not an error."""
    workers.each(reader.join, Source(target, _BUSY_SECONDS, encrypted=False))
    try:
        found = workers.submit(read_contents, target).result()
        names = [table.name for table in found.tables]
        checks = [workers.submit(_integrity, names), workers.submit(_foreign_keys, names)]
        size = target.stat().st_size
        emit(PhaseStarted("verify", size))
        tables = _Tables(workers, target, found, {record.name: record for record in expected}).read()
        outcomes = [check.result() for check in checks]
        emit(Progress("verify", size))
    finally:
        workers.each(reader.leave)
    return Verification(ENGINE_VERSION, tables, found.schema(), outcomes)


class _Tables:
    """Reads tables as their records say: with the same segments, or only counting."""

    def __init__(self, workers: Workers, target: Path, found: Contents, expected: Mapping[str, TableRecord]) -> None:
        self._workers = workers
        self._target = target
        self._found = found
        self._expected = expected

    def read(self) -> list[TableRecord]:
        """A record for each table that is there."""
        counted: list[Table] = []
        summed: list[Table] = []
        for table in self._found.tables:
            record = self._expected.get(table.name)
            if table.rows is not None:
                (counted if record and record.checksum is None else summed).append(table)
        counts = RowCounts(self._workers, self._target, counted)
        records = {record.name: record for record in self._summed(summed)}
        records |= {table.name: record_of_count(table, rows) for table, rows in counts.outcomes()}
        return [records.get(table.name) or record_without_rows(table) for table in self._found.tables]

    def _summed(self, tables: Sequence[Table]) -> Iterator[TableRecord]:
        outcomes: dict[str, list[Segment | SourceError]] = {table.name: [] for table in tables}
        for group, future in begun_ahead(self._digests(tables), self._workers):
            for (table, _), outcome in zip(group, future.result(), strict=True):
                outcomes[table.name].append(outcome)
        for table in tables:
            failures = [outcome for outcome in outcomes[table.name] if isinstance(outcome, SourceError)]
            done = [outcome for outcome in outcomes[table.name] if isinstance(outcome, Segment)]
            yield record_of_failure(table, failures[0]) if failures else record_of_segments(table, done)

    def _digests(self, tables: Sequence[Table]) -> Iterator[tuple[_Group, Future[list[Segment | SourceError]]]]:
        """Read some segments, each time it is asked."""
        tasks = self._tasks(tables)
        while group := list(islice(tasks, _SEGMENTS)):
            yield group, self._workers.submit(digest_segments, self._target, [task for _, task in group])

    def _tasks(self, tables: Sequence[Table]) -> Iterator[tuple[Table, SegmentTask]]:
        for table, longest in list(self._longest(tables)):
            assert table.rows is not None
            record = self._expected.get(table.name)
            whole = Segment(None, None, 0, "", raw=not self._found.exact_text)
            for s in (record.segments if record else ()) or (whole,):
                yield table, SegmentTask(table.rows, s.low, s.high, longest, s.raw)

    def _longest(self, tables: Sequence[Table]) -> Iterator[tuple[Table, int]]:
        groups = list(share_out(tables, self._workers))
        names = [[table.name for table in group] for group in groups]
        futures = [self._workers.submit(longest_rows, self._target, each) for each in names]
        for group, future in zip(groups, futures, strict=True):
            yield from zip(group, future.result(), strict=True)


def _integrity(tables: Sequence[str]) -> CheckOutcome:
    name, connection = "integrity_check", reader.connection()
    try:
        findings = _findings(connection, "integrity_check", str(_FINDINGS))
    except apsw.SQLError:
        return _integrity_by_table(connection, tables)
    except (apsw.Error, UnicodeDecodeError) as error:
        return CheckOutcome(name, ok=False, detail=str(error))
    return CheckOutcome(name, ok=not findings, detail="; ".join(findings) or "ok")


def _integrity_by_table(connection: apsw.Connection, tables: Sequence[str]) -> CheckOutcome:
    """Where a function or collation of the application is missing, SQLite checks nothing at all if asked for all."""
    findings: list[str] = []
    partly: list[str] = []
    unchecked: list[str] = []
    for table in ("sqlite_schema", *tables):
        try:
            findings += _findings(connection, "integrity_check", quoted(table))
        except apsw.SQLError as error:
            reason = f"{table} ({error})"
            try:
                connection.pragma("ignore_check_constraints", True)
                findings += _findings(connection, "quick_check", quoted(table))
                partly.append(reason)
            except apsw.SQLError:
                unchecked.append(reason)
            finally:
                connection.pragma("ignore_check_constraints", False)
    parts = ["limited, since parts of the application are missing here: free pages were not checked"]
    if partly:
        parts.append(f"b-trees only, not what indexes and CHECK constraints say, of {', '.join(partly)}")
    if unchecked:
        parts.append(f"not checked at all: {', '.join(unchecked)}")
    return CheckOutcome("integrity_check", ok=not findings, detail="; ".join(findings[:_FINDINGS] + parts))


def _findings(connection: apsw.Connection, check: str, argument: str) -> list[str]:
    found = [str(row[0]) for row in connection.execute(f"PRAGMA main.{check}({argument})")]
    return [] if found == ["ok"] else found


def _foreign_keys(tables: Sequence[str]) -> CheckOutcome:
    """Rows without parents came from the source, since the image is the source's byte for byte: SQLite enforces foreign
    keys only where an application asks for it. They fail the check all the same; the policy may accept them.
    """
    connection = reader.connection()
    orphans: list[str] = []
    unchecked: list[str] = []
    for table in tables:
        try:
            found = connection.execute(f"PRAGMA main.foreign_key_check({quoted(table)})")
            rows = list(islice(found, _FINDINGS - len(orphans)))
        except apsw.SQLError as error:
            unchecked.append(f"{table} ({error})")
            continue
        except (apsw.Error, UnicodeDecodeError) as error:
            return CheckOutcome("foreign_key_check", ok=False, detail=str(error))
        orphans += [f"{table} row {rowid} has no parent in {parent}" for _, rowid, parent, _ in rows]
    parts = []
    if orphans:
        parts.append(f"as in the source, {'; '.join(orphans)}{' ...' if len(orphans) == _FINDINGS else ''}")
    if unchecked:
        parts.append(f"limited, not checked: {', '.join(unchecked)}")
    return CheckOutcome("foreign_key_check", ok=not orphans, detail="; ".join(parts) or "ok")


def query(target: Path, sql: str) -> object:
    """The first value that a query gives, None without a row. Raises SourceError."""
    with source_errors(target):
        connection = open_database(target)
        try:
            connection.pragma("query_only", True)
            row = next(iter(connection.execute(sql)), None)
        finally:
            connection.close(force=True)
    return row[0] if row else None
