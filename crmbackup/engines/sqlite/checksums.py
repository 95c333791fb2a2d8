"""Checksums of tables, from rows that SQL reads: a second reading that knows nothing of the page path.

Algorithm "sqlite-rows-1". A table is cut into segments by rowid; most tables have one. Rows of a segment are read in
rowid order (WITHOUT ROWID: primary key order); each is written as a MessagePack array: rowid (where there is one),
then every stored column in its declared order, generated virtual ones left out. NULL is nil, INTEGER int, REAL float
64, TEXT str, BLOB bin. A segment's digest is the BLAKE3 of its rows, one behind the other. The table's checksum is the
BLAKE3 of its segments' digests, one behind the other.

A segment is "raw" when some of its text is not valid in the database's encoding, and always in a UTF-16 database, where
SQLite's way to UTF-8 makes the same of different invalid text. So are segments of tables with long values: Python would
decode their text only to encode it again. Each segment says in its record whether it is raw. In a raw one all TEXT is
written as bin, in the database's encoding, and each row ends with one more str that names the storage classes of its
columns (i, r, t, b, n).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import apsw
import blake3
import msgspec

from crmbackup.core.errors import SourceError
from crmbackup.engines.base import Segment
from crmbackup.engines.sqlite import reader
from crmbackup.engines.sqlite.connection import quoted, source_errors

ALGORITHM = "sqlite-rows-1"
_BATCH_BYTES = 4 * 1024 * 1024
_BATCH_ROWS = 500
#: Columns of one query: SQLite allows 2,000 results, and expressions of depth 1,000.
_COLUMNS = 900

Row = tuple[object, ...]


@dataclass(frozen=True)
class RowSource:
    """How to read the rows of a table in order: the name of its rowid, and its stored columns.

    rowid: None without one, or when columns hide it. primary: the name of the primary key of a WITHOUT ROWID table.
    """

    table: str
    rowid: str | None
    columns: tuple[str, ...]
    primary: str | None = None


@dataclass(frozen=True, slots=True)
class SegmentTask:
    """A segment to read: rows with low < rowid <= high. `longest`: bytes that its longest row has at most."""

    rows: RowSource
    low: int | None
    high: int | None
    longest: int
    raw: bool = False


def digest_segments(path: Path, tasks: Sequence[SegmentTask]) -> list[Segment | SourceError]:
    """Read segments in the worker's transaction. One that cannot be read is an error in the list."""
    connection = reader.connection()
    result: list[Segment | SourceError] = []
    for task in tasks:
        try:
            with source_errors(path, task.rows.table):
                result.append(_digest_segment(connection, task))
        except SourceError as error:
            result.append(error)
    return result


def table_checksum(segments: Sequence[Segment]) -> str:
    """The checksum of a table from its segments, in hex."""
    return blake3.blake3(b"".join(bytes.fromhex(segment.digest) for segment in segments)).hexdigest()


def _digest_segment(connection: apsw.Connection, task: SegmentTask) -> Segment:
    if task.raw:
        return _digest(connection, task, raw=True)
    try:
        return _digest(connection, task, raw=False)
    except UnicodeDecodeError:
        return _digest(connection, task, raw=True)


def _digest(connection: apsw.Connection, task: SegmentTask, *, raw: bool) -> Segment:
    found = _rows(connection, task, raw=raw)
    batch = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, task.longest)))
    hasher = blake3.blake3()
    encoder = msgspec.msgpack.Encoder()
    rows = 0
    while part := list(itertools.islice(found, batch)):
        rows += len(part)
        encoded = encoder.encode(part)
        # The array around a batch is not part of the form: digests must not depend on the size of batches.
        hasher.update(memoryview(encoded)[1 if len(part) < 16 else 3 :])
        del part, encoded  # before the next batch is read, since one row may be large
    return Segment(task.low, task.high, rows, hasher.hexdigest(), raw)


def _rows(connection: apsw.Connection, task: SegmentTask, *, raw: bool) -> Iterator[Row]:
    columns = task.rows.columns
    pieces = [columns[start : start + _COLUMNS] for start in range(0, len(columns), _COLUMNS)]
    cursors = [_cursor(connection, task, piece, raw=raw, with_rowid=number == 0) for number, piece in enumerate(pieces)]
    if len(cursors) == 1:
        return cursors[0]
    return (_joined(parts, raw=raw) for parts in zip(*cursors, strict=True))


def _cursor(
    connection: apsw.Connection, task: SegmentTask, columns: Sequence[str], *, raw: bool, with_rowid: bool
) -> Iterator[Row]:
    names = [quoted(name) for name in columns]
    rowid = task.rows.rowid
    terms = [rowid] if rowid and with_rowid else []
    if raw:
        terms += [f"CASE typeof({name}) WHEN 'text' THEN CAST({name} AS BLOB) ELSE {name} END" for name in names]
        terms.append("||".join(f"substr(typeof({name}), 1, 1)" for name in names))
    else:
        terms += names
    conditions, bounds = [], {}
    if task.low is not None:
        conditions.append(f"{rowid} > :low")
        bounds["low"] = task.low
    if task.high is not None:
        conditions.append(f"{rowid} <= :high")
        bounds["high"] = task.high
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    order = f" ORDER BY {rowid}" if rowid else ""
    # The planner must not walk a covering index, whose order is another. In a WITHOUT ROWID table the rows themselves
    # count as an index, so that NOT INDEXED allows any.
    walk = f"INDEXED BY {quoted(task.rows.primary)}" if task.rows.primary else "NOT INDEXED"
    query = f"SELECT {', '.join(terms)} FROM main.{quoted(task.rows.table)} {walk}{where}{order}"  # noqa: S608
    return connection.execute(query, bounds)


def _joined(parts: Sequence[Row], *, raw: bool) -> Row:
    """One row of a table with so many columns that several queries read it side by side."""
    if not raw:
        return tuple(itertools.chain.from_iterable(parts))
    values = itertools.chain.from_iterable(part[:-1] for part in parts)
    return (*values, "".join(str(part[-1]) for part in parts))
