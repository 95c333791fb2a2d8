"""Looking at a restored database: its rows as the snapshot was read, its definitions, what must hold in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pymysql

from crmbackup.core.clock import Clock, SystemClock
from crmbackup.core.errors import SourceError
from crmbackup.core.events import Emit, PhaseEnded, PhaseStarted, Progress
from crmbackup.engines.base import CheckOutcome, TableRecord, Verification, Workers
from crmbackup.engines.mysql.catalog import read_database, read_tables
from crmbackup.engines.mysql.checks import check_database
from crmbackup.engines.mysql.connection import (
    Server,
    Version,
    connect,
    execute,
    source_errors,
    target_errors,
    text_of,
    version_of,
)
from crmbackup.engines.mysql.definitions import Definition, comparable, object_digests, schema_digest
from crmbackup.engines.mysql.joining import Moment, joined
from crmbackup.engines.mysql.objects import read_objects, read_sequences
from crmbackup.engines.mysql.planning import walk
from crmbackup.engines.mysql.reader import RowFacts, TableSlice, begin
from crmbackup.engines.mysql.records import sequences_record, table_kind
from crmbackup.engines.mysql.restore_objects import for_target
from crmbackup.engines.mysql.rows import ALGORITHM, read_rows
from crmbackup.engines.mysql.statements import for_drill, with_definer, without_tablespace
from crmbackup.engines.plain import plain
from crmbackup.engines.sums import MODULUS, parts_record, totals

_LOCK_SECONDS = 60.0
_QUERY_SECONDS = 300
_SHOWN = 20
_LIMITS = {
    "mariadb": f"SET SESSION max_statement_time = {_QUERY_SECONDS}",
    "mysql": f"SET SESSION max_execution_time = {_QUERY_SECONDS * 1000}",
}


class Sum(NamedTuple):
    """Rows and their sum; size in bytes of what was read, as planned."""

    rows: int
    checksum: int
    size: int


@dataclass(frozen=True)
class Restored:
    """What a restore knows of the database it made. source: the name that the database had. definitions: of all that
    came back. left_out: what a drill does without. definers: whether objects run as their definers. neutral, private: as of `Plan`.
    """

    source: str
    definitions: tuple[Definition, ...]
    left_out: tuple[Definition, ...]
    definers: bool
    neutral: bool
    private: bool


def measure(item: TableSlice) -> Sum:
    """Read a slice in a worker, and keep nothing but the sum. Raises SourceError kinds."""
    rows, checksum = 0, 0
    for found in item.read():
        assert isinstance(found.facts, RowFacts)
        rows += found.facts.rows
        checksum += found.facts.checksum
    return Sum(rows, checksum % MODULUS, item.size)


def sum_table(server: Server, name: str) -> tuple[int, str]:
    """All rows of one table and their sum, in a worker. Raises TargetError kinds."""
    with target_errors(server, f"table {name}"), closing(connect(server)) as connection:
        begin(connection, int(_LOCK_SECONDS))
        table = next(
            each for each in read_tables(connection, server.database, version_of(connection)) if each.name == name
        )
        return totals(list(read_rows(connection, table.source, table.columns, "")))


def verify(
    workers: Workers,
    server: Server,
    properties: Mapping[str, Any],
    emit: Emit,
    *,
    restored: Restored | None,
    clock: Clock | None = None,
) -> Verification:
    """What the database holds. restored: if it was just made. Raises SourceError kinds."""
    clock = clock or SystemClock()
    began = clock.monotonic()
    with joined(workers, server, _LOCK_SECONDS, clock, emit) as moment:
        objects = _objects(moment, server, restored)
        records = _records(workers, server, moment, objects, emit)
        version = moment.version
        with source_errors(server):
            database = read_database(moment.catalog, server.database)
    emit(PhaseEnded("verify", clock.monotonic() - began))
    checks = [
        _version(properties, version),
        _differing(properties, objects, restored),
        *check_database(workers, server, _broken_in_source(restored)),
    ]
    return Verification(version.text, records, schema_digest(objects, database), checks)


def _broken_in_source(restored: Restored | None) -> frozenset[str] | None:
    """Views that could not be used in the source: these show no columns. None where that is not known."""
    if restored is None:
        return None
    return frozenset(each.name for each in restored.definitions if each.kind == "view" and not each.columns)


def _version(properties: Mapping[str, Any], version: Version) -> CheckOutcome:
    source = Version(
        str(properties.get("flavour", version.flavour)), tuple(properties.get("server_version", version.number))
    )
    same = source.flavour == version.flavour and source.number[:2] == version.number[:2]
    return CheckOutcome("server_version", same, f"{version.text}; the source was {source.text}")


def _differing(properties: Mapping[str, Any], objects: Sequence[Definition], restored: Restored | None) -> CheckOutcome:
    """Which objects are not the snapshot's, by name."""
    expected: Mapping[str, str] = properties.get("objects", {})
    found = object_digests(objects)
    names = [f"{label} is missing" for label in expected if label not in found]
    names += [f"{label} is not in the snapshot" for label in found if label not in expected]
    names += [f"{label} differs" for label in expected if label in found and expected[label] != found[label]]
    if not names:
        left_out = [each.label for each in restored.left_out] if restored else []
        detail = f"{len(found) - len(left_out)} objects are defined as in the snapshot"
        if left_out:
            detail += (
                f"; not made, since their engine is not here or they did not work in the source: {', '.join(left_out)}"
            )
        return CheckOutcome("objects", True, detail)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return CheckOutcome("objects", False, ", ".join(names[:_SHOWN]) + more)


def _objects(moment: Moment, server: Server, restored: Restored | None) -> list[Definition]:
    """The definitions; those that a restore made as it should are given as the snapshot has them."""
    with source_errors(server):
        execute(moment.catalog, f"USE `{server.database.replace('`', '``')}`")
        tables = {table.name for table in (*moment.tables, *moment.elsewhere)}
        found = read_objects(moment.catalog, server, moment.version, tables)
    if restored is None:
        return found
    source = {each.label: each for each in restored.definitions}
    result = [_as_source(each, source.get(each.label), server.database, restored) for each in found]
    return [*result, *restored.left_out]


def _as_source(seen: Definition, source: Definition | None, database: str, restored: Restored) -> Definition:
    if source is None:
        return seen
    expected = for_target(source, restored.source, database, definer=restored.definers)
    if seen.kind == "table":
        expected = replace(expected, create=without_tablespace(expected.create))
    if seen.kind == "table" and restored.neutral:
        expected = replace(expected, create=for_drill(expected.create, private=restored.private))
    if not restored.definers:
        seen_create = with_definer(seen.create, "")
        return source if comparable(replace(seen, create=seen_create)) == comparable(expected) else seen
    return source if comparable(seen) == comparable(expected) else seen


def _records(
    workers: Workers, server: Server, moment: Moment, objects: list[Definition], emit: Emit
) -> list[TableRecord]:
    """In the order in which a snapshot has them."""
    emit(PhaseStarted("verify", sum(table.size for table in moment.tables)))
    futures: dict[str, list[Future[Sum]]] = {}
    for table in sorted(moment.tables, key=lambda table: -table.size):
        with source_errors(server, f"table {table.name}"):
            slices = [TableSlice(server, table, (item.range,), item.size) for item in walk(moment.connection, table)]
        futures[table.name] = [workers.submit(measure, item) for item in slices]
    records: list[TableRecord] = []
    for table in moment.tables:
        sums = []
        for future in futures[table.name]:
            sums.append(future.result())
            emit(Progress("verify", sums[-1].size))
        records.append(parts_record(table.name, table_kind(table), sums, ALGORITHM))
    with source_errors(server):
        sequences = read_sequences(moment.connection, server.database, objects)
    if sequences:
        records.append(sequences_record(sequences))
    return records


def query(server: Server, sql: str) -> object:
    """The first column of the first row, None without a row; in a read-only transaction. Raises SourceError."""
    with source_errors(server), closing(connect(server)) as connection:
        execute(connection, _LIMITS[version_of(connection).flavour])
        execute(connection, "SET SESSION sql_mode = DEFAULT")
        execute(connection, "START TRANSACTION READ ONLY")
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                row = cursor.fetchone() if cursor.description else None
        except pymysql.Error as error:
            raise SourceError("the query fails on the restored database", why=text_of(error)) from error
        return plain(row[0]) if row else None
