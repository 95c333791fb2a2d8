"""What this host remembers of a snapshot, so that the next incremental can skip what did not change."""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from crmbackup.core.files import local_error
from crmbackup.engines.postgres.horizon import Position

#: chunks u32 | rows u64 | rows at or above the snapshot's own horizon u64
_SLICE = struct.Struct("<IQQ")
_FILE = "postgres.json"
_VERSION = 1


class SliceMemory(NamedTuple):
    """One slice: how many chunks it has, one after the other in the table's layout, and what it held."""

    chunks: int
    rows: int
    fresh: int


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


class MemoryLostError(Exception):
    """What was remembered cannot be used; the text says why."""


def save_memory(directory: Path, position: Position, tables: Iterable[tuple[int, TableMemory]]) -> None:
    """Write it into an empty directory. Raises LocalError."""
    fields = {
        "version": _VERSION,
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
    path = directory / _FILE
    try:
        text = json.dumps(fields)
        # One wrong digit in there could make rows that changed look old.
        path.write_text(f"{_digest(text)}\n{text}", "ascii")
    except OSError as error:
        raise local_error(error, f"write {path}") from error


def load_memory(directory: Path) -> Memory:
    """Read it back. Raises MemoryLostError."""
    try:
        digest, _, text = (directory / _FILE).read_text("ascii").partition("\n")
        if digest != _digest(text):
            raise MemoryLostError("this host's memory of the last snapshot is damaged")
        fields = json.loads(text)
        if fields["version"] != _VERSION:
            raise MemoryLostError("this host's memory of the last snapshot is from another version")
        tables = {
            int(oid): TableMemory(label, filenode, fingerprint, step, _slices(text))
            for oid, (label, filenode, fingerprint, step, text) in fields["tables"].items()
        }
        return Memory(Position.from_json(fields["position"]), tables)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, binascii.Error) as error:
        raise MemoryLostError("this host's memory of the last snapshot cannot be read") from error


def _digest(text: str) -> str:
    return blake2b(text.encode("ascii"), digest_size=16).hexdigest()


def _slices(text: str) -> tuple[SliceMemory, ...]:
    return tuple(SliceMemory(*row) for row in _SLICE.iter_unpack(base64.b64decode(text, validate=True)))
