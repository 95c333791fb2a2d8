"""Rebuilding a database: tables, rows, what follows from rows; and taking all of it back when that fails."""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

import pymysql

from crmbackup.core.errors import (
    CrmBackupError,
    ObjectDamaged,
    VerificationFailed,
)
from crmbackup.core.events import Emit, Notice, Warned
from crmbackup.core.files import local_error
from crmbackup.engines.base import Restore, Workers
from crmbackup.engines.mysql import restore_accounts as accounts
from crmbackup.engines.mysql import restore_clean as clean
from crmbackup.engines.mysql import restore_data as data
from crmbackup.engines.mysql.catalog import read_database
from crmbackup.engines.mysql.connection import (
    Connection,
    code_of,
    connect,
    execute,
    quoted,
    target_errors,
    text_of,
    value,
    version_of,
)
from crmbackup.engines.mysql.definitions import Definition, Definitions, decode_definitions
from crmbackup.engines.mysql.dialect import session_settings
from crmbackup.engines.mysql.layout import image_digest
from crmbackup.engines.mysql.objects import read_triggers
from crmbackup.engines.mysql.restore_objects import for_target, make_objects, make_triggers, make_views
from crmbackup.engines.mysql.restore_plan import Choice, Plan, check_fillable, choose, read_engines
from crmbackup.engines.mysql.restore_sequences import set_counter, set_sequence
from crmbackup.engines.mysql.restore_verify import sum_table
from crmbackup.engines.mysql.statements import batches
from crmbackup.engines.mysql.zones import make_zones, refuse_unknown, zones_of
from crmbackup.engines.pieces import Piece
from crmbackup.engines.private import private_place, remove_leftovers
from crmbackup.engines.sums import totals
from crmbackup.engines.targets import not_taken_back, refuse_what_is_there

#: Tables that one task of a worker makes.
_BATCH = 20


class MysqlRestore(Restore):
    """One database in the making."""

    def __init__(self, plan: Plan, emit: Emit, workers: Workers) -> None:
        """Raises ObjectDamaged, LocalError kinds."""
        if image_digest(plan.layout) != plan.digest:
            raise ObjectDamaged("the layout of the snapshot is not what its digest says")
        self._plan = plan
        self._emit = emit
        self._workers = workers
        self._content = plan.options.content
        self._committed = False
        self._created = False
        self._marked = False
        self._holder: Connection | None = None
        self._triggers: list[Definition] = []
        self._made: Sequence[str] = ()
        #: What comes back, and all that the snapshot has.
        self.choice = Choice()
        self.definitions = Definitions(())
        #: Whether objects run as their definers, not as whoever restores.
        self.definers = plan.options.roles != "ignore"
        # Definitions may hold the hashes of passwords: what a killed run left of them goes first.
        temporary = Path(tempfile.gettempdir())
        remove_leftovers(temporary)
        self._place = ExitStack()
        self._directory = self._place.enter_context(private_place(temporary, None)).path
        self._alive = self._directory / "alive"
        self._alive.touch(0o600)
        self._session = data.Session(plan.server, self._alive, local_infile=True)

    def stages(self) -> Iterator[Mapping[int, object]]:
        yield {number: Piece(self._piece(number)) for number in self._plan.layout.definitions}
        self._read_definitions()
        self._prepare()
        if self._content != "schema":
            yield self._loads()

    @property
    def place(self) -> Callable[[object, bytes], object]:
        return data.place

    def _piece(self, number: int) -> Path:
        return self._directory / f"piece-{number}"

    def _read_definitions(self) -> None:
        try:
            text = b"".join(self._piece(number).read_bytes() for number in self._plan.layout.definitions)
        except OSError as error:
            raise local_error(error, f"read {self._directory}") from error
        self.definitions = decode_definitions(text)

    def _prepare(self) -> None:
        """Make the database, and its tables without what is added once they are filled."""
        plan, server = self._plan, self._plan.server
        with target_errors(server):
            holder = self._holder = connect(server.at(""))
            data.set_optional(holder)
            self._session = data.Session(server, self._alive, local_infile=bool(value(holder, "SELECT @@local_infile")))
            self.choice = choose(plan, self.definitions, read_engines(holder), self._emit)
            if not plan.private and self._content != "data":
                refuse_unknown(holder, server, self.choice.others)
            self._make_accounts(holder)
        if plan.options.create:
            accounts.create_database(holder, server, plan.layout.database, self._emit)
            self._created = True
        with target_errors(server):
            accounts.refuse_busy(holder, server)
            execute(holder, f"USE {quoted(server.database)}")
            if not self._created:
                self._claim(holder)
            self._mark(holder)
        if self._content == "data":
            self._take_triggers(holder)
        else:
            self._make_tables(holder)

    def _make_accounts(self, holder: Connection) -> None:
        plan = self._plan
        if plan.options.roles != "create" or self._content == "data":
            return
        with target_errors(plan.server, "accounts"):
            if not plan.neutral:
                accounts.make_users(holder, self.definitions.accounts)
            missing = accounts.missing_accounts(holder, plan.layout.definers)
            made = plan.layout.definers if missing is None else missing
            if plan.neutral:
                # What did not work in the source, as its definer was dropped, shows itself as it did there.
                made = [name for name in made if name not in self._dead()]
            accounts.make_accounts(holder, made)
            self._made = missing or []

    def _dead(self) -> set[str]:
        """Definers of views of which none worked in the source."""
        views = self.definitions.of("view")
        return {each.definer for each in views if not each.columns} - {each.definer for each in views if each.columns}

    def _claim(self, holder: Connection) -> None:
        """Remove what a killed restore left; refuse a database that somebody uses."""
        database = self._plan.server.database
        mark = clean.read_mark(holder, database)
        if mark is not None:
            self._emit(Notice("a restore to this database was not finished: what it left is removed"))
            clean.undo_marked(holder, database, mark)
        if self._content != "data":
            refuse_what_is_there(self._plan.server.name, clean.what_is_there(holder, database))
        else:
            check_fillable(holder, self._plan.server, self._plan.tables)

    def _mark(self, holder: Connection) -> None:
        plan, database = self._plan, self._plan.server.database
        names = [table.name for table in plan.tables] if self._content == "data" else []
        if names:
            self._triggers = [each for each in read_triggers(holder, database) if each.table in names]
        was = read_database(holder, database)
        said = {
            "restoring": plan.digest,
            "content": self._content,
            "tables": names,
            "triggers": [asdict(each) for each in self._triggers],
            "database": was,
        }
        self._marked = True
        clean.set_mark(holder, said)
        wanted = plan.layout.database
        if self._content != "data" and any(was[key] != wanted[key] for key in ("charset", "collation")):
            self._emit(Notice(f"the database's own character set becomes that of the snapshot: {wanted['charset']}"))
            execute(holder, clean.database_sql(database, wanted, "ALTER"))

    def _take_triggers(self, holder: Connection) -> None:
        """They would act on rows that come back; they are made again at the end."""
        with target_errors(self._plan.server, "triggers"):
            for each in self._triggers:
                execute(holder, f"DROP TRIGGER {quoted(self._plan.server.database, each.name)}")

    def _make_tables(self, holder: Connection) -> None:
        server = self._plan.server
        for setting in session_settings(version_of(holder)):
            execute(holder, setting)
        for each in self.choice.of("sequence"):
            with target_errors(server, each.label):
                execute(holder, each.create)
        futures = []
        for tables in batches(self.choice.tables, _BATCH):
            work = [(table.definition.label, table.create) for table in tables]
            futures.append(self._workers.submit(data.run_statements, self._session, work))
        _all(futures)

    def _loads(self) -> Mapping[int, object]:
        loads: dict[int, list[data.Load]] = defaultdict(list)
        for table in self._plan.tables:
            for part in table.parts:
                loads[part.chunk].append(data.Load(table.name, table.columns, part.rows, table.history))
        return {number: data.Loads(self._session, tuple(found)) for number, found in loads.items()}

    def commit(self, placed: Mapping[int, object], workers: Workers) -> None:
        server, holder = self._plan.server, self._holder
        assert holder is not None
        if self._content != "schema":
            self._compare_warned(self._count(placed), workers)
        if self._content != "data":
            self._add_keys(workers)
        if self._content != "schema":
            self._set_counters(holder)
        if self._content == "data":
            with target_errors(server, "triggers"):
                make_triggers(holder, server.database, self._triggers)
        else:
            self._make_objects(holder)
        workers.each(data.leave)
        with target_errors(server):
            clean.clear_mark(holder, server.database)
        self._committed = True

    def _count(self, placed: Mapping[int, object]) -> dict[str, str]:
        """Every table took as many rows as the snapshot says; gives tables with warnings, each with the first."""
        expected = {table.name: sum(part.rows for part in table.parts) for table in self._plan.tables}
        found: Counter[str] = Counter()
        warned: dict[str, str] = {}
        for values in placed.values():
            assert isinstance(values, tuple)
            for item in values:
                found[item.table] += item.rows
                if item.warning:
                    warned.setdefault(item.table, item.warning)
        for name, rows in expected.items():
            if found[name] != rows:
                raise VerificationFailed(
                    f"table {name} took {found[name]} rows instead of {rows}",
                    hint="nothing was kept; restore again, and run `crmbackup check` if it fails again",
                )
        return warned

    def _compare_warned(self, warned: Mapping[str, str], workers: Workers) -> None:
        """The server only warns where it cuts a value or takes another: such tables are read again."""
        tables = {table.name: table for table in self._plan.tables if table.name in warned}
        futures = {name: workers.submit(sum_table, self._plan.server, name) for name in tables}
        for name, future in futures.items():
            if future.result() != totals(tables[name].parts):
                raise VerificationFailed(
                    f"table {name} does not hold what the snapshot does",
                    why=f"the server took other values: {warned[name]}",
                    hint="nothing was kept; look whether the server's settings and version are like the source's",
                )

    def _add_keys(self, workers: Workers) -> None:
        """Keys of large tables first, then foreign keys, which need them on both sides."""
        tables = sorted(self.choice.tables, key=lambda table: -table.rows)
        for part in ("keys", "foreign"):
            work = [
                (f"{part} of table {table.name}", table.alter(getattr(table, part)))
                for table in tables
                if getattr(table, part)
            ]
            _all([workers.submit(data.run_statements, self._session, [item]) for item in work])

    def _set_counters(self, holder: Connection) -> None:
        """Sequences and AUTO_INCREMENT go on where they were. What was made by the snapshot's statements counts already."""
        plan, server = self._plan, self._plan.server
        chosen = {each.name for each in self.choice.of("sequence")}
        for sequence in plan.layout.sequences:
            if sequence.name in chosen:
                with target_errors(server, f"sequence {sequence.name}"):
                    set_sequence(holder, server.database, sequence)
        if self._content == "data":
            names = {table.name for table in plan.tables}
            for table in self.choice.tables:
                if table.name in names and table.counter:
                    with target_errors(server, f"table {table.name}"):
                        set_counter(holder, server.database, table.name, table.counter)

    def _make_objects(self, holder: Connection) -> None:
        plan, server = self._plan, self._plan.server
        old = str(plan.layout.database["name"])

        def of(*kinds: str) -> list[Definition]:
            return [for_target(each, old, server.database, definer=self.definers) for each in self.choice.of(*kinds)]

        if plan.private:
            with target_errors(server, "time zones"):
                make_zones(holder, zones_of(self.choice.others))
        make_objects(holder, server, of("function", "procedure", "package", "package body"))
        carried = plan.options.roles == "create" and not plan.neutral and plan.wanted is None
        if carried:
            with target_errors(server, "rights"):
                accounts.give_rights(holder, self.definitions.accounts, old, server.database, as_far_as_possible=True)
        self._let_objects_run(holder)
        broken = make_views(holder, server, of("view"))
        make_objects(holder, server, of("trigger", "event"))
        if carried:
            with target_errors(server, "rights"):
                accounts.give_rights(holder, self.definitions.accounts, old, server.database)
        for name, reason in broken.items():
            self._emit(Warned("restore-left-out", f"view {name} cannot be made: {reason}"))
        # One that did not work in the source either shows no columns.
        self.choice.left_out += [each for each in self.choice.of("view") if each.name in broken and not each.columns]
        asleep = [each.name for each in self.choice.of("event") if each.enabled]
        if asleep and not plan.neutral:
            names = ", ".join(asleep)
            self._emit(Notice(f"events stay off until you switch them on (ALTER EVENT ... ENABLE): {names}"))

    def _let_objects_run(self, holder: Connection) -> None:
        """Rights for the accounts that were made."""
        dead = self._dead()
        names = [name for name in self._made if name not in dead]
        try:
            accounts.let_objects_run(holder, names, self._plan.server.database)
        except pymysql.Error as error:
            if code_of(error) not in accounts.DENIED:
                raise
            reason = f"{', '.join(names)} got no rights on the database, so what runs as them fails: {text_of(error)}"
            self._emit(Warned("restore-left-out", reason))

    def close(self, because: BaseException | None = None) -> None:
        """Take everything back unless it was committed. because: why it was not. Raises TargetError when that fails."""
        data.leave()
        # First the file that lets workers write, then their sessions: none can begin again.
        self._alive.unlink(missing_ok=True)
        try:
            if not self._committed:
                self._take_back(because)
        finally:
            if self._holder is not None and self._holder.open:
                self._holder.close()
            self._place.close()

    def _take_back(self, because: BaseException | None) -> None:
        server = self._plan.server
        try:
            if self._created:
                accounts.drop_database(server)
            elif self._marked:
                with target_errors(server), closing(connect(server)) as connection:
                    mark = clean.read_mark(connection, server.database)
                    if mark is not None:
                        clean.undo_marked(connection, server.database, mark)
        except CrmBackupError as error:
            raise not_taken_back(server.name, f"table {clean.MARK}", error, because) from error


def _all(futures: Sequence[Future[None]]) -> None:
    """Wait for all; raises the first error."""
    for future in futures:
        future.result()
