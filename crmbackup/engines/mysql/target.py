"""The side of the MySQL and MariaDB engine that rebuilds databases."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from crmbackup.core.errors import CrmBackupError, TargetDenied, TargetError, UsageError
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
from crmbackup.engines.mysql import restore_clean as clean
from crmbackup.engines.mysql.connection import (
    Connection,
    Server,
    Version,
    connect,
    parse_server,
    target_errors,
    value,
    version_of,
)
from crmbackup.engines.mysql.dialect import definer_rights, refuse_older
from crmbackup.engines.mysql.ephemeral import private_server
from crmbackup.engines.mysql.layout import Layout, decode_layout, touched
from crmbackup.engines.mysql.restore import MysqlRestore
from crmbackup.engines.mysql.restore_accounts import drop_database, missing_accounts, refuse_busy, refuse_existing
from crmbackup.engines.mysql.restore_plan import Plan, find_tables
from crmbackup.engines.mysql.restore_verify import Restored, query, verify
from crmbackup.engines.mysql.rights import may_define_for_others
from crmbackup.engines.targets import closed_with_reason, refuse_options, refuse_what_is_there, tables_and_rows

_SYSTEM = ("mysql", "sys", "information_schema", "performance_schema")


class MysqlTargetEngine(TargetEngine):
    """Databases on servers; for drills on a private one, or beside others on `drill_server`."""

    def __init__(self, password: Secret | None, programs: Path | None, drill_server: Server | None = None) -> None:
        self._password = password
        self._programs = programs
        self._drill_server = drill_server

    def target(self, address: str, options: RestoreOptions) -> MysqlTarget:
        server = parse_server(address, self._password)
        refuse_options(options, server.database, "mysql://user@host:3306/database")
        if server.database.lower() in _SYSTEM:
            raise UsageError(f"{server.database} is the server's own database", hint="name another one")
        return MysqlTarget(server, options)

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
        wanted = Version(layout.flavour, layout.server)
        with private_server(directory, wanted, self._programs) as private:
            place = private.server.at(str(layout.database["name"]))
            offline = (
                ("no network at all: the server runs in a network namespace of its own",) if private.offline else ()
            )
            with target_errors(place), closing(connect(private.server)) as connection:
                empty = not clean.exists(connection, place.database)
            yield IsolatedTarget(
                target=MysqlTarget(place, RestoreOptions(create=True, roles="create"), neutral=True, private=True),
                kind=f"private server of {private.version.text}",
                place=str(private.directory),
                isolation=(
                    "a server of its own, made for this drill and removed after it",
                    "reachable through a socket in a directory that only its owner may enter; no network port",
                    *offline,
                    "the event scheduler is off, and events are disabled",
                    "no plugins can be loaded: no engine that connects to other servers, no binary log",
                    "accounts that objects run as are locked and have no password",
                ),
                empty_before=empty,
                gone=private.gone,
            )

    @contextmanager
    def _beside(self, server: Server, layout: Layout) -> Iterator[IsolatedTarget]:
        place = server.at(f"crmbackup_drill_{secrets.token_hex(4)}")
        with target_errors(server), closing(connect(server.at(""))) as connection:
            empty = not clean.exists(connection, place.database)

        def gone() -> bool:
            with suppress(CrmBackupError), target_errors(server), closing(connect(server.at(""))) as looking:
                return not clean.exists(looking, place.database)
            return False

        try:
            yield IsolatedTarget(
                # No accounts are made on a server that is not ours: objects run as the user of the drill.
                target=MysqlTarget(place, RestoreOptions(create=True, roles="ignore"), neutral=True),
                kind="database of its own on a given server",
                place=place.name,
                isolation=(
                    "a database that was made for this drill and is dropped after it; the server has others",
                    "events are disabled; objects run as the user of the drill",
                ),
                empty_before=empty,
                gone=gone,
            )
        finally:
            drop_database(place)


class MysqlTarget(Target):
    """One database of a server. neutral: for a drill, where nothing in it may act on anything outside. private: whether
    the server is there for it alone.
    """

    def __init__(
        self, server: Server, options: RestoreOptions, *, neutral: bool = False, private: bool = False
    ) -> None:
        self.server = server
        self._options = options
        self._neutral = neutral
        self._private = private
        self._restored: Restored | None = None

    @property
    def name(self) -> str:
        return self.server.name

    def check(self) -> bool:
        if self._options.create:
            return refuse_existing(self.server)
        with target_errors(self.server), closing(connect(self.server)) as connection:
            if clean.read_mark(connection, self.server.database) is not None:
                refuse_busy(connection, self.server)
                return True
            if self._options.content != "data":
                refuse_what_is_there(self.server.name, clean.what_is_there(connection, self.server.database))
        return False

    def describe(self, layout: Mapping[str, Any]) -> Sequence[str]:
        found = decode_layout(layout)
        options = self._options
        wanted = find_tables(found, options.tables) if options.tables else None
        missing: list[str] | None = []
        with target_errors(self.server), closing(connect(self.server.at(""))) as connection:
            refuse_older(version_of(connection), Version(found.flavour, found.server), self.server.name)
            if options.content != "data":
                self._refuse_definers(connection, found.definers)
                missing = missing_accounts(connection, found.definers)
        return [*_content_lines(found, options, wanted), *self._account_lines(missing)]

    def _refuse_definers(self, connection: Connection, definers: Sequence[str]) -> None:
        """Objects are made last: who may not make them is told before all rows are loaded. Raises TargetDenied."""
        if self._options.roles == "ignore" or self._options.tables:
            return
        version = version_of(connection)
        others = set(definers) - {str(value(connection, "SELECT CURRENT_USER()"))}
        if others and not may_define_for_others(connection, version):
            right = definer_rights(version)[0]
            raise TargetDenied(
                f"the user may not make views, routines, triggers and events in {self.server.name} that run as others",
                why=f"the snapshot has some that run as {', '.join(sorted(others))}",
                hint=f"grant {right} ON *.*, or leave everything to you: --roles ignore",
            )

    def _account_lines(self, missing: Sequence[str] | None) -> list[str]:
        if missing is None:
            return ["whether the accounts exist that objects run as could not be looked up (SELECT on mysql.user)"]
        if not missing:
            return []
        names = ", ".join(missing)
        if self._options.roles == "restore":
            raise TargetError(
                f"the server of {self.server.name} lacks accounts that views, routines, triggers or events run as",
                why=names,
                hint="--roles create makes them, locked and without passwords; --roles ignore lets all run as you",
            )
        if self._options.roles == "create":
            return [f"accounts that are made, locked, without password, with rights on this database only: {names}"]
        return [f"objects run as whoever restores; the server lacks {names}"]

    @contextmanager
    def open_restore(
        self, layout: Mapping[str, Any], digest: str, workers: Workers, emit: Emit
    ) -> Iterator[MysqlRestore]:
        found = decode_layout(layout)
        options = self._options
        wanted = find_tables(found, options.tables) if options.tables else None
        tables = tuple(table for table in found.tables if wanted is None or table.name in wanted)
        restored = () if options.content == "schema" else tables
        plan = Plan(self.server, options, found, digest, restored, wanted, self._neutral, self._private)
        restore = MysqlRestore(plan, emit, workers)
        with closed_with_reason(restore):
            yield restore
        self._restored = Restored(
            str(found.database["name"]),
            restore.definitions.objects,
            tuple(restore.choice.left_out),
            definers=restore.definers,
            neutral=self._neutral,
            private=self._private,
        )

    def verify(
        self, workers: Workers, tables: Sequence[TableRecord], properties: Mapping[str, Any], emit: Emit
    ) -> Verification:
        return verify(workers, self.server, properties, emit, restored=self._restored)

    def query(self, sql: str) -> object:
        return query(self.server, sql)


def _content_lines(layout: Layout, options: RestoreOptions, wanted: frozenset[str] | None) -> Iterator[str]:
    tables = [table for table in layout.tables if wanted is None or table.name in wanted]
    rows = sum(part.rows for table in tables for part in table.parts)
    yield tables_and_rows(len(tables), None if options.content == "schema" else rows)
    if options.content == "data":
        yield "triggers of these tables are taken away meanwhile, and made again at the end"
    else:
        yield "events come back switched off"
    if wanted is not None and options.content != "data":
        yield "views, routines and events are left out; triggers of these tables come along"
        yield "foreign keys to tables that are not restored are left out, and named during the restore"
