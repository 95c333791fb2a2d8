"""Rebuilding a database: definitions, rows, what follows from rows; and taking all of it back when that fails."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg

from crmbackup.core.errors import CrmBackupError, ObjectDamaged, TargetError, TargetExists, VerificationFailed
from crmbackup.core.events import Emit, Notice
from crmbackup.core.files import local_error
from crmbackup.engines.base import Restore, Workers
from crmbackup.engines.postgres import restore_clean as clean
from crmbackup.engines.postgres import restore_data as data
from crmbackup.engines.postgres import restore_finish as finishing
from crmbackup.engines.postgres.connection import Server, connect, quoted, target_errors
from crmbackup.engines.postgres.ephemeral import private_place, remove_leftovers
from crmbackup.engines.postgres.layout import TableLayout, image_digest
from crmbackup.engines.postgres.programs import Program
from crmbackup.engines.postgres.records import LARGE_OBJECTS
from crmbackup.engines.postgres.restore_plan import Plan, choose_entries
from crmbackup.engines.postgres.restore_program import list_entries, program_for, run_section
from crmbackup.engines.postgres.restore_roles import (
    MAINTENANCE,
    create_database,
    drop_database,
    give_settings,
    make_roles,
)
from crmbackup.engines.postgres.restore_tables import check_fillable
from crmbackup.engines.postgres.restore_toc import Entry, without
from crmbackup.engines.postgres.roles import literal

Connection = psycopg.Connection[tuple[Any, ...]]

_ARCHIVE = "definitions.dump"
#: One chunk of large objects goes through a table of the session, so that no byte of it is looked at here.
_PIECES_TABLE = "CREATE TEMP TABLE crmbackup_pieces(loid oid, pos bigint, data bytea) ON COMMIT DROP"
_PIECES_COPY = "COPY pg_temp.crmbackup_pieces (loid, pos, data) FROM STDIN"
_PIECES_PUT = (
    "SELECT count(pg_catalog.lo_put(loid, pos, data)::text) FROM pg_temp.crmbackup_pieces"
    " WHERE pg_catalog.length(data) > 0"
)


class PostgresRestore(Restore):
    """One database in the making."""

    def __init__(self, plan: Plan, emit: Emit) -> None:
        """Raises ObjectDamaged, LocalError kinds."""
        if image_digest(plan.layout) != plan.digest:
            raise ObjectDamaged("the layout of the snapshot is not what its digest says")
        self._plan = plan
        self._emit = emit
        self._content = plan.options.content
        self._committed = False
        self._marked = False
        self._created = False
        self._holder: Connection | None = None
        self._program: Program | None = None
        self._entries: list[Entry] = []
        self._tables: list[TableLayout] = []
        #: Statements that give a neutral database what was taken from it.
        self.neutralised: list[str] = []
        # The archive's definitions may hold passwords of user mappings: what a killed run left of them goes first.
        temporary = Path(tempfile.gettempdir())
        remove_leftovers(temporary)
        self._place = ExitStack()
        self._directory = self._place.enter_context(private_place(temporary, None)).path
        self._alive = self._directory / "alive"
        self._alive.touch(0o600)
        self._session = data.Session(
            plan.server,
            f"crmbackup-restore-{secrets.token_hex(8)}",
            self._alive,
            replica=self._content == "data",
        )

    def stages(self) -> Iterator[Mapping[int, object]]:
        if self._content != "data":
            yield {number: data.PieceOfArchive(self._piece(number)) for number in self._plan.layout.archive}
            self._read_archive()
        self._prepare()
        if self._content != "schema":
            yield self._loads()

    @property
    def place(self) -> Callable[[object, bytes], object]:
        return data.place

    def _piece(self, number: int) -> Path:
        return self._directory / f"piece-{number}"

    def _read_archive(self) -> None:
        """Put the pieces together, and choose what comes back."""
        plan = self._plan
        archive = self._directory / _ARCHIVE
        try:
            with open(archive, "xb", opener=data.private) as stream:
                for number in plan.layout.archive:
                    with self._piece(number).open("rb") as piece:
                        shutil.copyfileobj(piece, stream)
            head = _head(archive)
        except OSError as error:
            raise local_error(error, f"write {archive}") from error
        at = plan.server if not plan.options.create else plan.server.at(MAINTENANCE)
        with target_errors(at), connect(at) as connection:
            major = connection.info.server_version // 10000
            row = connection.execute("SELECT pg_catalog.current_setting('is_superuser') = 'on'").fetchone()
            available = {
                str(name) for (name,) in connection.execute("SELECT name FROM pg_catalog.pg_available_extensions")
            }
        superuser = bool(row and row[0])
        self._program = program_for(head, plan.layout.major, major, plan.programs)
        entries = list_entries(self._program, archive)
        self._entries = choose_entries(plan, entries, self._emit, superuser=superuser, available=available)

    def _prepare(self) -> None:
        """Make the database and all definitions that rows need."""
        plan, options = self._plan, self._plan.options
        if options.roles == "create":
            make_roles(plan.server.at(MAINTENANCE) if options.create else plan.server, plan.layout)
        if options.create:
            create_database(plan.server, plan.layout, self._emit)
            self._created = True
        server = plan.server
        with target_errors(server):
            holder = self._holder = connect(server)
            if not clean.take_lock(holder):
                raise TargetError(f"another restore to {server.name} is at work", hint="wait until it is over")
            if not self._created:
                self._claim(holder)
            tables = [quoted(table.schema, table.name) for table in plan.tables]
            only_data = self._content == "data"
            if only_data:
                check_fillable(holder, server, plan.layout, plan.tables, large_objects=self._with_large_objects)
            clean.set_mark(
                holder,
                plan.digest,
                self._content,
                self._session.token,
                tables if only_data else (),
                large_objects=self._with_large_objects,
            )
            self._marked = True
        if not only_data:
            self._section("pre-data", self._entries)
            if plan.neutral:
                with target_errors(server):
                    self.neutralised += finishing.neutralise(holder)
        if self._with_large_objects:
            with target_errors(server, "large objects"):
                finishing.create_large_objects(holder, plan.layout.large_objects)

    @property
    def _ours(self) -> bool:
        return self._plan.options.roles == "ignore"

    @property
    def _with_large_objects(self) -> bool:
        return self._plan.wanted is None and self._content != "schema" and bool(self._plan.layout.large_objects)

    def _claim(self, holder: Connection) -> None:
        """Remove what a killed restore left; refuse a database that somebody uses."""
        mark = clean.read_mark(holder)
        if mark is not None:
            self._emit(Notice("a restore to this database was not finished: what it left is removed"))
            clean.undo_marked(holder, mark)
        if self._content != "data":
            refuse_what_is_there(self._plan.server, clean.what_is_there(holder))

    def _section(self, section: str, entries: Sequence[Entry], jobs: int = 1) -> None:
        assert self._program is not None
        archive = self._directory / _ARCHIVE
        token = self._session.token
        run_section(
            self._program, self._plan.server, archive, section, entries, jobs=jobs, ours=self._ours, token=token
        )

    def _loads(self) -> Mapping[int, object]:
        plan = self._plan
        loads: dict[int, list[data.Load]] = defaultdict(list)
        encoding = str(plan.layout.database["encoding"])
        self._tables = self._without_left_out() if plan.neutral else list(plan.tables)
        for table in self._tables:
            into = table.root or (table.schema, table.name)
            columns = f" ({', '.join(map(quoted, table.columns))})" if table.columns else ""
            for part in table.parts:
                # The bytes are the source's, whatever the encodings of this session and of the target.
                copy = f"COPY {quoted(*into)}{columns} FROM STDIN (ENCODING {literal(encoding)})"
                loads[part.chunk].append(data.Load(f"table {table.label}", copy, part.rows))
        if self._with_large_objects:
            for part in plan.layout.large_object_parts:
                loads[part.chunk].append(
                    data.Load(LARGE_OBJECTS, _PIECES_COPY, part.rows, before=_PIECES_TABLE, after=_PIECES_PUT)
                )
        return {number: data.Loads(self._session, tuple(found)) for number, found in loads.items()}

    def _without_left_out(self) -> list[TableLayout]:
        """The tables without those of extensions that a drill leaves out."""
        assert self._holder is not None
        with target_errors(self._plan.server):
            rows = self._holder.execute(
                "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c"
                " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r'"
            ).fetchall()
        there = set(rows)
        result = []
        for table in self._plan.tables:
            if table.extension and (table.schema, table.name) not in there:
                self._emit(Notice(f"without its extension, table {table.label} does not come back in the drill"))
            else:
                result.append(table)
        return result

    def commit(self, placed: Mapping[int, object], workers: Workers) -> None:
        plan, server = self._plan, self._plan.server
        self._leave(workers)
        if self._content != "schema":
            self._count(placed)
        holder = self._holder
        assert holder is not None
        if self._content != "schema":
            with target_errors(server, "sequences"):
                finishing.set_sequences(holder, self._sequences(holder))
        if self._with_large_objects:
            with target_errors(server, "large objects"):
                finishing.finish_large_objects(holder, plan.layout.large_objects, roles=not self._ours)
        if self._content != "data":
            last = [entry for entry in self._entries if entry.kind == "EVENT TRIGGER"]
            before = without(self._entries, {entry.id for entry in last})
            self._section("post-data", before, workers.count)
            if self._content == "all":
                finishing.refresh(holder, server, self._matviews(), self._emit, neutral=plan.neutral)
        if self._content != "schema":
            finishing.analyze(holder, server, workers)
        if self._content != "data" and last:
            # At the very end, so that they see nothing of the restore.
            self._section("post-data", [entry for entry in self._entries if entry not in before])
            if plan.neutral:
                with target_errors(server):
                    self.neutralised += finishing.neutralise(holder)
        if self._created:
            give_settings(holder, server, plan.layout, owners=not self._ours, neutral=plan.neutral)
        self._end(holder)

    def _end(self, holder: Connection) -> None:
        """From here on it is a whole database. This commit is the one that makes all others durable."""
        with target_errors(self._plan.server):
            if self._content != "data" and any(entry.kind == "EVENT TRIGGER" for entry in self._entries):
                holder.execute("SET session_replication_role = replica")  # or they would see this
            holder.execute("SET synchronous_commit = on")
            clean.clear_mark(holder)
        self._committed = True

    def _matviews(self) -> list[str]:
        names = self._plan.layout.refresh
        if self._plan.wanted is None:
            return list(names)
        assert self._holder is not None
        with target_errors(self._plan.server):
            rows = self._holder.execute(
                "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c"
                " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'm'"
            ).fetchall()
        there = {row[0] for row in rows}
        return [name for name in names if name in there]

    def _sequences(self, holder: Connection) -> list[Any]:
        """With tables chosen by name, those that came along."""
        sequences = list(self._plan.layout.sequences)
        if self._plan.wanted is None and self._content == "all" and not self._plan.neutral:
            return sequences
        rows = holder.execute(
            "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c"
            " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'S'"
        ).fetchall()
        there = set(rows)
        if self._content == "data" and self._plan.wanted is not None:
            owned = _sequences_of(holder, [quoted(table.schema, table.name) for table in self._plan.tables])
            there &= owned
        return [item for item in sequences if (item.schema, item.name) in there]

    def _count(self, placed: Mapping[int, object]) -> None:
        """Every table took as many rows as the snapshot says."""
        plan = self._plan
        expected: Counter[str] = Counter()
        for table in self._tables:
            expected[f"table {table.label}"] += sum(part.rows for part in table.parts)
        if self._with_large_objects:
            expected[LARGE_OBJECTS] += sum(part.rows for part in plan.layout.large_object_parts)
        found: Counter[str] = Counter()
        for value in placed.values():
            assert isinstance(value, tuple)
            for label, rows in value:
                found[label] += rows
        for label in sorted({*expected, *found}):
            if expected[label] != found[label]:
                raise VerificationFailed(
                    f"{label} took {found[label]} rows instead of {expected[label]}",
                    hint="nothing was kept; restore again, and run `crmbackup check` if it fails again",
                )

    def _leave(self, workers: Workers) -> None:
        data.leave()
        workers.each(data.leave)

    def close(self, because: BaseException | None = None) -> None:
        """Take everything back unless it was committed. because: why it was not. Raises TargetError when that fails."""
        data.leave()
        # First the file that lets workers write, then their sessions: none can begin again.
        self._alive.unlink(missing_ok=True)
        try:
            if not self._committed:
                self._take_back(because)
        finally:
            if self._holder is not None:
                self._holder.close()
            self._place.close()

    def _take_back(self, because: BaseException | None) -> None:
        server = self._plan.server
        try:
            if self._created:
                if self._holder is not None:
                    self._holder.close()
                drop_database(server)
            elif self._marked:
                with target_errors(server), connect(server) as connection:
                    clean.end_sessions(connection, self._session.token)
                    if self._holder is not None:
                        self._holder.close()
                    mark = clean.read_mark(connection)
                    if mark is not None:
                        clean.undo_marked(connection, mark)
        except CrmBackupError as error:
            raise TargetError(
                f"what was restored to {server.name} so far could not be removed again",
                why=f"{error}; the restore had ended because: {because or 'it was not finished'}",
                hint=f"the schema {clean.MARK} in it says that it is not whole; the next restore to it removes it",
            ) from error


def refuse_what_is_there(server: Server, found: Mapping[str, tuple[int, str]]) -> None:
    """Raises TargetExists unless the database is empty."""
    if found:
        listed = ", ".join(
            f"{count} {kind}{'s' if count > 1 else ''} ({name})" for kind, (count, name) in found.items()
        )
        raise TargetExists(
            f"the database {server.name} is not empty",
            why=f"it holds {listed}",
            hint="restore to a database of another name, and let --create make it",
        )


def _head(archive: Path) -> bytes:
    with archive.open("rb") as stream:
        return stream.read(8)


def _sequences_of(connection: Connection, tables: Sequence[str]) -> set[tuple[str, str]]:
    rows = connection.execute(
        "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c"
        " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid"
        " AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i')"
        " WHERE c.relkind = 'S' AND d.refobjid = ANY(%s::text[]::pg_catalog.regclass[])",
        (list(tables),),
    ).fetchall()
    return set(rows)
