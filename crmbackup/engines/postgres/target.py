"""The side of the PostgreSQL engine that rebuilds databases."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from crmbackup.core.errors import CrmBackupError, TargetError
from crmbackup.core.events import Emit
from crmbackup.core.secrets import Secret
from crmbackup.engines.base import (
    IsolatedTarget,
    RestoreOptions,
    TableRecord,
    Target,
    TargetEngine,
    Verification,
    Workers,
)
from crmbackup.engines.postgres import restore_clean as clean
from crmbackup.engines.postgres.acting import ACTING, LeftOut, left_out
from crmbackup.engines.postgres.connection import Server, connect, parse_server, target_errors
from crmbackup.engines.postgres.ephemeral import private_server
from crmbackup.engines.postgres.layout import Layout, decode_layout, touched
from crmbackup.engines.postgres.restore import PostgresRestore
from crmbackup.engines.postgres.restore_plan import Plan, refuse_missing_extensions
from crmbackup.engines.postgres.restore_roles import (
    beside,
    drop_database,
    exists,
    make_roles,
    missing_roles,
    refuse_existing,
)
from crmbackup.engines.postgres.restore_tables import find_tables
from crmbackup.engines.postgres.restore_verify import query, verify
from crmbackup.engines.targets import closed_with_reason, refuse_options, refuse_what_is_there, tables_and_rows

#: From this version on event triggers can be kept from firing, those at login too.
_EVENT_TRIGGERS_OFF = 17
#: A drill tells of every foreign key that rows break, not of the first.
_DRILL = RestoreOptions(create=True, foreign_keys="not-valid")


class PostgresTargetEngine(TargetEngine):
    """Databases on servers; for drills on a private one, or beside others on `drill_server`."""

    def __init__(self, password: Secret | None, programs: Path | None, drill_server: Server | None = None) -> None:
        self._password = password
        self._programs = programs
        self._drill_server = drill_server

    def target(self, address: str, options: RestoreOptions) -> PostgresTarget:
        server = parse_server(address, self._password)
        refuse_options(options, server.database, "postgresql://user@host:5432/database")
        return PostgresTarget(server, options, self._programs)

    def touched(
        self, layout: Mapping[str, Any], damaged: Collection[int], read: Callable[[int], bytes | None]
    ) -> Sequence[str]:
        return touched(decode_layout(layout), damaged)

    def isolated(self, directory: Path, layout: Mapping[str, Any], properties: Mapping[str, Any], emit: Emit) -> Any:
        if self._drill_server is None:
            return self._private(directory, decode_layout(layout))
        return self._beside(self._drill_server, decode_layout(layout))

    @contextmanager
    def _private(self, directory: Path, layout: Layout) -> Iterator[IsolatedTarget]:
        settings = {"event_triggers": "off"} if layout.major >= _EVENT_TRIGGERS_OFF else {}
        with private_server(directory, layout.major, self._programs, settings=settings) as private:
            name = str(layout.database["name"])
            # One of that name is there already; which databases a server begins with is no part of a snapshot.
            name = f"{name}_restored" if name in ("postgres", "template0", "template1") else name
            make_roles(private.server, layout, login=True, database="")
            target = PostgresTarget(private.server.at(name), _DRILL, self._programs, neutral=True)
            offline = (
                ("no network at all: the server runs in a network namespace of its own",) if private.offline else ()
            )
            with closing(connect(private.server)) as connection:
                empty = not clean.what_is_there(connection) and not exists(connection, name)
            yield IsolatedTarget(
                target=target,
                kind="private PostgreSQL server",
                place=str(private.directory),
                isolation=(
                    "a server of its own, made for this drill and removed after it",
                    "reachable through a socket in a directory that only its owner may enter; no network port",
                    *offline,
                    "subscriptions stay disabled and no worker for them can start; event triggers are disabled",
                    *_acting_lines(layout),
                    "foreign data wrappers are without their handlers, so that no foreign server is asked",
                    "no libraries are preloaded: nothing runs on a schedule",
                ),
                empty_before=empty,
                gone=private.gone,
            )

    @contextmanager
    def _beside(self, server: Server, layout: Layout) -> Iterator[IsolatedTarget]:
        name = f"crmbackup_drill_{secrets.token_hex(4)}"
        place = server.at(name)
        with target_errors(server), closing(connect(beside(server))) as connection:
            empty = not exists(connection, name)
        target = PostgresTarget(place, _DRILL, self._programs, neutral=True)

        def gone() -> bool:
            with suppress(CrmBackupError), target_errors(server), closing(connect(beside(server))) as looking:
                return not exists(looking, name)
            return False

        try:
            yield IsolatedTarget(
                target=target,
                kind="database of its own on a given PostgreSQL server",
                place=place.name,
                isolation=(
                    "a database that was made for this drill and is dropped after it; the server has others",
                    "subscriptions stay disabled; event triggers are disabled",
                    *_acting_lines(layout),
                    "foreign data wrappers are without their handlers, so that no foreign server is asked",
                ),
                empty_before=empty,
                gone=gone,
            )
        finally:
            drop_database(place)


class PostgresTarget(Target):
    """One database of a server. neutral: for a drill, where nothing in it may act on anything outside."""

    def __init__(
        self, server: Server, options: RestoreOptions, programs: Path | None, *, neutral: bool = False
    ) -> None:
        self.server = server
        self._options = options
        self._programs = programs
        self._neutral = neutral
        self._neutralised: list[str] = []
        self._left_out = LeftOut()
        self._sequences: frozenset[str] | None = None

    @property
    def name(self) -> str:
        return self.server.name

    def check(self) -> bool:
        if self._options.create:
            return refuse_existing(self.server)
        with target_errors(self.server), closing(connect(self.server)) as connection:
            if clean.read_mark(connection) is not None:
                if clean.take_lock(connection):
                    return True
                raise TargetError(f"another restore to {self.name} is at work", hint="wait until it is over")
            if self._options.content != "data":
                refuse_what_is_there(self.server.name, clean.what_is_there(connection))
        return False

    def describe(self, layout: Mapping[str, Any]) -> Sequence[str]:
        found = decode_layout(layout)
        options = self._options
        wanted = find_tables(found, options.tables) if options.tables else None
        place = beside(self.server) if options.create else self.server
        with target_errors(self.server), closing(connect(place)) as connection:
            major = connection.info.server_version // 10000
            if major < found.major:
                raise TargetError(
                    f"the server of {self.name} is PostgreSQL {major}, the snapshot is of {found.major}",
                    why="an older server does not know all that a newer one writes",
                    hint=f"restore to a server of PostgreSQL {found.major} or later",
                )
            missing = missing_roles(connection, found) if options.content != "data" else []
            if options.content != "data":
                refuse_missing_extensions(self.server, connection, _extensions(found, wanted, neutral=self._neutral))
        return [*_content_lines(found, options, wanted), *self._role_lines(missing)]

    def _role_lines(self, missing: Sequence[str]) -> list[str]:
        if not missing:
            return []
        names = ", ".join(missing)
        if self._options.roles == "restore":
            raise TargetError(
                f"the server of {self.name} lacks roles that own objects or have rights",
                why=names,
                hint="--roles create makes them without passwords; --roles ignore leaves everything to you",
            )
        if self._options.roles == "create":
            return [f"roles that are made, without login or password: {names}"]
        return [f"owners and rights are left out; the server lacks {names}"]

    @contextmanager
    def open_restore(
        self, layout: Mapping[str, Any], digest: str, workers: Workers, emit: Emit
    ) -> Iterator[PostgresRestore]:
        found = decode_layout(layout)
        options = self._options
        wanted = find_tables(found, options.tables) if options.tables else None
        tables = () if options.content == "schema" else _filled(found, options, wanted)
        self._sequences = frozenset(item.label for item in found.sequences)
        self._left_out = left_out(found) if self._neutral else LeftOut()
        plan = Plan(self.server, options, found, digest, tables, wanted, self._programs, self._neutral, self._left_out)
        restore = PostgresRestore(plan, emit)
        with closed_with_reason(restore):
            yield restore
        self._neutralised = restore.neutralised

    def verify(
        self, workers: Workers, tables: Sequence[TableRecord], properties: Mapping[str, Any], emit: Emit
    ) -> Verification:
        owners = self._options.roles != "ignore"
        return verify(
            workers,
            self.server,
            tables,
            properties,
            emit,
            neutralised=self._neutralised,
            left_out=self._left_out,
            known=self._sequences,
            owners=owners,
        )

    def query(self, sql: str) -> object:
        return query(self.server, sql)


def _filled(layout: Layout, options: RestoreOptions, wanted: Sequence[Any] | None) -> tuple[Any, ...]:
    """The tables whose rows come back. Rows alone: not those of extensions, which have their own there already."""
    tables = layout.tables if wanted is None else tuple(wanted)
    return tuple(table for table in tables if not (options.content == "data" and table.extension))


def _extensions(layout: Layout, wanted: Sequence[Any] | None, *, neutral: bool) -> Iterator[str]:
    """Names of those that come back."""
    keys = None if wanted is None else {key for table in wanted for key in layout.needs.get(table.label, ())}
    for key, name in layout.extensions.items():
        if (keys is None or key in keys) and not (neutral and name in ACTING):
            yield name


def _acting_lines(layout: Layout) -> Iterator[str]:
    names = left_out(layout).extensions
    if names:
        yield f"extensions that act by themselves are left out, and their tables with them: {', '.join(names)}"


def _content_lines(layout: Layout, options: RestoreOptions, wanted: Sequence[Any] | None) -> Iterator[str]:
    rows = sum(part.rows for table in layout.tables if wanted is None or table in wanted for part in table.parts)
    count = len(layout.tables) if wanted is None else len(wanted)
    yield tables_and_rows(count, None if options.content == "schema" else rows)
    objects = len(layout.large_objects)
    if objects and options.content != "schema":
        yield (
            f"{objects} large objects"
            if wanted is None
            else f"{objects} large objects are left out, as no table owns one"
        )
    if wanted is not None:
        chosen = {table.label for table in wanted}
        keys = {key for label in chosen for key in layout.needs.get(label, ())}
        tables = {f"1259/{table.oid}": table.label for table in layout.tables}
        along = [label for key, label in tables.items() if key in keys and label not in chosen]
        if along:
            yield f"definitions of tables that come along, without rows: {', '.join(along)}"
        others = [name for key, name in layout.named.items() if key in keys and key not in tables]
        if others:
            yield f"definitions that come along: {', '.join(others)}"
        yield "foreign keys to tables that are not restored are left out, and named during the restore"
    extensions = [table.label for table in layout.tables if table.extension]
    if extensions and options.content == "data":
        yield f"left as they are, since their extensions fill them: {', '.join(extensions)}"
