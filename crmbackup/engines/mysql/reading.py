"""Reading the binary log from one position to another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from crmbackup.engines.mysql import binlog
from crmbackup.engines.mysql.binlog import Event, LogUnusableError, RowFormat
from crmbackup.engines.mysql.connection import Connection, Server, execute, value
from crmbackup.engines.mysql.joining import Moment
from crmbackup.engines.mysql.keys import Key
from crmbackup.engines.mysql.logged import changed_tables, prepared_name
from crmbackup.engines.mysql.planning import ParentTables, TablePlan, inherited
from crmbackup.engines.mysql.touched import Cascade, TableChanges, Tracked, read_cascades

#: Offsets of events are counted modulo that.
FARTHEST = 1 << 32


def _columns_of(connection: Connection, database: str) -> dict[str, list[str]]:
    """The columns of each table in their order, generated ones too."""
    found: dict[str, list[str]] = defaultdict(list)
    for table, column in execute(
        connection,
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = %s"
        " ORDER BY table_name, ordinal_position",
        (database,),
    ):
        found[str(table)].append(str(column))
    return found


class Reading:
    """The log from one position to the other."""

    def __init__(self, server: Server, moment: Moment, parent: ParentTables, plans: Sequence[TablePlan]) -> None:
        self._old, self._new = parent.memory.position, moment.position
        self._file, self._place = self._old.file, self._old.offset
        self._described = self._closed = False
        self._connection = moment.catalog
        self._plans = {plan.table.name: plan for plan in plans}
        self._parent = parent
        settings = int(value(moment.catalog, "SELECT @@lower_case_table_names"))
        self._database = server.database.lower() if settings else server.database
        columns = _columns_of(moment.catalog, server.database)
        self._tables = {
            plan.table.name: Tracked(
                plan.table,
                _borders(plan, parent),
                columns[plan.table.name],
                moment.catalog,
                mariadb=moment.version.mariadb,
            )
            for plan in plans
        }
        self._cascades = read_cascades(moment.catalog, server.database)
        self._formats: dict[int, tuple[RowFormat, Tracked | None]] = {}
        self._elsewhere = False
        self._prepared: set[bytes] = set()
        self._gtids = _gtids(self._old.gtid) if moment.version.mariadb else {}

    def run(self, events: Iterator[Event]) -> None:
        """The events from the old position on. Raises LogUnusableError, pymysql.Error, OSError."""
        for event in events:
            self._move(event)
            if event.kind not in (binlog.ROTATE, binlog.FORMAT):
                self._take(event)
            if self._described and self._file == self._new.file and self._place >= self._new.offset:
                if self._place > self._new.offset:
                    break
                return
        raise LogUnusableError("the binary log ends before this snapshot")

    def _move(self, event: Event) -> None:
        """Follow where the log is, and whether it is one."""
        if not event.made_up:
            # What follows the last end that is told is known by its size; the end of each transaction tells again.
            self._place = (self._place + event.size) % FARTHEST
            if event.end not in (0, self._place):
                raise LogUnusableError("the binary log has a gap")
        if event.kind == binlog.FORMAT:
            found = binlog.format_of(event)
            if not self._described and found.time != self._old.born:
                raise LogUnusableError("the binary log was started over")
            if self._described and found.started:
                raise LogUnusableError("the server was restarted since the last snapshot")
            self._described = True
        elif event.kind == binlog.ROTATE and not event.made_up:
            self._closed = True
        elif event.kind == binlog.ROTATE and binlog.rotation(event) != (self._file, self._place):
            if not self._closed:
                raise LogUnusableError("the server crashed or was restarted since the last snapshot")
            self._file, self._place = binlog.rotation(event)
            self._closed = False
            self._formats.clear()

    def _take(self, event: Event) -> None:
        kind = event.kind
        if kind in binlog.ROWS:
            self._rows(event)
        elif kind == binlog.TABLE_MAP:
            form = binlog.row_format(event)
            known = self._formats.get(form.number)
            if known is None or known[0] != form:
                self._formats[form.number] = (form, self._tracked(form))
        elif kind == binlog.MARIADB_GTID:
            domain, number = binlog.gtid(event)
            if number <= self._gtids.get(domain, -1):
                raise LogUnusableError("GTIDs in the binary log went back")
            self._gtids[domain] = number
        elif kind in (binlog.QUERY, binlog.QUERY_COMPRESSED):
            self._statement(event)
        elif kind == binlog.STOP:
            raise LogUnusableError("the server was restarted since the last snapshot")
        elif not event.ignorable:
            raise LogUnusableError(f"the binary log holds an event of kind {kind}, which is not understood")

    def _tracked(self, form: RowFormat) -> Tracked | None:
        if form.database.decode() == self._database:
            return self._tables.get(form.table.decode())
        return None

    def _rows(self, event: Event) -> None:
        number = int.from_bytes(event.body[:6], "little")
        if number not in self._formats:
            return  # the end of a statement that changed nothing more
        form, tracked = self._formats[number]
        if tracked is None:
            self._elsewhere = True
            return
        try:
            tracked.rows(form, event)
        except LogUnusableError as reason:
            tracked.whole(str(reason))

    def _statement(self, event: Event) -> None:
        database, text = binlog.statement_of(event)
        xa = prepared_name(text)
        if xa:
            end, branch = xa
            if end == "end":
                self._prepared.add(branch)
            elif branch not in self._prepared and not branch.upper().endswith(b"ONE PHASE"):
                raise LogUnusableError("an XA transaction was prepared before the last snapshot and committed after it")
            return
        changed = changed_tables(text, database, self._database, self._tables)
        if changed is None:
            shown = " ".join(text[:60].decode("utf-8", "replace").split())
            raise LogUnusableError(f"the binary log holds a statement that may have changed anything: {shown}")
        for name in changed:
            self._tables[name].whole("its definition was changed, or it was emptied")

    def finish(self) -> dict[str, TableChanges]:
        """All tables, once the log is read. Raises pymysql.Error."""
        times = _last_writes(self._connection, self._plans)
        for name, tracked in self._tables.items():
            tracked.settle()
            old = self._parent.memory.tables.get(name)
            plan = self._plans[name]
            if old is None or old.fingerprint != plan.fingerprint:
                tracked.whole("it is new, or its definition was changed")
            elif not plan.table.transactional:
                tracked.whole(f"{plan.table.engine} belongs to no transaction")
        self._follow_cascades()
        for name, tracked in self._tables.items():
            if not tracked.any and times.get(name, 0) > self._old.time:
                tracked.whole("it was written to, and the binary log does not say what")
        return {name: tracked.changes for name, tracked in self._tables.items()}

    def _follow_cascades(self) -> None:
        """InnoDB deletes and changes rows that refer to others by itself: no log has them."""
        reached: set[str] = set()
        again = True
        while again:
            again = False
            for link in self._cascades:
                if link.child in reached or link.child not in self._tables or not self._causes(link, reached):
                    continue
                reached.add(link.child)
                again = True
                self._tables[link.child].whole(f"foreign keys change it with {link.parent}")

    def _causes(self, link: Cascade, reached: set[str]) -> bool:
        if link.database != self._database:
            # By which keys its rows change in turn is not known: those may begin at any table of any database.
            return self._elsewhere or any(each.any or each.changes.whole for each in self._tables.values())
        parent = self._tables.get(link.parent)
        if parent is None or parent.changes.whole:
            return True
        moved = parent.moved if link.by_key else parent.any
        return (link.deletes and parent.deleted) or (link.updates and moved)


def _borders(plan: TablePlan, parent: ParentTables) -> list[Key]:
    return [part.last for part in inherited(plan.table, parent)]


def _gtids(text: str) -> dict[int, int]:
    """The last number of each domain of MariaDB's GTIDs."""
    parts = [each.split("-") for each in text.split(",") if each.count("-") == 2]
    return {int(domain): int(number) for domain, _, number in parts}


def _last_writes(connection: Connection, tables: Mapping[str, TablePlan]) -> dict[str, int]:
    """When InnoDB saw the last change of each table, as far as it remembers: a sign of writes that were not logged."""
    if not tables:
        return {}
    database = next(iter(tables.values())).table.database
    sql = (
        "SELECT table_name, UNIX_TIMESTAMP(update_time) FROM information_schema.tables"
        " WHERE table_schema = %s AND update_time IS NOT NULL"
    )
    return {str(name): int(seconds) for name, seconds in execute(connection, sql, (database,))}
