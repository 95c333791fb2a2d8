"""One snapshot of a PostgreSQL database: what to read, and what was read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from crmbackup.core.clock import Clock
from crmbackup.core.events import Emit, Notice, PhaseEnded, Warned
from crmbackup.engines.base import Image, Parent, Slice, Snapshot, SourceInfo, Workers
from crmbackup.engines.postgres.acting import ACTING
from crmbackup.engines.postgres.archive import ArchiveSlice, Archiving
from crmbackup.engines.postgres.catalog import read_matviews, read_omissions, read_sequences
from crmbackup.engines.postgres.connection import Server, encoding_of, source_errors
from crmbackup.engines.postgres.horizon import why_unrelated
from crmbackup.engines.postgres.joining import Moment
from crmbackup.engines.postgres.large_objects import GROUP, read_large_objects
from crmbackup.engines.postgres.layout import (
    Layout,
    SequenceLayout,
    TableLayout,
    decode_layout,
    encode_layout,
    image_digest,
)
from crmbackup.engines.postgres.leaning import read_leaning
from crmbackup.engines.postgres.memory import load_memory, save_memory
from crmbackup.engines.postgres.needs import read_extensions, read_names, read_needs
from crmbackup.engines.postgres.planning import Comparison, ParentTables, SlicePlan, TablePlan, plan_full
from crmbackup.engines.postgres.reader import LargeObjectSlice, RowFacts, TableSlice
from crmbackup.engines.postgres.records import (
    LARGE_OBJECTS,
    matview_record,
    sequences_record,
    table_kind,
)
from crmbackup.engines.postgres.roles import read_database, read_roles
from crmbackup.engines.postgres.rows import ALGORITHM
from crmbackup.engines.remembered import MemoryLostError
from crmbackup.engines.sums import Part, parts_record

_NOT_HERE = "the rows of unlogged tables are on the primary server only; they come back empty"


class PostgresSnapshot(Snapshot):
    """One exported snapshot, shared by all workers."""

    def __init__(
        self,
        server: Server,
        workers: Workers,
        moment: Moment,
        archiving: Archiving,
        schema: Mapping[str, object],
        parent: Parent | None,
        state: Path,
        *,
        passwords: bool,
        clock: Clock,
        emit: Emit,
    ) -> None:
        self._server = server
        self._workers = workers
        self._moment = moment
        self._parent = parent
        self._state = state
        self._archiving = archiving
        self._schema = schema
        self._clock = clock
        self._emit = emit
        self._passwords = passwords
        self._version = moment.connection.info.server_version
        self._old = self._usable(parent)
        self._comparison = Comparison(workers, server, self._version, moment.position, emit)
        self._tables: list[TablePlan] = []
        self._large_object_parts: dict[int, list[Part]] = {}
        self._archive_chunks: list[int] = []
        self._given: list[SlicePlan | LargeObjectSlice | ArchiveSlice] = []
        self._read_size = sum(table.size for table in moment.tables)
        with source_errors(server):
            self._large_objects = read_large_objects(moment.connection)
        self.info = self._describe()

    def _usable(self, parent: Parent | None) -> ParentTables | None:
        if parent is None:
            return None
        try:
            memory = load_memory(parent.directory)
        except MemoryLostError as reason:
            self.full_because = str(reason)
            return None
        with source_errors(self._server):
            unrelated = why_unrelated(self._moment.connection, memory.position, self._moment.position)
        if unrelated:
            # Still an incremental: everything is read, and what is in storage already is not stored again.
            self._emit(Notice(f"all tables are read: {unrelated}"))
            return None
        parts = {table.label: table.parts for table in decode_layout(parent.layout).tables}
        return ParentTables(memory, parts)

    def _describe(self) -> SourceInfo:
        position = self._moment.position
        major, minor = self._version // 10000, self._version % 10000
        return SourceInfo(
            captured=self._moment.captured,
            engine_version=f"PostgreSQL {major}.{minor}",
            size=self._read_size,
            position={
                "lsn": f"{position.lsn >> 32:X}/{position.lsn & 0xFFFFFFFF:X}",
                "timeline": position.timeline,
                "system": position.system,
                "next_xid": position.next_xid,
            },
            properties={
                "server_version": self._version,
                "encoding": encoding_of(self._moment.connection),
                "standby": position.standby,
            },
            schema=self._schema,
        )

    @property
    def read_size(self) -> int:
        return self._read_size

    def slices(self) -> Iterator[Slice]:
        began = self._clock.monotonic()
        tables = self._moment.tables
        if self._old:
            self._tables = self._comparison.plan(tables, self._old)
            self._emit(PhaseEnded("scan", self._clock.monotonic() - began))
            for plan in self._tables:
                if plan.why_read and plan.slices and plan.why_read != "it is new":
                    self._emit(Notice(f"table {plan.table.label} is read as a whole: {plan.why_read}"))
        else:
            self._tables = [plan_full(table) for table in tables]
        wanted = [
            self._comparison.slice(plan, item) for plan in self._tables for item in plan.slices if not item.carried
        ]
        self._read_size = sum(item.size for item in wanted)
        # Large tables first: their slices keep all workers busy, and what is left at the end is small.
        for plan in sorted(self._tables, key=lambda plan: -plan.table.size):
            for item in plan.slices:
                if not item.carried:
                    yield self._give(item, self._comparison.slice(plan, item))
        for start in range(0, len(self._large_objects), GROUP):
            oids = tuple(found.oid for found in self._large_objects[start : start + GROUP])
            large = LargeObjectSlice(self._server, oids)
            yield self._give(large, large)
        archive = ArchiveSlice(self._archiving.path, self._archiving.wait())
        yield self._give(archive, archive)

    def _give(
        self, plan: SlicePlan | LargeObjectSlice | ArchiveSlice, item: TableSlice | LargeObjectSlice | ArchiveSlice
    ) -> Slice:
        self._given.append(plan)
        return item

    def shipped(self, number: int, chunks: Sequence[tuple[int, object]]) -> None:
        item = self._given[number]
        if isinstance(item, ArchiveSlice):
            self._archive_chunks = [chunk for chunk, _ in chunks]
            return
        parts = []
        for chunk, facts in chunks:
            assert isinstance(facts, RowFacts)
            parts.append(Part(chunk, facts.rows, facts.checksum))
        if isinstance(item, SlicePlan):
            item.parts = parts
        else:
            self._large_object_parts[number] = parts

    def finish(self) -> Image:
        moment = self._moment
        connection = moment.connection
        with source_errors(self._server):
            sequences, denied = read_sequences(connection)
            matviews = read_matviews(connection)
            omitted = read_omissions(connection)
            database = read_database(connection)
            roles = read_roles(connection, passwords=self._passwords)
            needs = read_needs(connection, moment.tables)
            named = read_names(connection, needs)
            extensions = read_extensions(connection)
            leaning = read_leaning(connection, sorted(ACTING.keys() & set(extensions.values())))
        omitted += self._left_out()
        omitted += [
            (f"sequence {label}", "where it stands cannot be read: a right is missing, or it is unlogged on a standby")
            for label in denied
        ]
        if denied and not moment.position.standby:
            names = ", ".join(denied[:5]) + (" ..." if len(denied) > 5 else "")
            hint = "GRANT SELECT ON ALL SEQUENCES IN SCHEMA ... TO the backup role"
            self._emit(Warned("sequence-unread", f"where sequences stand is not backed up: {names}", hint))
        if not self._passwords:
            omitted.append(("passwords of roles", "roles come back without; source.passwords: true carries the hashes"))
        tables = [
            TableLayout(
                schema=plan.table.schema,
                name=plan.table.name,
                label=plan.table.label,
                oid=plan.table.oid,
                columns=plan.table.columns,
                parts=tuple(plan.parts),
                root=plan.table.root,
                extension=plan.table.extension,
            )
            for plan in self._tables
        ]
        large = [part for number in sorted(self._large_object_parts) for part in self._large_object_parts[number]]
        layout = Layout(
            server=self._version,
            database=database,
            archive=tuple(self._archive_chunks),
            tables=tuple(tables),
            sequences=tuple(SequenceLayout(s.schema, s.name, s.label, s.last_value, s.is_called) for s in sequences),
            large_objects=tuple(self._large_objects),
            large_object_parts=tuple(large),
            roles=roles,
            refresh=tuple(matviews),
            needs=needs,
            named=named,
            extensions=extensions,
            leaning={f"{each.class_id}/{each.oid}": each.name for each in leaning},
        )
        layout, chunks = renumber(layout)
        records = [
            parts_record(plan.table.label, table_kind(plan.table), plan.parts, ALGORITHM, carried=plan.carried)
            for plan in self._tables
        ]
        if self._large_objects:
            records.append(parts_record(LARGE_OBJECTS, "large objects", large, ALGORITHM))
        if sequences:
            records.append(sequences_record(sequences))
        records += [matview_record(label) for label in matviews]
        self._remember()
        return Image(encode_layout(layout), chunks, image_digest(layout), records, omitted)

    def _left_out(self) -> list[tuple[str, str]]:
        """On a standby unlogged tables have no rows, whatever the primary has in them."""
        if not self._moment.position.standby:
            return []
        labels = [table.label for table in self._moment.tables if table.persistence == "u"]
        for label in labels:
            self._emit(Warned("unlogged-on-standby", f"the rows of table {label} are not backed up", _NOT_HERE))
        return [(f"unlogged table {label}", _NOT_HERE) for label in labels]

    def _remember(self) -> None:
        self._archiving.stop()
        plans = [(plan.table.oid, plan.memory()) for plan in self._tables if plan.step]
        save_memory(self._state, self._moment.position, plans)


def renumber(layout: Layout) -> tuple[Layout, list[int]]:
    """The same over only the chunks that it uses, numbered from 0 by first use; and their former numbers."""
    numbers: dict[int, int] = {}

    def number(chunk: int) -> int:
        return numbers.setdefault(chunk, len(numbers))

    def parts(old: Sequence[Part]) -> tuple[Part, ...]:
        return tuple(part._replace(chunk=number(part.chunk)) for part in old)

    result = replace(
        layout,
        archive=tuple(map(number, layout.archive)),
        tables=tuple(replace(table, parts=parts(table.parts)) for table in layout.tables),
        large_object_parts=parts(layout.large_object_parts),
    )
    return result, list(numbers)
