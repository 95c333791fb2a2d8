"""An open snapshot of an SQLite database: full, or incremental against what this host remembers."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

from crmbackup.core.clock import Clock
from crmbackup.core.errors import SourceEmpty
from crmbackup.core.events import Emit, PhaseEnded, PhaseStarted, Progress, Warned
from crmbackup.engines.base import Image, Parent, Snapshot, SourceInfo, TableRecord, Workers
from crmbackup.engines.sqlite.connection import ENGINE_VERSION
from crmbackup.engines.sqlite.joining import Moment
from crmbackup.engines.sqlite.pages import (
    BLOCK_HASH_SIZE,
    BLOCK_SIZE,
    PAGE_HASH_SIZE,
    Extent,
    decode_layout,
    encode_layout,
    image_digest,
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
from crmbackup.engines.sqlite.state import ParentState, StateLost, StateWriter
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
        self._writer = StateWriter(state)
        block_count = -(-self._page_count * self._page_size // BLOCK_SIZE)
        self._blocks = bytearray(block_count * BLOCK_HASH_SIZE)
        self._plan: list[PageSlice | ChangedPages] = []
        self._chunks: dict[int, int] = {}
        self._read_size = self._page_count * self._page_size
        self._tables: TableReader | None = None
        self._tables_size = 0
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
        changed: bytearray | None = None
        if self._old:
            pages = self._scan(self._old)
            changed = bytearray(self._page_count + 1)
            for page in pages:
                changed[page] = 1
            self._plan = list(self._changed_slices(pages))
            self._read_size = len(pages) * self._page_size
        else:
            self._plan = list(self._all_slices())
        self._start_tables(changed)
        yield from self._plan

    def _start_tables(self, changed: bytearray | None) -> None:
        if self._contents is None:
            return
        self._tables = TableReader(self._workers, self._source, self._contents, self._page_size)
        if self._checksums == "tables":
            self._tables.start_structures(self._old.tables if self._old else {}, changed)
            if not self._old:
                # Reading all rows is half of the work: it must be under way while pages are shipped. What changed is
                # little, and shipping it need not wait until the b-trees were looked at.
                self._tables_size = self._tables.start_segments()
        else:
            self._tables.start_counts()

    def _all_slices(self) -> Iterator[PageSlice]:
        step = CHUNK_BYTES // self._page_size
        for first in range(1, self._page_count + 1, step):
            count = min(step, self._page_count - first + 1)
            yield PageSlice(self._source, first, count, self._page_size, self._page_key)

    def _changed_slices(self, pages: Sequence[int]) -> Iterator[ChangedPages]:
        step = CHUNK_BYTES // self._page_size
        for start in range(0, len(pages), step):
            yield ChangedPages(self._source, tuple(runs(pages[start : start + step])), self._page_size)

    def _scan(self, old: ParentState) -> array[int]:
        """Compare every page with the parent's; gives the pages that differ."""
        began = self._clock.monotonic()
        self._emit(PhaseStarted("scan", self._read_size))
        step = SCAN_BYTES // self._page_size
        pending: list[tuple[ScanRange, Future[ScanResult]]] = []
        for first in range(1, self._page_count + 1, step):
            count = min(step, self._page_count - first + 1)
            task = ScanRange(self._source, first, count, self._page_size, self._page_key, old.blocks, old.pages)
            pending.append((task, self._workers.submit(scan, task)))
        self._writer.begin_with(old)
        changed = array("I")
        for task, future in pending:
            result = future.result()
            self._put_blocks(task.first, result.blocks)
            position = 0
            for first, count in runs(result.changed):
                self._writer.put_pages(first, result.page_hashes[position : position + count * PAGE_HASH_SIZE])
                position += count * PAGE_HASH_SIZE
            changed.extend(result.changed)
            self._emit(Progress("scan", task.count * self._page_size))
        self._emit(PhaseEnded("scan", self._clock.monotonic() - began))
        return changed

    def _put_blocks(self, first_page: int, hashes: bytes) -> None:
        start = (first_page - 1) * self._page_size // BLOCK_SIZE * BLOCK_HASH_SIZE
        self._blocks[start : start + len(hashes)] = hashes

    def shipped(self, number: int, chunks: Sequence[tuple[int, object]]) -> None:
        item = self._plan[number]
        ((self._chunks[number], facts),) = chunks
        if isinstance(item, PageSlice):
            assert isinstance(facts, PageFacts)
            self._writer.put_pages(item.first, facts.pages)
            self._put_blocks(item.first, facts.blocks)

    def finish(self) -> Image:
        new: list[Extent] = []
        for number, item in enumerate(self._plan):
            if isinstance(item, PageSlice):
                new.append(Extent(item.first, item.count, self._chunks[number], 0))
                continue
            position = 0
            for first, count in item.runs:
                new.append(Extent(first, count, self._chunks[number], position))
                position += count
        old = decode_layout(self._parent.layout)[0] if self._parent and self._old else []
        extents, chunks = renumber(replace(old, new, self._page_count))
        records, omitted = self._finish_tables()
        states = self._tables.states() if self._tables else {}
        self._writer.save(self._page_size, self._page_count, bytes(self._blocks), states)
        return Image(
            layout=encode_layout(extents, self._page_size, self._page_count),
            chunks=chunks,
            digest=image_digest(bytes(self._blocks)),
            tables=records,
            not_covered=omitted,
        )

    def _finish_tables(self) -> tuple[list[TableRecord], list[tuple[str, str]]]:
        if self._tables is None:
            return [], [("all tables", "the database is encrypted: only its pages are covered")]
        began = self._clock.monotonic()
        if self._old:
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
