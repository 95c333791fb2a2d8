"""What of a snapshot comes back, and in which statements."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from crmbackup.core.errors import ObjectDamaged, TargetError, TargetExists, UsageError
from crmbackup.core.events import Emit, Notice, Warned
from crmbackup.engines.base import RestoreOptions
from crmbackup.engines.mysql.connection import Connection, Server, execute, quoted, value
from crmbackup.engines.mysql.definitions import Definition, Definitions
from crmbackup.engines.mysql.layout import Layout, TableLayout
from crmbackup.engines.mysql.statements import (
    TableStatement,
    for_drill,
    named,
    parse_table,
    referenced,
    renamed,
    sequences_in,
    split_table,
    without_tablespace,
)

#: Tables of fewer rows get their keys at once: they are filled in no time, and each ALTER costs some.
_SMALL = 5000


@dataclass(frozen=True)
class Plan:
    """What comes back. tables: those whose rows do. wanted: names of those that were asked for, None for all.

    neutral: nothing of it may act on anything (a drill). private: the server was made for it, and holds nothing else.
    """

    server: Server
    options: RestoreOptions
    layout: Layout
    digest: str
    tables: tuple[TableLayout, ...]
    wanted: frozenset[str] | None
    neutral: bool
    private: bool


@dataclass
class TablePlan:
    """One table's statements: how it is made, and the keys and foreign keys that it gets once it is filled."""

    definition: Definition
    create: str
    rows: int
    keys: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    counter: int | None = None

    @property
    def name(self) -> str:
        """Its name."""
        return self.definition.name

    def alter(self, entries: Sequence[str]) -> str:
        """A statement that adds keys."""
        return f"ALTER TABLE {quoted(self.name)} {', '.join(f'ADD {entry}' for entry in entries)}"


@dataclass
class Choice:
    """The definitions that come back. left_out: those that a drill does without."""

    tables: list[TablePlan] = field(default_factory=list)
    others: list[Definition] = field(default_factory=list)
    left_out: list[Definition] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Definition]:
        """Those that are no tables, of some kinds, in order."""
        return [each for each in self.others if each.kind in kinds]


def choose(plan: Plan, definitions: Definitions, engines: Mapping[str, bool], emit: Emit) -> Choice:
    """What comes back. engines: in lower case, those that the server has. Raises TargetError, ObjectDamaged."""
    old, new = str(plan.layout.database["name"]), plan.server.database
    rows = {table.name: sum(part.rows for part in table.parts) for table in plan.layout.tables}
    choice = Choice()
    needed: set[str] = set()
    dropped: list[str] = []
    for each in definitions.of("table"):
        if plan.wanted is not None and each.name not in plan.wanted:
            continue
        table = _parsed(each)
        if not _has_engine(plan, each, table, rows, engines):
            emit(Notice(f"left out of the drill, since its engine is not on this host: {each.label}"))
            choice.left_out.append(each)
            continue
        filled, keys, foreign = split_table(
            table, defer_keys=plan.options.content == "all" and rows.get(each.name, 0) >= _SMALL
        )
        kept = []
        for key in foreign:
            if plan.wanted is None or referenced(key)[-1] in plan.wanted or len(referenced(key)) > 1:
                kept.append(renamed(key, old, new))
            else:
                dropped.append(f"{each.name}.{named(key)}")
        needed |= set(sequences_in(table.text))
        create = renamed(filled.text, old, new)
        if plan.neutral:
            create = for_drill(create, private=plan.private)
        choice.tables.append(TablePlan(each, create, rows.get(each.name, 0), keys, tuple(kept), table.counter))
    _tell_unencrypted(plan, choice, emit)
    _tell_moved(choice, emit)
    if dropped:
        emit(
            Warned(
                "restore-left-out",
                f"left out, since the other table is not restored: foreign keys {', '.join(dropped)}",
            )
        )
    for each in definitions.objects:
        if each.kind == "table":
            continue
        if plan.wanted is None or (each.kind == "trigger" and each.table in plan.wanted):
            choice.others.append(each)
        elif each.kind == "sequence" and each.name in needed:
            emit(Notice(f"needed by the tables, so it comes along: {each.label}"))
            choice.others.append(each)
    return choice


def _tell_unencrypted(plan: Plan, choice: Choice, emit: Emit) -> None:
    found = [
        table.name
        for table in choice.tables
        if plan.private
        and for_drill(table.definition.create, private=True) != for_drill(table.definition.create, private=False)
    ]
    if found:
        emit(Notice(f"not encrypted as long as the drill lasts: tables {', '.join(found)}"))


def _tell_moved(choice: Choice, emit: Emit) -> None:
    found = [
        table.name for table in choice.tables if without_tablespace(table.definition.create) != table.definition.create
    ]
    if found:
        emit(Notice(f"made in files of their own, not in the source's general tablespaces: tables {', '.join(found)}"))


def _parsed(each: Definition) -> TableStatement:
    try:
        return parse_table(without_tablespace(each.create))
    except ValueError as error:
        raise ObjectDamaged(f"the definition of {each.label} cannot be read", why=str(error)) from error


def _has_engine(
    plan: Plan, each: Definition, table: TableStatement, rows: Mapping[str, int], engines: Mapping[str, bool]
) -> bool:
    """Whether the table can be made. In a drill it may be missing if it holds no rows: what connects to elsewhere must
    not be there.
    """
    if not table.engine or engines.get(table.engine.lower(), False):
        return True
    if plan.neutral and each.name not in rows:
        return False
    raise TargetError(
        f"the server of {plan.server.name} lacks the engine {table.engine} of {each.label}",
        hint="install it there"
        + (", and name that server in drill.target" if plan.neutral else ", or restore to another server"),
    )


def read_engines(connection: Connection) -> dict[str, bool]:
    """Engines by name, in lower case, and whether tables can be made with them. Raises pymysql.Error."""
    rows = execute(connection, "SELECT engine, support FROM information_schema.engines")
    return {str(name).lower(): str(support).upper() in ("YES", "DEFAULT") for name, support in rows}


def find_tables(layout: Layout, names: Sequence[str]) -> frozenset[str]:
    """The tables of these names. Raises UsageError."""
    known = [table.name for table in layout.tables]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 5, 0.5)
            raise UsageError(
                f"the snapshot has no table {name}",
                why=f"similar ones: {', '.join(near)}"
                if near
                else f"it has {len(known)} tables, none of a similar name",
                hint="names are as the database holds them, without the database's own",
            )
    return frozenset(names)


def check_fillable(connection: Connection, server: Server, tables: Sequence[TableLayout]) -> None:
    """Every table is there, with the snapshot's columns and no rows. Raises TargetError kinds, TargetExists."""
    columns: dict[str, set[str]] = {}
    for table, column in execute(
        connection,
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = %s",
        (server.database,),
    ):
        columns.setdefault(table, set()).add(column)
    for each in tables:
        there = columns.get(each.name)
        if there is None:
            raise TargetError(
                f"the target {server.name} has no table {each.name}",
                hint="restore the definitions first (--schema-only), or all of it to an empty database",
            )
        hidden = {"row_start", "row_end"} if each.history else set()
        missing = [name for name, _ in each.columns if name not in there | hidden]
        if missing:
            raise TargetError(f"table {each.name} of the target lacks columns", why=", ".join(missing))
        if value(connection, f"SELECT 1 FROM {quoted(server.database, each.name)} LIMIT 1"):
            raise TargetExists(
                f"table {each.name} of {server.name} is not empty",
                hint="rows are restored to empty tables only: empty it, or restore elsewhere",
            )
