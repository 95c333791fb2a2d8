"""Which ranges of which tables must be read, and which are as the parent has them.

A full cuts each table into slices of about equal size by walking its key, and chunks end where enough bytes are read. An
incremental cuts where the parent did: a chunk whose rows did not change has the same bytes, and is not stored again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from crmbackup.core.canonical import canonical_json
from crmbackup.engines.base import ParentChunk
from crmbackup.engines.mysql.catalog import Table
from crmbackup.engines.mysql.columns import line_sql
from crmbackup.engines.mysql.connection import Connection
from crmbackup.engines.mysql.definitions import Definition, comparable
from crmbackup.engines.mysql.joining import Position
from crmbackup.engines.mysql.keys import Key, between, key_of, order_by
from crmbackup.engines.mysql.memory import Memory, PartMemory, TableMemory
from crmbackup.engines.mysql.protocol import first_column, read_packets
from crmbackup.engines.mysql.reader import Range
from crmbackup.engines.mysql.rows import PIECE_BYTES
from crmbackup.engines.sums import Part

#: About how many pieces one slice reads: large enough that a query for each costs nothing, small enough to keep workers
#: even.
_SLICE = 8


@dataclass
class RangePlan:
    """One range: carried with the parent's parts, or read, and then filled by what was shipped.

    parts, memory: side by side, one for each chunk. size in bytes, by estimate. parent: the part that the range was in the
    parent, if it was one alone.
    """

    range: Range
    size: int
    carried: bool = False
    parent: tuple[Part, PartMemory] | None = None
    parts: list[Part] = field(default_factory=list)
    memory: list[PartMemory] = field(default_factory=list)


@dataclass
class TablePlan:
    """One table. ranges: in the order of the key; those of a full are added while it is walked."""

    table: Table
    fingerprint: str
    ranges: list[RangePlan] = field(default_factory=list)

    @property
    def parts(self) -> list[Part]:
        """Its chunks, in order."""
        return [part for item in self.ranges for part in item.parts]

    @property
    def carried(self) -> bool:
        """Whether nothing of it was read."""
        return bool(self.ranges) and all(item.carried for item in self.ranges)

    def remembered(self) -> TableMemory:
        """For the next incremental."""
        parts = tuple(part for item in self.ranges for part in item.memory) if self.table.key else ()
        return TableMemory(self.fingerprint, key_identity(self.table), parts)


@dataclass(frozen=True)
class ParentTables:
    """The parent's memory, and each table's parts by name."""

    memory: Memory
    parts: Mapping[str, Sequence[Part]]


def key_identity(table: Table) -> tuple[tuple[str, str, str], ...]:
    """How a table is cut: equal ones can be cut at the same keys."""
    return tuple((column.name, column.definition, column.collation or "") for column in table.key)


def fingerprint(table: Table, definition: Definition, position: Position) -> str:
    """Covers all that decides how a row is written in a line."""
    columns = [[column.name, column.definition, column.charset, column.collation] for column in table.columns]
    content = [comparable(definition), columns, table.history, position.version]
    return sha256(canonical_json(content)).hexdigest()


def inherited(table: Table, parent: ParentTables) -> tuple[PartMemory, ...]:
    """The parent's parts of a table, if it can be cut where the parent cut it; else none."""
    old = parent.memory.tables.get(table.name)
    if old is None or not table.key or old.key != key_identity(table):
        return ()
    return old.parts if len(old.parts) == len(parent.parts.get(table.name, ())) else ()


def plan_inherited(
    old: Sequence[PartMemory], parts: Sequence[Part], touched: frozenset[int] | None = None, *, piece: int = PIECE_BYTES
) -> list[RangePlan]:
    """Ranges at the parent's borders. touched: numbers of the parts that changed, `len(old)` for what comes after the
    last; None if that is not known. What is small (against `piece` bytes) and read anyway is read together with its
    neighbour.
    """
    plans: list[RangePlan] = []
    low: Key = ()
    small = bool(old) and old[-1].size < piece // 2
    for number, (part, own) in enumerate(zip(old, parts, strict=True)):
        read = touched is None or number in touched
        if number == len(old) - 1 and small and (touched is None or len(old) in touched):
            # New rows at the end would make ever more small chunks.
            read = True
        before = plans[-1] if plans else None
        if not read:
            plans.append(RangePlan(Range(low, part.last), part.size, True, parts=[own], memory=[part]))
        elif before and not before.carried and before.size + part.size <= piece // 2:
            plans[-1] = RangePlan(Range(before.range.low, part.last, True), before.size + part.size)
        else:
            again = Range(low, part.last, True, ParentChunk(own.chunk, part.size), part.sent)
            plans.append(RangePlan(again, part.size, parent=(own, part)))
        low = part.last
    if touched is None or len(old) in touched or not old:
        if small and plans and not plans[-1].carried:
            last = plans.pop()
            plans.append(RangePlan(Range(last.range.low, ()), last.size))
        else:
            plans.append(RangePlan(Range(low, ()), piece // 4))
    return plans


def plan_carried(old: Sequence[PartMemory], parts: Sequence[Part]) -> list[RangePlan]:
    """A table in which nothing changed: all of it is the parent's."""
    return [RangePlan(Range((), ()), sum(part.size for part in old), True, parts=list(parts), memory=list(old))]


def slices_of(plans: Sequence[RangePlan], piece: int = PIECE_BYTES) -> Iterator[list[RangePlan]]:
    """Those that are read, in groups of about a slice. piece in bytes."""
    group: list[RangePlan] = []
    size = 0
    for item in plans:
        if item.carried:
            continue
        group.append(item)
        size += item.size
        if size >= _SLICE * piece:
            yield group
            group, size = [], 0
    if group:
        yield group


def walk(connection: Connection, table: Table, piece: int = PIECE_BYTES) -> Iterator[RangePlan]:
    """Ranges of about a slice, by walking the key; all of a table without one. piece in bytes. Raises pymysql.Error."""
    wanted = _SLICE * piece
    if not table.key or table.size <= wanted:
        yield RangePlan(Range((), ()), table.size)
        return
    step = max(1, wanted // table.row_bytes)
    low: Key = ()
    while True:
        sql = (
            f"SELECT {line_sql(table.key)} FROM {table.sql}{between(table.key, low, ())}{order_by(table.key)}"
            f" LIMIT 1 OFFSET {step - 1}"
        )
        line = next((first_column(row) for row in list(read_packets(connection, sql))), None)
        if line is None:
            yield RangePlan(Range(low, ()), wanted)
            return
        high = key_of(line, table.key, table.key)
        yield RangePlan(Range(low, high), wanted)
        low = high
