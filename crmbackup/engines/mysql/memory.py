"""What this host remembers of a snapshot, so that the next incremental cuts tables where that one did, and can skip what
did not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from crmbackup.engines.mysql.joining import Position
from crmbackup.engines.mysql.keys import Key
from crmbackup.engines.mysql.protocol import Sent
from crmbackup.engines.remembered import MemoryLostError, load_remembered, save_remembered

_FILE = "mysql.json"
_VERSION = 2


class PartMemory(NamedTuple):
    """One chunk of a table: the key of its last row, rows, bytes of lines, and how the server sent them, if that is known."""

    last: Key
    rows: int
    size: int
    sent: Sent | None = None


@dataclass(frozen=True)
class TableMemory:
    """One table. fingerprint: of its definition. key: how it was cut: name, definition and collation of each column.

    parts: one for each part of the layout, in order; empty for a table without a key.
    """

    fingerprint: str
    key: tuple[tuple[str, str, str], ...]
    parts: tuple[PartMemory, ...]


@dataclass(frozen=True)
class Memory:
    """A snapshot: where the server was, and its tables by name."""

    position: Position
    tables: Mapping[str, TableMemory]


def save_memory(directory: Path, position: Position, tables: Iterable[tuple[str, TableMemory]]) -> None:
    """Write it into an empty directory. Raises LocalError."""
    fields = {
        "position": asdict(position),
        "tables": {
            name: [
                table.fingerprint,
                [list(column) for column in table.key],
                [
                    [
                        [found.hex() for found in part.last],
                        part.rows,
                        part.size,
                        *((part.sent.size, part.sent.digest.hex()) if part.sent else ()),
                    ]
                    for part in table.parts
                ],
            ]
            for name, table in tables
        },
    }
    save_remembered(directory / _FILE, _VERSION, fields)


def load_memory(directory: Path) -> Memory:
    """Read it back. Raises MemoryLostError."""
    fields = load_remembered(directory / _FILE, _VERSION)
    try:
        tables = {
            str(name): TableMemory(
                str(fingerprint),
                tuple((str(column), str(definition), str(collation)) for column, definition, collation in key),
                tuple(
                    PartMemory(tuple(map(bytes.fromhex, last)), int(rows), int(size), _sent(*more))
                    for last, rows, size, *more in parts
                ),
            )
            for name, (fingerprint, key, parts) in fields["tables"].items()
        }
        return Memory(Position(**fields["position"]), tables)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MemoryLostError("this host's memory of the last snapshot cannot be read") from error


def _sent(size: int | None = None, digest: str = "") -> Sent | None:
    return None if size is None else Sent(size, bytes.fromhex(digest))
