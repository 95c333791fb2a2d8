"""How the manifest of a MySQL or MariaDB snapshot says what lies in which chunk. `docs/design.md` has it to the byte."""

from __future__ import annotations

import binascii
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from crmbackup.core.canonical import canonical_json
from crmbackup.core.errors import ObjectDamaged
from crmbackup.engines.sums import Part, decode_parts, encode_parts, totals

VERSION = 1


@dataclass(frozen=True)
class TableLayout:
    """One table's rows. columns: in the order of the lines, each with how it is loaded (see `columns.py`).

    history: the rows of a system-versioned table, those that are no longer current among them.
    """

    name: str
    columns: tuple[tuple[str, str], ...]
    parts: tuple[Part, ...]
    history: bool = False


@dataclass(frozen=True)
class SequenceLayout:
    """Where a sequence of MariaDB stood: the next value that no cache has, and how often it came round."""

    name: str
    next_value: int
    cycles: int


@dataclass(frozen=True)
class Layout:
    """All of a snapshot.

    flavour, server: product ("mariadb" or "mysql") and version. database: its name, character set, collation, comment.
    definitions: the chunks of the definitions (see `definitions.py`), in order. definers: the accounts, "user@host", by
    whose rights views, routines, triggers and events run.
    """

    flavour: str
    server: tuple[int, ...]
    database: Mapping[str, Any]
    definitions: tuple[int, ...]
    tables: tuple[TableLayout, ...]
    sequences: tuple[SequenceLayout, ...] = ()
    definers: tuple[str, ...] = ()


def touched(layout: Layout, damaged: Collection[int]) -> list[str]:
    """What has rows or definitions in these chunks."""
    found = [table.name for table in layout.tables if any(part.chunk in damaged for part in table.parts)]
    if any(chunk in damaged for chunk in layout.definitions):
        found.insert(0, "the definitions of all objects")
    return found


def encode_layout(layout: Layout) -> dict[str, object]:
    """As it stands in a manifest."""
    return {
        "type": "mysql",
        "version": VERSION,
        "flavour": layout.flavour,
        "server": list(layout.server),
        "database": layout.database,
        "definitions": list(layout.definitions),
        "tables": [
            {
                "name": table.name,
                "columns": [list(column) for column in table.columns],
                "parts": encode_parts(table.parts),
                "history": table.history,
            }
            for table in layout.tables
        ],
        "sequences": [[s.name, s.next_value, s.cycles] for s in layout.sequences],
        "definers": list(layout.definers),
    }


def decode_layout(fields: Mapping[str, Any]) -> Layout:
    """The inverse of `encode_layout`. Raises ObjectDamaged."""
    try:
        if fields["type"] != "mysql" or fields["version"] != VERSION:
            raise ValueError(f"a layout of type {fields['type']!r}, version {fields['version']!r}")
        return Layout(
            flavour=str(fields["flavour"]),
            server=tuple(map(int, fields["server"])),
            database=fields["database"],
            definitions=tuple(map(int, fields["definitions"])),
            tables=tuple(
                TableLayout(
                    name=str(table["name"]),
                    columns=tuple((str(name), str(how)) for name, how in table["columns"]),
                    parts=decode_parts(table["parts"]),
                    history=bool(table["history"]),
                )
                for table in fields["tables"]
            ),
            sequences=tuple(
                SequenceLayout(str(name), int(following), int(cycles))
                for name, following, cycles in fields["sequences"]
            ),
            definers=tuple(map(str, fields["definers"])),
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, struct.error, binascii.Error) as error:
        raise ObjectDamaged(
            "the layout of a snapshot cannot be read", why=f"{type(error).__name__}: {error}"
        ) from error


def image_digest(layout: Layout) -> str:
    """Covers what every table and sequence held: SHA-256 over canonical JSON."""
    content = {
        "tables": [[table.name, *totals(table.parts)] for table in layout.tables],
        "sequences": [[s.name, s.next_value, s.cycles] for s in layout.sequences],
    }
    return sha256(canonical_json(content)).hexdigest()


def table_of(layout: Layout, name: str) -> TableLayout | None:
    """A table by its name."""
    return next((table for table in layout.tables if table.name == name), None)


def renumbered(layout: Layout) -> tuple[Layout, Sequence[int]]:
    """The same over only the chunks that it uses, numbered from 0 by first use; and their former numbers."""
    numbers: dict[int, int] = {}

    def number(chunk: int) -> int:
        return numbers.setdefault(chunk, len(numbers))

    definitions = tuple(map(number, layout.definitions))
    tables = tuple(
        TableLayout(
            table.name,
            table.columns,
            tuple(part._replace(chunk=number(part.chunk)) for part in table.parts),
            table.history,
        )
        for table in layout.tables
    )
    result = Layout(
        layout.flavour,
        layout.server,
        layout.database,
        definitions,
        tables,
        layout.sequences,
        layout.definers,
    )
    return result, list(numbers)
