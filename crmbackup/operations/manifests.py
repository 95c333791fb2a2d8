"""Between the engine's records and the manifest's sealed body."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crmbackup.core.errors import ObjectDamaged
from crmbackup.engines.base import Image, Segment, SourceInfo, TableRecord
from crmbackup.repository.chunks import ChunkRef, ChunkTable, PackInfo, decode_chunks, encode_chunks


@dataclass(frozen=True)
class SnapshotBody:
    """The sealed part of a snapshot, read."""

    chunk_key: bytes
    chunks: ChunkTable
    layout: Mapping[str, Any]
    digest: str
    tables: tuple[TableRecord, ...]
    not_covered: tuple[tuple[str, str], ...]
    engine_version: str
    position: Mapping[str, Any]
    properties: Mapping[str, Any]
    schema: Mapping[str, Any]

    @property
    def rows(self) -> int | None:
        """Rows of all tables together, None when none was counted."""
        return total_rows(self.tables)


def total_rows(tables: Sequence[TableRecord]) -> int | None:
    """Rows of all counted tables together, None when none was counted. Shadow tables are not data of the user's."""
    counted = [table.rows for table in tables if table.rows is not None and table.kind != "shadow"]
    return sum(counted) if counted else None


def write_body(
    chunk_key: bytes, chunks: Sequence[ChunkRef], packs: Sequence[PackInfo], image: Image, info: SourceInfo
) -> dict[str, object]:
    """The body as JSON values."""
    return {
        "chunk_key": chunk_key.hex(),
        "chunks": encode_chunks(chunks, packs),
        "layout": image.layout,
        "digest": image.digest,
        "tables": [_write_table(table) for table in image.tables],
        "not_covered": [list(entry) for entry in image.not_covered],
        "engine_version": info.engine_version,
        "position": info.position,
        "properties": info.properties,
        "schema": info.schema,
    }


def read_body(body: Mapping[str, Any], packs: Sequence[PackInfo]) -> SnapshotBody:
    """The inverse of `write_body`. Raises ObjectDamaged."""
    try:
        return SnapshotBody(
            chunk_key=bytes.fromhex(body["chunk_key"]),
            chunks=decode_chunks(body["chunks"], packs),
            layout=body["layout"],
            digest=str(body["digest"]),
            tables=tuple(_read_table(table) for table in body["tables"]),
            not_covered=tuple((str(name), str(reason)) for name, reason in body["not_covered"]),
            engine_version=str(body["engine_version"]),
            position=body["position"],
            properties=body["properties"],
            schema=body["schema"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ObjectDamaged("the body of a snapshot cannot be read", why=f"{type(error).__name__}: {error}") from error


def _write_table(table: TableRecord) -> dict[str, object]:
    return {
        "name": table.name,
        "kind": table.kind,
        "rows": table.rows,
        "checksum": table.checksum,
        "algorithm": table.algorithm,
        "segments": [[s.low, s.high, s.rows, s.digest, s.raw] for s in table.segments],
        "unreadable": table.unreadable,
        "reason": table.reason,
        "carried": table.carried,
    }


def _read_table(fields: Mapping[str, Any]) -> TableRecord:
    return TableRecord(**{**fields, "segments": tuple(Segment(*segment) for segment in fields["segments"])})
