"""Looking at a restored database: its rows as the snapshot was read, its definitions, the server's own checks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

import psycopg

from crmbackup.core.clock import Clock, SystemClock
from crmbackup.core.errors import SourceError
from crmbackup.core.events import Emit, PhaseEnded, PhaseStarted, Progress
from crmbackup.engines.base import CheckOutcome, TableRecord, Verification, Workers
from crmbackup.engines.plain import plain
from crmbackup.engines.postgres.acting import LeftOut
from crmbackup.engines.postgres.catalog import Table, read_matviews, read_sequences
from crmbackup.engines.postgres.checks import check_claims, read_claims
from crmbackup.engines.postgres.connection import Server, connect, source_errors, text_of
from crmbackup.engines.postgres.describe import describe
from crmbackup.engines.postgres.joining import Moment, joined
from crmbackup.engines.postgres.large_objects import GROUP, read_large_objects
from crmbackup.engines.postgres.planning import plan_full
from crmbackup.engines.postgres.reader import LargeObjectSlice, RowFacts, TableSlice
from crmbackup.engines.postgres.records import (
    LARGE_OBJECTS,
    matview_record,
    sequences_record,
    table_kind,
)
from crmbackup.engines.postgres.rows import ALGORITHM
from crmbackup.engines.sums import MODULUS, digest_text, parts_record

_LOCK_SECONDS = 60.0
_QUERY_SECONDS = 300


class Sum(NamedTuple):
    """Rows and their sum; size in bytes of what was read, as planned."""

    rows: int
    checksum: int
    size: int


def measure(item: TableSlice | LargeObjectSlice) -> Sum:
    """Read a slice in a worker, and keep nothing but the sum. Raises SourceError kinds."""
    rows, checksum = 0, 0
    for found in item.read():
        assert isinstance(found.facts, RowFacts)
        rows += found.facts.rows
        checksum += found.facts.checksum
    return Sum(rows, checksum % MODULUS, item.size)


def verify(
    workers: Workers,
    server: Server,
    tables: Sequence[TableRecord],
    properties: Mapping[str, Any],
    emit: Emit,
    *,
    neutralised: Sequence[str] = (),
    left_out: LeftOut | None = None,
    known: Collection[str] | None = None,
    owners: bool = True,
    clock: Clock | None = None,
) -> Verification:
    """What the database holds. neutralised: statements that give it, for a moment that nobody else sees, what was taken
    from it for a drill. left_out: what did not come back at all. known: labels of the sequences of which the snapshot
    knows where they stand, None for all. owners: whether these came back.

    Raises SourceError kinds.
    """
    clock = clock or SystemClock()
    left_out = left_out or LeftOut()
    began = clock.monotonic()
    with joined(workers, server, _LOCK_SECONDS, clock) as moment:
        records = _records(workers, server, moment, tables, left_out, known, emit)
    emit(PhaseEnded("verify", clock.monotonic() - began))
    with source_errors(server), closing(connect(server)) as connection:
        version = connection.info.server_version
        codec = connection.info.encoding
        connection.execute("BEGIN READ WRITE")  # whatever the database was told to begin with
        for text in neutralised:
            connection.execute(text.encode(codec))
        schema = describe(connection, owners=owners, without=left_out.extensions)
        claims = read_claims(connection)
        connection.execute("ROLLBACK")
        checks = [_version(properties, version), *check_claims(connection, claims)]
    return Verification(f"PostgreSQL {version // 10000}.{version % 10000}", records, schema, checks, left_out.reasons())


def _version(properties: Mapping[str, Any], version: int) -> CheckOutcome:
    source = int(properties.get("server_version", version))
    same = source // 10000 == version // 10000
    detail = f"PostgreSQL {version // 10000}.{version % 10000}; the source was {source // 10000}.{source % 10000}"
    return CheckOutcome("server_version", same, detail)


def _records(
    workers: Workers,
    server: Server,
    moment: Moment,
    expected: Sequence[TableRecord],
    left_out: LeftOut,
    known: Collection[str] | None,
    emit: Emit,
) -> list[TableRecord]:
    """In the order in which a snapshot has them."""
    connection = moment.connection
    with source_errors(server):
        objects = read_large_objects(connection)
    emit(PhaseStarted("verify", sum(table.size for table in moment.tables)))
    futures: dict[int, list[Future[Sum]]] = {}
    for table in sorted(moment.tables, key=lambda table: -table.size):
        slices = [TableSlice(server, table, item.first, item.last) for item in plan_full(table).slices]
        futures[table.oid] = [workers.submit(measure, item) for item in slices]
    oids = [found.oid for found in objects]
    large = [
        workers.submit(measure, LargeObjectSlice(server, tuple(oids[start : start + GROUP])))
        for start in range(0, len(oids), GROUP)
    ]
    found: list[TableRecord] = []
    for table in moment.tables:
        sums = []
        for future in futures[table.oid]:
            sums.append(future.result())
            emit(Progress("verify", sums[-1].size))
        found.append(parts_record(table.label, table_kind(table), sums, ALGORITHM))
    records = _by_root(moment.tables, found, expected)
    if objects:
        records.append(parts_record(LARGE_OBJECTS, "large objects", [future.result() for future in large], ALGORITHM))
    with source_errors(server):
        sequences, _ = read_sequences(connection)
        matviews = read_matviews(connection)
    unknown = [found.label for found in sequences if known is not None and found.label not in known]
    sequences = [found for found in sequences if found.label not in unknown]
    if sequences:
        # The snapshot has one record of all: those that were left out count as it says that they stood.
        record = sequences_record([*sequences, *left_out.sequences])
        reasons = [f"without {left_out.labels()}, left out of the drill"] if left_out.sequences else []
        reasons += [f"without {', '.join(unknown)}, which the backup could not read"] if unknown else []
        records.append(replace(record, reason="; ".join(reasons)))
    return records + [matview_record(label) for label in matviews]


def _by_root(
    tables: Sequence[Table], found: Sequence[TableRecord], expected: Sequence[TableRecord]
) -> list[TableRecord]:
    """Rows of partitions by the hash of an enum may lie in other partitions than in the source: all of a root's rows
    are compared together, and where those are equal each partition's record is as expected.
    """
    wanted = {record.name: record for record in expected}
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, table in enumerate(tables):
        if table.root:
            groups[table.root].append(number)
    result = list(found)
    for root, numbers in groups.items():
        others = [wanted.get(found[number].name) for number in numbers]
        if None in others or _total([found[number] for number in numbers]) != _total(others):
            continue
        reason = f"compared together with the other partitions of {'.'.join(root)}: a hash of an enum is another here"
        for number in numbers:
            record = wanted[found[number].name]
            result[number] = replace(found[number], rows=record.rows, checksum=record.checksum, reason=reason)
    return result


def _total(records: Sequence[TableRecord | None]) -> tuple[int, str]:
    rows = sum(record.rows or 0 for record in records if record)
    return rows, digest_text(sum(int(record.checksum or "0", 16) for record in records if record))


def query(server: Server, sql: str) -> object:
    """The first column of the first row, None without a row; in a read-only transaction. Raises SourceError."""
    with source_errors(server), closing(connect(server)) as connection:
        connection.execute("RESET search_path")
        connection.execute("RESET row_security")
        connection.execute("BEGIN READ ONLY")
        connection.execute(f"SET LOCAL statement_timeout = '{_QUERY_SECONDS}s'".encode("ascii"))
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql.encode(connection.info.encoding))
                row = cursor.fetchone() if cursor.description else None
        except psycopg.Error as error:
            raise SourceError("the query fails on the restored database", why=text_of(error)) from error
        return plain(row[0]) if row else None
