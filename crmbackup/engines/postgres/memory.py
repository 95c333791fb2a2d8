"""What this host remembers of a snapshot, so that the next incremental can skip what did not change."""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from crmbackup.engines.postgres.horizon import Position
from crmbackup.engines.remembered import MemoryLostError, load_remembered, save_remembered

#: chunks u32 | rows u64
_SLICE = struct.Struct("<IQ")
_FILE = "postgres.json"
_VERSION = 2


class SliceMemory(NamedTuple):
    """One slice: how many chunks it has, one after the other in the table's layout, and what it held."""

    chunks: int
    rows: int


@dataclass(frozen=True)
class TableMemory:
    """One table. step: blocks in a slice."""

    label: str
    filenode: int
    fingerprint: str
    step: int
    slices: tuple[SliceMemory, ...]


@dataclass(frozen=True)
class Memory:
    """A snapshot: where the cluster was, and its tables by oid."""

    position: Position
    tables: Mapping[int, TableMemory]


def save_memory(directory: Path, position: Position, tables: Iterable[tuple[int, TableMemory]]) -> None:
    """Write it into an empty directory. Raises LocalError."""
    fields = {
        "position": position.to_json(),
        "tables": {
            str(oid): [
                table.label,
                table.filenode,
                table.fingerprint,
                table.step,
                base64.b64encode(b"".join(_SLICE.pack(*part) for part in table.slices)).decode("ascii"),
            ]
            for oid, table in tables
        },
    }
    save_remembered(directory / _FILE, _VERSION, fields)


def load_memory(directory: Path) -> Memory:
    """Read it back. Raises MemoryLostError."""
    fields = load_remembered(directory / _FILE, _VERSION)
    try:
        tables = {
            int(oid): TableMemory(label, filenode, fingerprint, step, _slices(text))
            for oid, (label, filenode, fingerprint, step, text) in fields["tables"].items()
        }
        return Memory(Position.from_json(fields["position"]), tables)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, binascii.Error) as error:
        raise MemoryLostError("this host's memory of the last snapshot cannot be read") from error


def _slices(text: str) -> tuple[SliceMemory, ...]:
    return tuple(SliceMemory(*row) for row in _SLICE.iter_unpack(base64.b64decode(text, validate=True)))
