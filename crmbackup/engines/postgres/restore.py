"""Rebuilding a database: definitions, rows, what follows from rows; and taking all of it back when that fails."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg

from crmbackup.core.errors import CrmBackupError, ObjectDamaged, TargetError, VerificationFailed
from crmbackup.core.events import Emit, Notice
from crmbackup.core.files import local_error
from crmbackup.engines.base import Restore, Workers
from crmbackup.engines.pieces import Piece, private
from crmbackup.engines.postgres import restore_clean as clean
from crmbackup.engines.postgres import restore_data as data
from crmbackup.engines.postgres import restore_finish as finishing
from crmbackup.engines.postgres import restore_functions as functions
from crmbackup.engines.postgres import restore_indexes as indexes
from crmbackup.engines.postgres.connection import Server, connect, quoted, target_errors
from crmbackup.engines.postgres.layout import TableLayout, image_digest
from crmbackup.engines.postgres.programs import Program
from crmbackup.engines.postgres.records import LARGE_OBJECTS
from crmbackup.engines.postgres.restore_keys import BrokenKeys, make_foreign_keys
from crmbackup.engines.postgres.restore_plan import Plan, choose_entries
from crmbackup.engines.postgres.restore_program import list_entries, program_for, run_section, text_of_entries
from crmbackup.engines.postgres.restore_roles import (
    beside,
    create_database,
    drop_database,
    drop_roles,
    give_meaning,
    give_settings,
    make_roles,
)
from crmbackup.engines.postgres.restore_tables import check_fillable
from crmbackup.engines.postgres.restore_toc import Entry, without
from crmbackup.engines.postgres.roles import literal
from crmbackup.engines.private import private_place, remove_leftovers
from crmbackup.engines.targets import not_taken_back, refuse_what_is_there

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
        self._made_roles: list[str] = []
        self._holder: Connection | None = None
        self._program: Program | None = None
        self._entries: list[Entry] = []
        self._tables: list[TableLayout] = []
        self._superuser = False
        self._major = 0
        #: Statements that give a neutral database what was taken from it; and, before those, the keys that rows break.
        self.neutralised: list[str] = []
        self._whole: list[str] = []
        self._lent: list[str] = []  # statements that take back what functions were given
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
            yield {number: Piece(self._piece(number)) for number in self._plan.layout.archive}
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
            with open(archive, "xb", opener=private) as stream:
                for number in plan.layout.archive:
                    with self._piece(number).open("rb") as piece:
                        shutil.copyfileobj(piece, stream)
            head = _head(archive)
        except OSError as error:
            raise local_error(error, f"write {archive}") from error
        with target_errors(self._beside), connect(self._beside) as connection:
            self._major = connection.info.server_version // 10000
            row = connection.execute("SELECT pg_catalog.current_setting('is_superuser') = 'on'").fetchone()
        self._superuser = bool(row and row[0])
        self._program = program_for(head, plan.layout.major, plan.programs)
        entries = list_entries(self._program, archive)
        self._entries = choose_entries(plan, entries, self._emit, superuser=self._superuser)

    def _prepare(self) -> None:
        """Make the database and all definitions that rows need."""
        plan, options = self._plan, self._plan.options
        if options.roles == "create":
            self._made_roles = make_roles(self._beside, plan.layout)
        if options.create:
            create_database(plan.server, plan.layout, self._emit)
            self._created = True
            give_meaning(plan.server, plan.layout)
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
            assert self._program is not None
            with target_errors(server, "functions"):
                archive = self._directory / _ARCHIVE
                self._lent = functions.prepare(holder, self._program, archive, self._entries, plan.layout)
            if plan.neutral:
                with target_errors(server):
                    self.neutralised += finishing.neutralise(holder)
        if self._with_large_objects:
            with target_errors(server, "large objects"):
                finishing.create_large_objects(holder, plan.layout.large_objects)

    @property
    def _beside(self) -> Server:
        """Where to be when the database may not be there."""
        return beside(self._plan.server) if self._plan.options.create else self._plan.server

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
            refuse_what_is_there(self._plan.server.name, clean.what_is_there(holder))

    def _section(self, section: str, entries: Sequence[Entry], jobs: int = 1) -> None:
        assert self._program is not None
        program, server, archive, token = (
            self._program,
            self._plan.server,
            self._directory / _ARCHIVE,
            self._session.token,
        )
        run_section(program, server, self._major, archive, section, entries, jobs=jobs, ours=self._ours, token=token)

    def _loads(self) -> Mapping[int, object]:
        plan = self._plan
        loads: dict[int, list[data.Load]] = defaultdict(list)
        encoding = str(plan.layout.database["encoding"])
        self._tables = [table for table in plan.tables if table.label not in plan.left_out.tables]
        for table in self._tables:
            into = table.root or (table.schema, table.name)
            columns = f" ({', '.join(map(quoted, table.columns))})" if table.columns else ""
            for part in table.parts:
                # The bytes are the source's, whatever the encodings of this session and of the target.
                copy = f"COPY {quoted(*into)}{columns} FROM STDIN (ENCODING {literal(encoding)})"
                # Their unique indexes are there: a row could wait for another worker's, which ends when all is done.
                apart = self._content == "data" or table.extension
                loads[part.chunk].append(data.Load(f"table {table.label}", copy, part.rows, apart=apart))
        if self._with_large_objects:
            for part in plan.layout.large_object_parts:
                loads[part.chunk].append(
                    data.Load(LARGE_OBJECTS, _PIECES_COPY, part.rows, before=_PIECES_TABLE, after=_PIECES_PUT)
                )
        return {number: data.Loads(self._session, tuple(found)) for number, found in loads.items()}

    def commit(self, placed: Mapping[int, object], workers: Workers) -> None:
        plan, server = self._plan, self._plan.server
        taken = sum(workers.each(data.finish, self._session), start=data.finish(self._session))
        if self._content != "schema":
            self._count(taken)
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
            self._follow_rows(holder, self._after_indexes(holder, before, workers), workers.count)
            if self._content == "all":
                finishing.refresh(holder, server, self._matviews(), self._emit, neutral=plan.neutral)
        if self._content != "schema":
            finishing.analyze(holder, server, workers)
        with target_errors(server, "functions"):
            functions.take_back(holder, self._lent)
        if self._content != "data" and last:
            # At the very end, so that they see nothing of the restore.
            self._section("post-data", [entry for entry in self._entries if entry not in before])
            if plan.neutral:
                with target_errors(server):
                    self.neutralised += finishing.neutralise(holder)
        if self._created:
            give_settings(holder, server, plan.layout, self._emit, owners=not self._ours, neutral=plan.neutral)
        # Rows go before foreign servers can be asked again.
        self.neutralised = self._whole + self.neutralised
        self._end(holder)

    def _after_indexes(self, holder: Connection, entries: Sequence[Entry], workers: Workers) -> list[Entry]:
        """Build the indexes of large tables that sorting makes; gives the entries that are left."""
        tables = {f"1259/{table.oid}": (table.schema, table.name) for table in self._tables}
        with target_errors(self._plan.server):
            chosen = indexes.candidates(holder, entries, tables)
        if not chosen:
            return list(entries)
        assert self._program is not None
        text = text_of_entries(self._program, self._directory / _ARCHIVE, chosen)
        builds, encoding = indexes.builds(chosen, text), str(self._plan.layout.database["encoding"])
        futures = [workers.submit(indexes.build, self._session, encoding, build) for build in builds]
        # The first that fails ends the restore, and `close` the others' sessions.
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()
        indexes.follow(holder, self._plan.server, encoding, builds)
        built = {build.entry.id for build in builds}
        left = without(entries, built)
        # pg_restore takes a comment for a part of the section of what stands before it in its list. Where that was a key, it
        # could be a table now, and the comment be left out. In a list of their own they follow what is not in the list.
        there = {entry.id for entry in left} | built
        self._section("post-data", [entry for entry in entries if entry.id not in there])
        return left

    def _follow_rows(self, holder: Connection, entries: Sequence[Entry], jobs: int) -> None:
        """Indexes, constraints, triggers and the like."""
        keys = [entry for entry in entries if entry.kind == "FK CONSTRAINT"]
        if self._plan.options.foreign_keys == "check" or not keys:
            self._section("post-data", entries, jobs)
            return
        first = without(entries, {entry.id for entry in keys})
        self._section("post-data", first, jobs)
        made = {entry.id for entry in [*first, *keys]}
        remarks = [entry for entry in entries if entry.id not in made]
        try:
            self._section("post-data", keys, jobs)
        except TargetError as error:
            self._emit(Notice(f"foreign keys are made one by one: {error}"))
            broken = self._make_keys(holder, keys, remarks)
            remarks = [entry for entry in remarks if not broken.left_out & set(entry.needs)]
        self._section("post-data", remarks)

    def _make_keys(self, holder: Connection, keys: Sequence[Entry], remarks: Sequence[Entry]) -> BrokenKeys:
        plan = self._plan
        assert self._program is not None
        encoding, archive = str(plan.layout.database["encoding"]), self._directory / _ARCHIVE
        broken = make_foreign_keys(
            self._program, plan.server, archive, keys, remarks, encoding, holder, self._emit, neutral=plan.neutral
        )
        if broken.whole and self._superuser:
            self._whole.append("SET LOCAL session_replication_role = replica")  # triggers on TRUNCATE
        self._whole += broken.whole
        return broken

    def _end(self, holder: Connection) -> None:
        """From here on it is a whole database. This commit is the one that makes all others durable."""
        with target_errors(self._plan.server):
            holder.execute("SET synchronous_commit = on")
            clean.clear_mark(holder)
        self._committed = True

    def _matviews(self) -> list[str]:
        names = [name for name in self._plan.layout.refresh if name not in self._plan.left_out.matviews]
        if self._plan.wanted is None:
            return names
        assert self._holder is not None
        with target_errors(self._plan.server):
            there = finishing.matviews_of(self._holder)
        return [name for name in names if name in there]

    def _sequences(self, holder: Connection) -> list[Any]:
        """With tables chosen by name, those that came along."""
        left_out = self._plan.left_out.sequences
        sequences = [item for item in self._plan.layout.sequences if item not in left_out]
        if self._plan.wanted is None and self._content == "all":
            return sequences
        rows = holder.execute(
            "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c"
            " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'S'"
        ).fetchall()
        there = set(rows)
        if self._content == "data" and self._plan.wanted is not None:
            owned = finishing.sequences_of(holder, [quoted(table.schema, table.name) for table in self._plan.tables])
            there &= owned
        return [item for item in sequences if (item.schema, item.name) in there]

    def _count(self, found: Counter[str]) -> None:
        """Every table took as many rows as the snapshot says."""
        plan = self._plan
        expected: Counter[str] = Counter()
        for table in self._tables:
            expected[f"table {table.label}"] += sum(part.rows for part in table.parts)
        if self._with_large_objects:
            expected[LARGE_OBJECTS] += sum(part.rows for part in plan.layout.large_object_parts)
        for label in sorted({*expected, *found}):
            if expected[label] != found[label]:
                raise VerificationFailed(
                    f"{label} took {found[label]} rows instead of {expected[label]}",
                    hint="nothing was kept; restore again, and run `crmbackup check` if it fails again",
                )

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
            if self._made_roles:
                drop_roles(self._beside, self._made_roles)
        except CrmBackupError as error:
            raise not_taken_back(server.name, f"schema {clean.MARK}", error, because) from error


def _head(archive: Path) -> bytes:
    with archive.open("rb") as stream:
        return stream.read(8)
