"""What of a snapshot comes back."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from crmbackup.core.errors import TargetError
from crmbackup.core.events import Emit, Notice, Warned
from crmbackup.engines.base import RestoreOptions
from crmbackup.engines.postgres.acting import LeftOut, entries_of
from crmbackup.engines.postgres.connection import Server
from crmbackup.engines.postgres.layout import Layout, TableLayout
from crmbackup.engines.postgres.restore_toc import Entry, choose_tables, without

Connection = psycopg.Connection[tuple[Any, ...]]


@dataclass(frozen=True)
class Plan:
    """What comes back. tables: those whose rows do. wanted: asked for by name, None for all.

    neutral: nothing of it may act on anything (a drill). left_out: what that leaves out.
    """

    server: Server
    options: RestoreOptions
    layout: Layout
    digest: str
    tables: tuple[TableLayout, ...]
    wanted: tuple[TableLayout, ...] | None
    programs: Path | None
    neutral: bool
    left_out: LeftOut


def choose_entries(plan: Plan, entries: list[Entry], emit: Emit, *, superuser: bool) -> list[Entry]:
    """The archive's entries that come back, in its order."""
    if plan.wanted is not None:
        entries = _chosen(plan, plan.wanted, entries, emit)
    if plan.left_out.extensions:
        dropped = entries_of(entries, plan.left_out.extensions, plan.left_out.keys)
        for entry in dropped:
            emit(Notice(f"left out of the drill with an extension that acts by itself: {entry.label}"))
        entries = without(entries, {entry.id for entry in dropped})
    if not superuser:
        # CREATE EXTENSION has set it already, and only the extension's owner may.
        entries = [entry for entry in entries if not (entry.kind == "COMMENT" and entry.text.startswith("- EXTENSION"))]
    return entries


def refuse_missing_extensions(server: Server, connection: Connection, needed: Iterable[str]) -> None:
    """Raises TargetError where the server could not install all of them, psycopg.Error."""
    rows = connection.execute("SELECT name FROM pg_catalog.pg_available_extensions")
    lacking = sorted(set(needed) - {name for (name,) in rows})
    if lacking:
        raise TargetError(
            f"the server of {server.name} lacks extensions that the snapshot needs",
            why=", ".join(lacking),
            hint="install their packages on that server",
        )


def _chosen(plan: Plan, wanted: Collection[TableLayout], entries: list[Entry], emit: Emit) -> list[Entry]:
    keys = {table.label: f"1259/{table.oid}" for table in plan.layout.tables}
    needs = {keys[label]: found for label, found in plan.layout.needs.items() if label in keys}
    choice = choose_tables(entries, [keys[table.label] for table in wanted], needs)
    if choice.along:
        emit(Notice(f"needed by the tables, so it comes along: {', '.join(choice.along)}"))
    if choice.left_out:
        names = ", ".join(choice.left_out)
        emit(Warned("restore-left-out", f"left out, since the other table is not restored: {names}"))
    return list(choice.entries)
