"""Which slices of which tables must be read, and which are as the parent has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from crmbackup.core.events import Emit, PhaseStarted, Progress
from crmbackup.engines.base import Workers
from crmbackup.engines.postgres.catalog import Table
from crmbackup.engines.postgres.connection import Server
from crmbackup.engines.postgres.horizon import Position
from crmbackup.engines.postgres.memory import Memory, SliceMemory, TableMemory
from crmbackup.engines.postgres.reader import SliceCount, TableSlice, count_slices, count_tables
from crmbackup.engines.sums import Part

#: A slice: small enough that one changed row costs little, large enough that a query for each costs nothing.
SLICE_BYTES = 1024 * 1024
_MOST_BLOCKS = 128
#: Blocks that one task counts.
_COUNTED = 8192
#: Tables of one slice that one statement counts.
_TOGETHER = 100
_TID_RANGES = 140000


@dataclass
class SlicePlan:
    """One slice: carried with the parent's parts, or read, and then filled by `shipped`. blocks: None for all."""

    first: int | None
    last: int
    carried: bool = False
    parts: list[Part] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Rows in it."""
        return sum(part.rows for part in self.parts)


@dataclass
class TablePlan:
    """One table. why_read: why it is read as a whole although there is a parent, or empty."""

    table: Table
    step: int
    slices: list[SlicePlan]
    why_read: str = ""

    @property
    def carried(self) -> bool:
        """Whether nothing of it was read."""
        return bool(self.slices) and all(item.carried for item in self.slices)

    @property
    def parts(self) -> list[Part]:
        """Its chunks, in order."""
        return [part for item in self.slices for part in item.parts]

    def memory(self) -> TableMemory:
        """For the next incremental."""
        slices = tuple(SliceMemory(len(item.parts), item.rows) for item in self.slices)
        return TableMemory(self.table.label, self.table.filenode, self.table.fingerprint, self.step, slices)


@dataclass(frozen=True)
class ParentTables:
    """The parent's memory, and each table's parts by label."""

    memory: Memory
    parts: Mapping[str, Sequence[Part]]


def plan_full(table: Table, why_read: str = "") -> TablePlan:
    """Read all of a table."""
    if not table.heap or table.condition or table.always_read:
        slices = [SlicePlan(None, 0)] if table.size or not table.heap else []
        return TablePlan(table, 0, slices, why_read)
    step = max(1, min(_MOST_BLOCKS, SLICE_BYTES // max(1, table.width)))
    return TablePlan(table, step, list(_slices(table.blocks, step)), why_read)


def _slices(blocks: int, step: int) -> Iterator[SlicePlan]:
    for first in range(0, blocks, step):
        yield SlicePlan(first, min(first + step, blocks))


def why_not_compared(table: Table, parent: ParentTables) -> str:
    """Why a table's slices cannot be compared with the parent's, or empty."""
    old = parent.memory.tables.get(table.oid)
    if table.always_read:
        return table.always_read
    if table.condition:
        return "it is an extension's configuration"
    if old is None or table.label not in parent.parts:
        return "it is new"
    if old.label != table.label:
        return "it was renamed"
    if old.filenode != table.filenode:
        return "it was rewritten (TRUNCATE, VACUUM FULL, CLUSTER or ALTER)"
    if old.fingerprint != table.fingerprint:
        return "its definition changed"
    if old.step < 1 or sum(item.chunks for item in old.slices) != len(parent.parts[table.label]):
        return "what this host remembers of it does not fit"
    return ""


class Comparison:
    """Counts the slices of all comparable tables in the workers, and plans with the counts."""

    def __init__(self, workers: Workers, server: Server, server_version: int, position: Position, emit: Emit) -> None:
        self._workers = workers
        self._server = server
        self._ranges = server_version >= _TID_RANGES
        self._position = position
        self._emit = emit

    def plan(self, tables: Sequence[Table], parent: ParentTables) -> list[TablePlan]:
        """One plan for each table, in order."""
        reasons = [why_not_compared(table, parent) for table in tables]
        compared = [table for table, reason in zip(tables, reasons, strict=True) if not reason]
        self._emit(PhaseStarted("scan", sum(table.size for table in compared)))
        counts = self._counts(compared, parent.memory)
        plans = []
        for table, reason in zip(tables, reasons, strict=True):
            if reason:
                plans.append(plan_full(table, reason))
                continue
            found = counts[table.oid]()
            plans.append(_compare(table, parent.memory.tables[table.oid], parent.parts[table.label], found))
            self._emit(Progress("scan", table.size))
        return plans

    def _counts(self, tables: Sequence[Table], memory: Memory) -> dict[int, Callable[[], list[SliceCount]]]:
        """For each table's oid what waits for the counts of its slices. Large tables have several tasks each, small
        ones share one.
        """
        horizon = memory.position.horizon
        assert horizon is not None
        large = [table for table in tables if table.blocks > memory.tables[table.oid].step]
        small = [table for table in tables if 0 < table.blocks <= memory.tables[table.oid].step]
        found: dict[int, Callable[[], list[SliceCount]]] = {table.oid: list for table in tables}
        for table in large:
            found[table.oid] = partial(_joined, self._count(table, memory.tables[table.oid].step, horizon))
        groups = (len(small) + _TOGETHER - 1) // _TOGETHER
        for number in range(groups):
            group = small[number::groups]
            future = self._workers.submit(count_tables, group, horizon)
            found |= {table.oid: partial(_nth, future, place) for place, table in enumerate(group)}
        return found

    def _count(self, table: Table, step: int, horizon: int) -> list[Future[list[SliceCount]]]:
        stride = max(step, _COUNTED // step * step) if self._ranges else max(1, table.blocks)
        return [
            self._workers.submit(count_slices, table, first, min(first + stride, table.blocks), step, horizon)
            for first in range(0, table.blocks, stride)
        ]

    def slice(self, plan: TablePlan, item: SlicePlan) -> TableSlice:
        """What a worker reads."""
        return TableSlice(self._server, plan.table, item.first, item.last)


def _joined(futures: Sequence[Future[list[SliceCount]]]) -> list[SliceCount]:
    return [count for future in futures for count in future.result()]


def _nth(future: Future[list[SliceCount]], place: int) -> list[SliceCount]:
    return [future.result()[place]]


def _compare(table: Table, old: TableMemory, parts: Sequence[Part], found: Sequence[SliceCount]) -> TablePlan:
    plan = TablePlan(table, old.step, list(_slices(table.blocks, old.step)))
    position = 0
    for number, item in enumerate(plan.slices):
        count = found[number]
        before = old.slices[number] if number < len(old.slices) else SliceMemory(0, 0)
        own = list(parts[position : position + before.chunks])
        position += before.chunks
        if count.new == 0 and count.rows == before.rows == sum(part.rows for part in own):
            item.carried, item.parts = True, own
    return plan
