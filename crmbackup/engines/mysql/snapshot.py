"""One snapshot of a MySQL or MariaDB database: what to read, and what was read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from crmbackup.core.clock import Clock
from crmbackup.core.errors import SourceChanged, SourceError
from crmbackup.core.events import Emit, Notice, PhaseEnded
from crmbackup.engines.base import Image, Parent, Slice, Snapshot, SourceInfo, TableRecord
from crmbackup.engines.mysql.accounts import read_accounts
from crmbackup.engines.mysql.catalog import Table, read_database
from crmbackup.engines.mysql.changes import Changes, read_changes, with_birth
from crmbackup.engines.mysql.connection import Server, execute, source_errors
from crmbackup.engines.mysql.definitions import (
    Definition,
    Definitions,
    comparable,
    encode_definitions,
    object_digests,
    schema_digest,
)
from crmbackup.engines.mysql.joining import Moment
from crmbackup.engines.mysql.layout import (
    Layout,
    TableLayout,
    decode_layout,
    encode_layout,
    image_digest,
    renumbered,
)
from crmbackup.engines.mysql.memory import PartMemory, load_memory, save_memory
from crmbackup.engines.mysql.objects import read_objects, read_sequences
from crmbackup.engines.mysql.planning import (
    ParentTables,
    RangePlan,
    TablePlan,
    fingerprint,
    inherited,
    plan_carried,
    plan_inherited,
    slices_of,
    walk,
)
from crmbackup.engines.mysql.reader import DefinitionsSlice, RowFacts, TableSlice, Unchanged
from crmbackup.engines.mysql.records import sequences_record, table_kind
from crmbackup.engines.mysql.rows import ALGORITHM
from crmbackup.engines.remembered import MemoryLostError
from crmbackup.engines.sums import Part, parts_record

#: Kinds of objects that a lock on a table's definition keeps as they are.
_ON_TABLES = ("table", "trigger")


class MysqlSnapshot(Snapshot):
    """One moment, shared by all workers."""

    def __init__(
        self,
        server: Server,
        moment: Moment,
        parent: Parent | None,
        state: Path,
        *,
        accounts: bool,
        binlog: bool,
        piece: int,
        key: bytes | None,
        clock: Clock,
        emit: Emit,
    ) -> None:
        self._server = server
        self._moment = moment
        self._parent = parent
        self._state = state
        self._binlog = binlog
        self._piece = piece
        self._key = key
        self._clock = clock
        self._emit = emit
        with source_errors(server):
            execute(moment.catalog, f"USE `{server.database.replace('`', '``')}`")
            self._objects = self._read_objects((*moment.tables, *moment.elsewhere))
            self._accounts = read_accounts(moment.catalog, server.database, moment.version) if accounts else []
            self._database = read_database(moment.catalog, server.database)
        self._has_accounts = accounts
        self._refuse_unknown()
        self._old = self._usable(parent)
        self._plans = self._all_plans()
        self._position = with_birth(server, moment.position) if binlog else moment.position
        self._given: list[list[RangePlan] | None] = []
        self._definition_chunks: list[int] = []
        self._read_size = sum(table.size for table in moment.tables)
        self.info = self._describe()

    def _read_objects(self, tables: Sequence[Table]) -> list[Definition]:
        """All but other tables and their triggers."""
        moment = self._moment
        return read_objects(moment.catalog, self._server, moment.version, {table.name for table in tables})

    def _refuse_unknown(self) -> None:
        for table in self._moment.tables:
            if table.unknown:
                columns = ", ".join(f"{column.name} {column.definition}" for column in table.unknown)
                raise SourceError(
                    f"table {table.name} of {self._server.name} has a column of a type that cannot be backed up",
                    why=columns,
                    hint="tell us of it; nothing is left out in silence",
                )

    def _usable(self, parent: Parent | None) -> ParentTables | None:
        if parent is None:
            return None
        try:
            memory = load_memory(parent.directory)
        except MemoryLostError as reason:
            self.full_because = str(reason)
            return None
        return ParentTables(memory, {table.name: table.parts for table in decode_layout(parent.layout).tables})

    def _all_plans(self) -> list[TablePlan]:
        definitions = {each.name: each for each in self._objects if each.kind == "table"}
        missing = [table.name for table in self._moment.tables if table.name not in definitions]
        if missing:
            raise SourceChanged(f"tables of {self._server.name} vanished while they were read", why=", ".join(missing))
        position = self._moment.position
        return [
            TablePlan(table, fingerprint(table, definitions[table.name], position)) for table in self._moment.tables
        ]

    def _describe(self) -> SourceInfo:
        moment = self._moment
        position = moment.position
        return SourceInfo(
            captured=moment.captured,
            engine_version=moment.version.text,
            size=self._read_size,
            position={
                "binlog": position.file,
                "offset": position.offset,
                "gtid": position.gtid,
                "server": position.identity,
                "held": moment.held,
            },
            properties={
                "flavour": moment.version.flavour,
                "server_version": list(moment.version.number),
                "objects": object_digests(self._objects),
            },
            schema=schema_digest(self._objects, self._database),
        )

    @property
    def read_size(self) -> int:
        return self._read_size

    def slices(self) -> Iterator[Slice]:
        payload = DefinitionsSlice(encode_definitions(Definitions(tuple(self._objects), tuple(self._accounts))))
        yield self._give(None, payload)
        changes = self._changes()
        # Large tables first: their slices keep all workers busy, and what is left at the end is small.
        for plan in sorted(self._plans, key=lambda plan: -plan.table.size):
            old = inherited(plan.table, self._old) if self._old else ()
            touched = changes.touched(plan) if changes else None
            if self._old and touched is not None and not touched:
                plan.ranges = plan_carried(old, self._old.parts[plan.table.name])
                continue
            if self._old and old:
                plan.ranges = plan_inherited(old, self._old.parts[plan.table.name], touched, piece=self._piece)
                for group in slices_of(plan.ranges, self._piece):
                    yield self._give(group, self._slice(plan, group))
                continue
            with source_errors(self._server, f"table {plan.table.name}"):
                for item in walk(self._moment.connection, plan.table, self._piece):
                    plan.ranges.append(item)
                    yield self._give([item], self._slice(plan, [item]))

    def _changes(self) -> Changes | None:
        """What the binary log says has changed since the parent; None when everything must be read."""
        if self._old is None or not self._binlog:
            return None
        began = self._clock.monotonic()
        changes, reason = read_changes(self._server, self._moment, self._old, self._plans)
        if changes is None:
            self._emit(Notice(f"{self._server.name}: all tables are read: {reason}"))
        else:
            for why, names in changes.reasons.items():
                listed = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
                self._emit(Notice(f"{self._server.name}: read as a whole: {listed}: {why}"))
        self._emit(PhaseEnded("scan", self._clock.monotonic() - began))
        return changes

    def _slice(self, plan: TablePlan, group: Sequence[RangePlan]) -> TableSlice:
        size = sum(item.size for item in group)
        ranges = tuple(item.range for item in group)
        return TableSlice(self._server, plan.table, ranges, size, self._piece, self._key)

    def _give(self, group: list[RangePlan] | None, item: TableSlice | DefinitionsSlice) -> Slice:
        self._given.append(group)
        return item

    def shipped(self, number: int, chunks: Sequence[tuple[int, object]]) -> None:
        group = self._given[number]
        if group is None:
            self._definition_chunks = [chunk for chunk, _ in chunks]
            return
        for chunk, facts in chunks:
            assert isinstance(facts, RowFacts | Unchanged)
            item = group[facts.place]
            if isinstance(facts, Unchanged):
                assert item.parent is not None
                part, remembered = item.parent
                item.parts.append(part)
                item.memory.append(remembered)
                continue
            item.parts.append(Part(chunk, facts.rows, facts.checksum))
            item.memory.append(PartMemory(facts.last, facts.rows, facts.size, facts.sent))

    def finish(self) -> Image:
        moment, server = self._moment, self._server
        with source_errors(server):
            sequences = read_sequences(moment.connection, server.database, self._objects)
            now = self._read_objects(moment.elsewhere)
        self._refuse_changed(now)
        tables = tuple(
            TableLayout(plan.table.name, plan.table.layout_columns, tuple(plan.parts), plan.table.history)
            for plan in self._plans
        )
        layout, chunks = renumbered(
            Layout(
                flavour=moment.version.flavour,
                server=moment.version.number,
                database=self._database,
                definitions=tuple(self._definition_chunks),
                tables=tables,
                sequences=tuple(sequences),
                definers=tuple(sorted({each.definer for each in self._objects if each.definer})),
            )
        )
        records: list[TableRecord] = [
            parts_record(plan.table.name, table_kind(plan.table), plan.parts, ALGORITHM, carried=plan.carried)
            for plan in self._plans
        ]
        if sequences:
            records.append(sequences_record(sequences))
        save_memory(self._state, self._position, [(plan.table.name, plan.remembered()) for plan in self._plans])
        return Image(encode_layout(layout), chunks, image_digest(layout), records, self._omitted())

    def _refuse_changed(self, now: Sequence[Definition]) -> None:
        """Definitions belong to no snapshot: they must be the same at its end. Those of tables with rows here, and of their
        triggers, cannot change meanwhile: `joining.py` holds locks on them.
        """
        locked = {table.name for table in self._moment.tables}
        loose = [
            each for each in self._objects if (each.table or each.name) not in locked or each.kind not in _ON_TABLES
        ]
        before = {each.label: comparable(each) for each in loose}
        after = {each.label: comparable(each) for each in now}
        changed = sorted(label for label in before if before[label] != after.get(label))
        if changed:
            raise SourceChanged(
                f"definitions of {self._server.name} changed while it was read",
                why=", ".join(changed[:5]) + (" ..." if len(changed) > 5 else ""),
                hint="back up when no migration runs",
            )

    def _omitted(self) -> list[tuple[str, str]]:
        omitted = [
            (f"rows of table {table.name}", f"its engine {table.engine} keeps them elsewhere")
            for table in self._moment.elsewhere
        ]
        versioned = {each.name for each in self._objects if each.kind == "table" and "SYSTEM VERSIONING" in each.create}
        omitted += [
            (f"history of table {table.name}", "MariaDB takes it back from 10.11 on only; its current rows are here")
            for table in self._moment.tables
            if table.name in versioned and not table.history
        ]
        if not self._has_accounts:
            omitted.append(("users and their rights", "source.users: true carries them"))
        return omitted
