"""Row counts and checksums of all tables of a snapshot, carrying over what cannot have changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import blake3

from crmbackup.core.canonical import canonical_json
from crmbackup.core.errors import SourceError, SourceUnreadable
from crmbackup.engines.base import Segment, TableRecord, Workers
from crmbackup.engines.sqlite import reader
from crmbackup.engines.sqlite.checksums import ALGORITHM, SegmentTask, digest_segments, table_checksum
from crmbackup.engines.sqlite.connection import quoted, source_errors
from crmbackup.engines.sqlite.pagelists import PageMarks
from crmbackup.engines.sqlite.reader import Source
from crmbackup.engines.sqlite.schema import Contents, Table
from crmbackup.engines.sqlite.state import SCRATCH, TableState
from crmbackup.engines.sqlite.structure import Part, Rewalked, Structure, Tree, read_structures

T = TypeVar("T")
#: Pages read by one task: enough to make its overhead small, few enough to keep all workers busy to the end.
TASK_BYTES = 32 * 1024 * 1024
#: The same for databases of very many small tables.
TASK_TABLES = 64
#: Bytes of a value on average from which on reading text as bytes costs less than asking SQL for the type of each value.
_LONG_VALUE = 100
#: Pages are walked by hand where they are at most one in that many of a table; dbstat is faster for a page.
_WALKED_BY_HAND = 4
VIRTUAL = "its rows lie in its shadow tables, which are listed on their own"


def record_without_rows(table: Table) -> TableRecord:
    """The record of a table whose rows SQL cannot give, or that has none of its own."""
    reason = table.problem or VIRTUAL
    return TableRecord(table.name, table.kind, None, None, None, unreadable=bool(table.problem), reason=reason)


def record_of_failure(table: Table, error: SourceError) -> TableRecord:
    """The record of a table that could not be read."""
    return TableRecord(table.name, table.kind, None, None, None, unreadable=True, reason=error.why or str(error))


def record_of_count(table: Table, outcome: int | SourceError) -> TableRecord:
    """The record of a table that was only counted, or could not be."""
    if isinstance(outcome, SourceError):
        return record_of_failure(table, outcome)
    return TableRecord(table.name, table.kind, outcome, None, None)


def record_of_segments(table: Table, segments: Sequence[Segment], *, carried: bool = False) -> TableRecord:
    """The record of a table that was read."""
    rows = sum(segment.rows for segment in segments)
    checksum = table_checksum(segments)
    return TableRecord(table.name, table.kind, rows, checksum, ALGORITHM, tuple(segments), carried=carried)


def share_out(tables: Sequence[T], workers: Workers) -> Iterator[Sequence[T]]:
    """Tables in groups, each the work of one task."""
    step = max(1, min(TASK_TABLES, len(tables) // (8 * workers.count)))
    return (tables[start : start + step] for start in range(0, len(tables), step))


class RowCounts:
    """Counts the rows of tables, without checksums."""

    def __init__(self, workers: Workers, path: Path, tables: Sequence[Table]) -> None:
        self._counts = [
            (group, workers.submit(_count_rows, path, [table.name for table in group]))
            for group in share_out(tables, workers)
        ]

    def outcomes(self) -> Iterator[tuple[Table, int | SourceError]]:
        """Waits for everything."""
        for group, future in self._counts:
            yield from zip(group, future.result(), strict=True)


def _count_rows(path: Path, tables: Sequence[str]) -> list[int | SourceError]:
    result: list[int | SourceError] = []
    for table in tables:
        try:
            with source_errors(path, table):
                query = f"SELECT count(*) FROM main.{quoted(table)}"  # noqa: S608 - a quoted identifier
                rows: list[tuple[Any, ...]] = reader.connection().execute(query).fetchall()
                result.append(int(rows[0][0]))
        except SourceError as error:
            result.append(error)
    return result


@dataclass
class _Work:
    """A table whose segments are being read: what is known of each, None where it is not known yet."""

    table: Table
    definition: str
    structure: Structure
    segments: list[Segment | None]
    error: SourceError | None = None

    def __post_init__(self) -> None:
        self.carried = None not in self.segments

    @property
    def long_values(self) -> bool:
        """Whether it is faster to read text as bytes."""
        assert self.table.rows is not None
        return self.structure.average > _LONG_VALUE * len(self.table.rows.columns)


@dataclass
class _Plan:
    """A table whose pages are to be looked at. old: of the parent, None without.

    stale: numbers of the old parts that changed, when nothing above them did and they are few.
    """

    table: Table
    definition: str
    old: TableState | None
    stale: Sequence[int] = ()

    def look_at(self, changed: PageMarks) -> bool:
        """Find what the parent's state still tells of the table; true when it tells everything."""
        if self.old and self.old.definition != self.definition:
            self.old = None
        if not self.old or self.old.root != self.table.root or self.old.structure.interior.meets(changed):
            return False
        parts = self.old.structure.parts
        stale = [number for number, part in enumerate(parts) if part.pages.meets(changed)]
        pages = sum(parts[number].pages.count for number in stale)
        if pages * _WALKED_BY_HAND <= sum(part.pages.count for part in parts):
            self.stale = stale
        return not stale

    def tree(self) -> Tree:
        """What is to be walked."""
        assert self.table.rows is not None
        roots = tuple(self.old.structure.parts[number].pages.first() for number in self.stale) if self.old else ()
        return Tree(self.table.name, self.table.root, bool(self.table.rows.rowid), roots)

    def carried(self, found: Structure | Rewalked, changed: PageMarks | None) -> tuple[Structure, list[Segment | None]]:
        """The structure as of now, and the segments that are the parent's, None for the others."""
        if isinstance(found, Structure):
            if self.old and changed is not None:
                return found, _carried(found, self.old, changed)
            return found, [None] * len(found.parts)
        assert self.old
        parts, segments = list(self.old.structure.parts), list[Segment | None](self.old.segments)
        for number, pages in zip(self.stale, found.pages, strict=True):
            parts[number] = replace(parts[number], pages=pages)
            segments[number] = None
        longest = max(self.old.structure.longest, found.longest)
        return replace(self.old.structure, parts=tuple(parts), longest=longest), segments


class TableReader:
    """Plans and gathers the reading of all tables."""

    def __init__(self, workers: Workers, source: Source, contents: Contents, page_size: int, directory: Path) -> None:
        """directory: where to keep lists of pages."""
        self._workers = workers
        self._source = source
        self._contents = contents
        self._page_size = page_size
        self._directory = directory
        self._readable = [table for table in contents.tables if table.rows is not None]
        self._changed: PageMarks | None = None
        self._structures: list[tuple[Sequence[_Plan], Future[list[Structure | Rewalked | SourceError]]]] = []
        self._works: list[_Work] = []
        self._tasks: dict[Future[list[Segment | SourceError]], tuple[list[tuple[_Work, int]], int]] = {}
        self._counts: RowCounts | None = None
        self._records: dict[str, TableRecord] = {}

    def start_counts(self) -> None:
        """Begin to count rows, without checksums."""
        self._counts = RowCounts(self._workers, self._source.path, self._readable)

    def start_structures(self, parent: Mapping[str, TableState], changed: PageMarks | None) -> None:
        """Begin to look at the b-trees of all tables that may have changed.

        changed: the pages that differ from the parent's are marked; None when there is no parent.
        """
        self._changed = changed
        plans: list[_Plan] = []
        for table in self._readable:
            plan = _Plan(table, _definition(table, self._contents), parent.get(table.name))
            if changed is not None and plan.look_at(changed):
                assert plan.old
                self._works.append(_Work(table, plan.definition, plan.old.structure, list(plan.old.segments)))
            else:
                plans.append(plan)
        for number, group in enumerate(share_out(plans, self._workers)):
            scratch = self._directory / SCRATCH.format(number)
            trees = [plan.tree() for plan in group]
            future = self._workers.submit(read_structures, self._source, trees, self._page_size, scratch)
            self._structures.append((group, future))

    def structures_known(self) -> bool:
        """Whether `start_segments` has nothing to wait for."""
        return all(future.done() for _, future in self._structures)

    def start_segments(self) -> int:
        """Begin to read every segment that is not carried; gives their size in bytes. Raises SourceUnreadable."""
        for group, future in self._structures:
            for plan, outcome in zip(group, future.result(), strict=True):
                found = _not_damaged(outcome)
                if isinstance(found, SourceError):
                    self._records[plan.table.name] = record_of_failure(plan.table, found)
                else:
                    self._works.append(_Work(plan.table, plan.definition, *plan.carried(found, self._changed)))
        return self._submit()

    def _submit(self) -> int:
        """Group the segments to read into tasks; gives their bytes."""
        total = size = 0
        places: list[tuple[_Work, int]] = []
        tasks: list[SegmentTask] = []

        def flush() -> None:
            nonlocal places, tasks, size
            if tasks:
                future = self._workers.submit(digest_segments, self._source.path, tasks)
                self._tasks[future] = places, size
            places, tasks, size = [], [], 0

        for work in self._works:
            assert work.table.rows is not None
            for number, part in enumerate(work.structure.parts):
                if work.segments[number] is not None:
                    continue
                raw = not self._contents.exact_text or work.long_values
                places.append((work, number))
                tasks.append(SegmentTask(work.table.rows, part.low, part.high, work.structure.longest, raw))
                size += part.pages.count * self._page_size
                total += part.pages.count * self._page_size
                if size >= TASK_BYTES or len(tasks) >= TASK_TABLES:
                    flush()
        flush()
        return total

    def finish(self, progress: Callable[[int], None]) -> list[TableRecord]:
        """Wait for everything; gives a record for each table in the schema's order. Raises SourceUnreadable."""
        for future in as_completed(self._tasks):
            places, size = self._tasks[future]
            for (work, number), outcome in zip(places, future.result(), strict=True):
                segment = _not_damaged(outcome)
                if isinstance(segment, SourceError):
                    work.error = segment
                else:
                    work.segments[number] = segment
            progress(size)
        for work in self._works:
            if work.error:
                record = record_of_failure(work.table, work.error)
            else:
                record = record_of_segments(work.table, _complete(work), carried=work.carried)
            self._records[record.name] = record
        for table, rows in self._counts.outcomes() if self._counts else ():
            self._records[table.name] = record_of_count(table, _not_damaged(rows))
        return [self._records.get(table.name) or record_without_rows(table) for table in self._contents.tables]

    def states(self) -> dict[str, TableState]:
        """What the next incremental may carry over. After `finish`."""
        return {
            work.table.name: TableState(work.table.root, work.definition, work.structure, _complete(work))
            for work in self._works
            if not work.error
        }


def _not_damaged(outcome: T) -> T:
    """A table that SQL cannot read is listed; damage, or a disk that fails, ends the backup."""
    if isinstance(outcome, SourceUnreadable):
        raise outcome
    return outcome


def _complete(work: _Work) -> tuple[Segment, ...]:
    return tuple(segment for segment in work.segments if segment is not None)


def _definition(table: Table, contents: Contents) -> str:
    """Changes whenever the same stored row could read differently, or be written differently."""
    assert table.rows is not None
    facts = [ALGORITHM, contents.definitions.get(table.name), list(table.rows.columns), table.rows.rowid]
    return blake3.blake3(canonical_json(facts)).hexdigest()


def _carried(structure: Structure, old: TableState, changed: PageMarks) -> list[Segment | None]:
    """The segments that hold what the parent's held: same borders, same pages, none of them changed."""
    known: dict[tuple[int | None, int | None], tuple[Part, Segment]] = {
        (part.low, part.high): (part, segment) for part, segment in zip(old.structure.parts, old.segments, strict=True)
    }
    result: list[Segment | None] = []
    for part in structure.parts:
        before, segment = known.get((part.low, part.high), (None, None))
        same = before is not None and before.pages.same_as(part.pages) and not part.pages.meets(changed)
        result.append(segment if same else None)
    return result
