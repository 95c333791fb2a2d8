"""An open snapshot of an SQLite database: full, or incremental against what this host remembers."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from itertools import chain
from pathlib import Path

from crmbackup.core.clock import Clock
from crmbackup.core.errors import SourceEmpty
from crmbackup.core.events import Emit, PhaseEnded, PhaseStarted, Progress, Warned
from crmbackup.engines.ahead import begun_ahead
from crmbackup.engines.base import Image, Parent, Snapshot, SourceInfo, TableRecord, Workers
from crmbackup.engines.sqlite.connection import ENGINE_VERSION
from crmbackup.engines.sqlite.joining import Moment
from crmbackup.engines.sqlite.pagelists import PageList, PageListWriter, PageMarks
from crmbackup.engines.sqlite.pages import (
    BLOCK_SIZE,
    PAGE_HASH_SIZE,
    Extent,
    decode_layout,
    encode_layout,
    renumber,
    replace,
    runs,
)
from crmbackup.engines.sqlite.reader import (
    ChangedPages,
    PageFacts,
    PageSlice,
    ScanRange,
    ScanResult,
    Source,
    scan,
)
from crmbackup.engines.sqlite.schema import Contents, read_contents
from crmbackup.engines.sqlite.state import SCRATCH, ParentState, StateLost, StateWriter
from crmbackup.engines.sqlite.tables import TableReader

CHUNK_BYTES = 1024 * 1024
SCAN_BYTES = 32 * 1024 * 1024


class SqliteSnapshot(Snapshot):
    """One read transaction, shared by all workers."""

    def __init__(
        self,
        source: Source,
        checksums: str,
        page_key: bytes,
        workers: Workers,
        moment: Moment,
        parent: Parent | None,
        state: Path,
        clock: Clock,
        emit: Emit,
    ) -> None:
        self._source = source
        self._checksums = checksums
        self._page_key = page_key
        self._workers = workers
        self._emit = emit
        self._clock = clock
        self._page_size = moment.view.page_size
        self._page_count = moment.view.page_count
        self._contents = self._read_contents()
        self._old = self._usable(parent)
        # Chunks are numbered behind the parent's only when there is one to build on.
        self._parent = parent if self._old else None
        self._state = state
        self._writer = StateWriter(state)
        self._changed: PageList | None = None
        self._chunks = array("I")
        self._read_size = self._page_count * self._page_size
        self._tables: TableReader | None = None
        self._tables_size: int | None = None
        self.info = self._describe(moment)

    def _read_contents(self) -> Contents | None:
        if self._source.encrypted:
            return None
        contents = self._workers.submit(read_contents, self._source.path).result()
        if not contents.tables:
            raise SourceEmpty(
                f"the database {self._source.path} holds no tables",
                why="its schema is empty",
                hint="check source.path; a new, empty database is no CRM",
            )
        return contents

    def _usable(self, parent: Parent | None) -> ParentState | None:
        if parent is None:
            return None
        try:
            old = ParentState(parent.directory)
        except StateLost as reason:
            self.full_because = str(reason)
            return None
        if old.page_size != self._page_size:
            self.full_because = f"the page size changed from {old.page_size} to {self._page_size}"
            return None
        return old

    def _describe(self, moment: Moment) -> SourceInfo:
        contents, view = self._contents, moment.view
        freelist = contents.freelist if contents else 0
        return SourceInfo(
            captured=moment.captured,
            engine_version=ENGINE_VERSION,
            size=self._page_count * self._page_size,
            position={"schema_version": view.schema_version, "pages": self._page_count, "free_pages": freelist},
            properties={"journal_mode": view.journal_mode, "encrypted": self._source.encrypted},
            schema=contents.schema() if contents else {},
        )

    @property
    def read_size(self) -> int:
        return self._read_size

    def slices(self) -> Iterator[PageSlice | ChangedPages]:
        marks: PageMarks | None = None
        if self._old:
            marks = PageMarks(self._page_count)
            self._changed = self._scan(self._old, marks)
            self._read_size = self._changed.count * self._page_size
        self._chunks = array("I", [0]) * -(-self._pages_to_ship // self._step)
        self._start_tables(marks)
        for number in range(len(self._chunks)):
            # Reading all rows is half of the work: it must be under way while pages are shipped. But pages need not wait
            # until the b-trees were looked at.
            if self._tables_size is None and self._tables and self._tables.structures_known():
                self._tables_size = self._tables.start_segments()
            yield self._slice(number)

    @property
    def _step(self) -> int:
        """Pages of a slice."""
        return CHUNK_BYTES // self._page_size

    @property
    def _pages_to_ship(self) -> int:
        return self._page_count if self._changed is None else self._changed.count

    def _start_tables(self, changed: PageMarks | None) -> None:
        if self._contents is None:
            return
        self._tables = TableReader(self._workers, self._source, self._contents, self._page_size, self._state)
        if self._checksums == "tables":
            self._tables.start_structures(self._old.tables if self._old else {}, changed)
        else:
            self._tables.start_counts()

    def _slice(self, number: int) -> PageSlice | ChangedPages:
        start = number * self._step
        if self._changed is None:
            count = min(self._step, self._page_count - start)
            return PageSlice(self._source, start + 1, count, self._page_size, self._page_key)
        pages = chain.from_iterable(self._changed.part(start, self._step).pieces())
        return ChangedPages(self._source, tuple(runs(pages)), self._page_size)

    def _scan(self, old: ParentState, marks: PageMarks) -> PageList:
        """Compare every page with the parent's; gives the pages that differ, and marks them."""
        began = self._clock.monotonic()
        self._emit(PhaseStarted("scan", self._read_size))
        step = SCAN_BYTES // self._page_size

        def begin(first: int) -> tuple[ScanRange, Future[ScanResult]]:
            count = min(step, self._page_count - first + 1)
            task = ScanRange(self._source, first, count, self._page_size, self._page_key, old.blocks, old.pages)
            return task, self._workers.submit(scan, task)

        self._writer.begin_with(old)
        with PageListWriter(self._state / SCRATCH.format("changed")) as changed:
            for task, future in begun_ahead(map(begin, range(1, self._page_count + 1, step)), self._workers):
                result = future.result()
                self._put_blocks(task.first, result.blocks)
                position = 0
                for first, count in runs(result.changed):
                    self._writer.put_pages(first, result.page_hashes[position : position + count * PAGE_HASH_SIZE])
                    position += count * PAGE_HASH_SIZE
                changed.add(result.changed)
                marks.add(result.changed)
                self._emit(Progress("scan", task.count * self._page_size))
        self._emit(PhaseEnded("scan", self._clock.monotonic() - began))
        return changed.since(0)

    def _put_blocks(self, first_page: int, hashes: bytes) -> None:
        self._writer.put_blocks((first_page - 1) * self._page_size // BLOCK_SIZE, hashes)

    def shipped(self, number: int, chunks: Sequence[tuple[int, object]]) -> None:
        ((self._chunks[number], facts),) = chunks
        if self._changed is None:
            assert isinstance(facts, PageFacts)
            first = number * self._step + 1
            self._writer.put_pages(first, facts.pages)
            self._put_blocks(first, facts.blocks)

    def _new_extents(self) -> Iterator[Extent]:
        for number, chunk in enumerate(self._chunks):
            item = self._slice(number)
            position = 0
            for first, count in item.runs if isinstance(item, ChangedPages) else [(item.first, item.count)]:
                yield Extent(first, count, chunk, position)
                position += count

    def finish(self) -> Image:
        old = decode_layout(self._parent.layout)[0] if self._parent and self._old else ()
        extents, chunks = renumber(replace(old, self._new_extents(), self._page_count))
        records, omitted = self._finish_tables()
        states = self._tables.states() if self._tables else {}
        digest = self._writer.save(self._page_size, self._page_count, states)
        return Image(
            layout=encode_layout(extents, self._page_size, self._page_count),
            chunks=chunks,
            digest=digest,
            tables=records,
            not_covered=omitted,
        )

    def _finish_tables(self) -> tuple[list[TableRecord], list[tuple[str, str]]]:
        if self._tables is None:
            return [], [("all tables", "the database is encrypted: only its pages are covered")]
        began = self._clock.monotonic()
        if self._tables_size is None:
            self._tables_size = self._tables.start_segments()
        self._emit(PhaseStarted("tables", self._tables_size or None))
        records = self._tables.finish(lambda size: self._emit(Progress("tables", size)))
        self._emit(PhaseEnded("tables", self._clock.monotonic() - began))
        omitted = [(record.name, record.reason) for record in records if record.unreadable]
        for name, reason in omitted:
            self._emit(
                Warned(
                    "table-unreadable",
                    f"table {name} cannot be read: {reason}",
                    "its stored pages are in the snapshot, but its rows are neither counted nor compared",
                )
            )
        return records, omitted

    def close(self) -> None:
        """Give files back."""
        self._writer.close()
