"""The b-tree indexes of large tables, built by our own workers: all of a table at once, each sorted in little memory.

pg_restore waits with a primary key until no other index of its table is being built, since `ALTER TABLE ... ADD
PRIMARY KEY` locks the table. So it is built as a unique index, which then becomes the key's.

A large sort is quickest in little memory: runs that fit into a processor's caches, merged once. 3 million rows, one
process, 8 MiB against 256 MiB: text 3.0 to 6.1 s, uuid 1.3 to 1.9 s, integers 1.1 to 1.4 s (PostgreSQL 15); as quick as
three processes with 256 MiB, for a third of the work. Below 64 MiB the server takes one process for an index, so the
number of workers alone says how many work. Indexes of other kinds keep what they need in memory while they are built:
those, and whatever is not of the form that pg_dump gives it, are left to pg_restore and the server's settings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from crmbackup.core.errors import TargetError
from crmbackup.engines.postgres.connection import AS_SERVED, Server, connect, in_encoding, target_errors
from crmbackup.engines.postgres.restore_data import Session
from crmbackup.engines.postgres.restore_toc import Entry

Connection = psycopg.Connection[tuple[Any, ...]]

#: Which kinds of entries may be such indexes.
_SORTED = frozenset({"INDEX", "CONSTRAINT"})
#: Bytes from which a table is large: less is sorted in the least memory at once, or nearly.
LARGE = 64 << 20
_LEAST = 8 << 20
#: Bytes that each run takes while runs are merged: MERGE_BUFFER_SIZE and two TAPE_BUFFER_OVERHEAD (tuplesort.c).
_PER_RUN = 34 * 8192

#: How pg_restore begins each object's part of its text when it is asked to say more (pg_backup_archiver.c).
_MARK = re.compile(rb"^--\n-- TOC entry (\d+) \(class \d+ OID \d+\)\n", re.MULTILINE)
_HEADER_ENDS = b"\n--\n\n"
_STATEMENT_ENDS = b";\n\n\n"
#: Literals in the statements are written for this setting, which our sessions have.
_STRINGS = b"\nSET standard_conforming_strings = on;\n"
_NAME = rb'(?:"(?:[^"]|"")*"|[a-z_][a-z0-9_]*)'
_NAMES = _NAME + rb"(?:, " + _NAME + rb")*"
_INDEX = re.compile(rb"CREATE (?:UNIQUE )?INDEX " + _NAME + rb" ON " + _NAME + rb"\." + _NAME + rb" USING btree \(")
#: What pg_dump can add to an index: it locks more, and must come later.
_MORE = re.compile(rb";\n+ALTER ")
#: As dumpConstraint of pg_dump.c writes it.
_KEY = re.compile(
    rb"ALTER TABLE ONLY (?P<table>" + _NAME + rb"\." + _NAME + rb")\n"
    rb"    ADD CONSTRAINT (?P<name>" + _NAME + rb") (?P<kind>PRIMARY KEY|UNIQUE)(?P<nulls> NULLS NOT DISTINCT)?"
    rb" \((?P<columns>" + _NAMES + rb")\)(?P<include> INCLUDE \(" + _NAMES + rb"\))?(?P<options> WITH \([^();]*\))?"
    rb"(?P<deferred>(?: DEFERRABLE)?(?: INITIALLY DEFERRED)?)(?P<more>;\n.*)?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Build:
    """One index of a table. first: the statement that builds it; then: those that make it what it is, or nothing; both
    in the archive's encoding. memory: KiB for its sort.
    """

    entry: Entry
    first: bytes
    then: bytes
    memory: int


def candidates(
    connection: Connection, entries: Sequence[Entry], tables: Mapping[str, tuple[str, str]]
) -> dict[Entry, int]:
    """Of the archive's entries, those of large tables that may be built, and the bytes of their tables.

    tables: for the entries' keys of tables, schema and name. Raises psycopg.Error.
    """
    rows = connection.execute(
        "SELECT n.nspname, c.relname, s.size, EXISTS (SELECT FROM pg_catalog.pg_constraint o"
        " WHERE o.conrelid = c.oid AND o.contype = 'n' AND NOT o.conislocal)"
        " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        " CROSS JOIN LATERAL pg_catalog.pg_relation_size(c.oid) s(size) WHERE c.relkind = 'r' AND s.size >= %s",
        (LARGE,),
    )
    large = {(schema, name): (size, heir) for schema, name, size, heir in rows}
    sizes, heirs = {}, set()
    for entry in entries:
        found = large.get(tables.get(entry.key, ("", "")))
        if found:
            sizes[entry.id], heir = found
            # From 18 on: a key that is made of an index would make NOT NULL of a parent the table's own.
            heirs.update([entry.id] if heir else [])
    # From the first on all is made after the rows: also functions and views that need a key. (An index of a partition
    # stands after its parent's in the archive, and can be made before it.)
    first = next((at for at, entry in enumerate(entries) if entry.kind in _SORTED), len(entries))
    late = {entry.id for entry in entries[first:] if entry.kind not in _SORTED}
    return {
        entry: max(sizes[need] for need in entry.needs if need in sizes)
        for entry in entries[first:]
        if entry.kind in _SORTED
        and not sizes.keys().isdisjoint(entry.needs)
        and late.isdisjoint(entry.needs)
        and (entry.kind == "INDEX" or heirs.isdisjoint(entry.needs))
    }


def builds(entries: Mapping[Entry, int], text: bytes) -> list[Build]:
    """What is built by sorting, the largest tables first; keys last, since their columns are the shortest.

    entries: `candidates`. text: what pg_restore prints of exactly these; nothing comes of one that does not hold each of
    them once, in order.
    """
    marks = list(_MARK.finditer(text))
    # Nothing that a user wrote stands before the first mark.
    if [int(mark[1]) for mark in marks] != [entry.id for entry in entries] or _STRINGS not in text[: marks[0].start()]:
        return []
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    found: list[tuple[int, Build]] = []
    for (entry, size), mark, end in zip(entries.items(), marks, ends, strict=True):
        parts = _parts(text[mark.end() : end])
        if parts:
            found.append((size, Build(entry, *parts, sort_memory(size))))
    found.sort(key=lambda item: (item[1].entry.kind != "INDEX", -item[0]))
    return [build for _, build in found]


def _parts(text: bytes) -> tuple[bytes, bytes] | None:
    """What builds an index, and what follows when all of its table are there; None for what is left to pg_restore."""
    statement = text.partition(_HEADER_ENDS)[2].rpartition(_STATEMENT_ENDS)[0]
    if _INDEX.match(statement) and not _MORE.search(statement):
        return statement, b""
    key = _KEY.fullmatch(statement)
    if key is None:
        return None
    table, name, kind, nulls, columns, include, options, deferred, more = (part or b"" for part in key.groups())
    index = b"CREATE UNIQUE INDEX %b ON %b USING btree (%b)%b%b%b" % (name, table, columns, include, nulls, options)
    then = b"ALTER TABLE ONLY %b ADD CONSTRAINT %b %b USING INDEX %b%b%b" % (table, name, kind, name, deferred, more)
    return index, then


def sort_memory(size: int) -> int:
    """KiB for an index of a table of so many bytes: the least in which half of them is merged in one pass.

    Then there are as many runs, each as large as the memory, as the memory has buffers for.
    """
    return max(_LEAST, math.isqrt(size // 2 * _PER_RUN)) // 1024


def build(session: Session, encoding: str, wanted: Build) -> None:
    """Build one index, in a worker. encoding: the archive's. Raises TargetError kinds."""
    with target_errors(session.server, wanted.entry.label), connect(session.server) as connection:
        connection.execute(f"SET application_name = '{session.token}'".encode("ascii"))
        if not session.alive.exists():
            # As for rows: whoever ends a restore removes the file, and then ends all sessions of this name.
            raise TargetError(f"the restore to {session.server.name} was given up")
        connection.execute("SET synchronous_commit = off")
        connection.execute(AS_SERVED)
        connection.execute(
            "SELECT pg_catalog.set_config(name, least(setting::bigint, %s)::text, false)"
            " FROM pg_catalog.pg_settings WHERE name = 'maintenance_work_mem'",
            (wanted.memory,),
        )
        with in_encoding(connection, encoding):
            connection.execute(wanted.first)


def follow(connection: Connection, server: Server, encoding: str, built: Sequence[Build]) -> None:
    """Make of the indexes what they are: catalogs only, so nothing of this takes time. Raises TargetError kinds."""
    for each in built:
        if each.then:
            with target_errors(server, each.entry.label), in_encoding(connection, encoding):
                connection.execute(each.then)
