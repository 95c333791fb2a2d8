"""How the manifest of a PostgreSQL snapshot says what lies in which chunk. `docs/design.md` describes it to the byte."""

from __future__ import annotations

import binascii
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from crmbackup.core.canonical import canonical_json
from crmbackup.core.errors import ObjectDamaged
from crmbackup.engines.sums import Part, decode_parts, encode_parts, totals

VERSION = 1


@dataclass(frozen=True)
class TableLayout:
    """One table's rows. columns: in the order of the lines. root: what to load it through instead, or None.

    extension: the rows belong to an extension's configuration table, which CREATE EXTENSION makes.
    """

    schema: str
    name: str
    label: str
    oid: int
    columns: tuple[str, ...]
    parts: tuple[Part, ...]
    root: tuple[str, str] | None = None
    extension: bool = False


@dataclass(frozen=True)
class SequenceLayout:
    """Where a sequence stood."""

    schema: str
    name: str
    label: str
    last_value: int
    is_called: bool


@dataclass(frozen=True)
class LargeObject:
    """owner: a role's name. acl: (grantee or "" for all, right, grantable). comment: None without one."""

    oid: int
    owner: str
    acl: tuple[tuple[str, str, bool], ...]
    comment: str | None


@dataclass(frozen=True)
class Layout:
    """All of a snapshot. server: server_version_num. archive: the chunks of pg_dump's archive of the definitions.

    database: its properties (name, encoding, collate, ctype, provider, locale, rules, owner, comment, acl, settings).
    roles: see `roles.py`. refresh: filled materialised views in the order to refresh them. needs: for each table's label
    the catalog entries "classid/oid" that it needs, itself not included. named: what those are called that are no parts
    of a table. extensions: names by the same kind of key. leaning: what cannot exist without the extensions that a drill
    leaves out, by the same kind of key, with its name, or an empty one where it is a part of another.
    """

    server: int
    database: Mapping[str, Any]
    archive: tuple[int, ...]
    tables: tuple[TableLayout, ...]
    sequences: tuple[SequenceLayout, ...] = ()
    large_objects: tuple[LargeObject, ...] = ()
    large_object_parts: tuple[Part, ...] = ()
    roles: Mapping[str, Any] = field(default_factory=dict)
    refresh: tuple[str, ...] = ()
    needs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)
    extensions: Mapping[str, str] = field(default_factory=dict)
    leaning: Mapping[str, str] = field(default_factory=dict)

    @property
    def major(self) -> int:
        """The server's major version."""
        return self.server // 10000


def touched(layout: Layout, damaged: Collection[int]) -> list[str]:
    """What has rows or definitions in these chunks."""
    found = [table.label for table in layout.tables if any(part.chunk in damaged for part in table.parts)]
    if any(chunk in damaged for chunk in layout.archive):
        found.insert(0, "the definitions of all tables")
    if any(part.chunk in damaged for part in layout.large_object_parts):
        found.append("large objects")
    return found


def encode_layout(layout: Layout) -> dict[str, object]:
    """As it stands in a manifest."""
    return {
        "type": "postgres",
        "version": VERSION,
        "server": layout.server,
        "database": layout.database,
        "archive": list(layout.archive),
        "tables": [
            {
                "schema": table.schema,
                "name": table.name,
                "label": table.label,
                "oid": table.oid,
                "columns": list(table.columns),
                "parts": encode_parts(table.parts),
                "root": list(table.root) if table.root else None,
                "extension": table.extension,
            }
            for table in layout.tables
        ],
        "sequences": [[s.schema, s.name, s.label, s.last_value, s.is_called] for s in layout.sequences],
        "large_objects": [[o.oid, o.owner, [list(entry) for entry in o.acl], o.comment] for o in layout.large_objects],
        "large_object_parts": encode_parts(layout.large_object_parts),
        "roles": layout.roles,
        "refresh": list(layout.refresh),
        "needs": {label: list(entries) for label, entries in layout.needs.items()},
        "named": dict(layout.named),
        "extensions": dict(layout.extensions),
        "leaning": dict(layout.leaning),
    }


def decode_layout(fields: Mapping[str, Any]) -> Layout:
    """The inverse of `encode_layout`. Raises ObjectDamaged."""
    try:
        if fields["type"] != "postgres" or fields["version"] != VERSION:
            raise ValueError(f"a layout of type {fields['type']!r}, version {fields['version']!r}")
        return Layout(
            server=int(fields["server"]),
            database=fields["database"],
            archive=tuple(map(int, fields["archive"])),
            tables=tuple(
                TableLayout(
                    schema=str(table["schema"]),
                    name=str(table["name"]),
                    label=str(table["label"]),
                    oid=int(table["oid"]),
                    columns=tuple(map(str, table["columns"])),
                    parts=decode_parts(table["parts"]),
                    root=(str(table["root"][0]), str(table["root"][1])) if table["root"] else None,
                    extension=bool(table["extension"]),
                )
                for table in fields["tables"]
            ),
            sequences=tuple(
                SequenceLayout(str(schema), str(name), str(label), int(last), bool(called))
                for schema, name, label, last, called in fields["sequences"]
            ),
            large_objects=tuple(
                LargeObject(int(oid), str(owner), tuple((str(g), str(r), bool(o)) for g, r, o in acl), comment)
                for oid, owner, acl, comment in fields["large_objects"]
            ),
            large_object_parts=decode_parts(fields["large_object_parts"]),
            roles=fields["roles"],
            refresh=tuple(map(str, fields["refresh"])),
            needs={str(label): tuple(map(str, entries)) for label, entries in fields["needs"].items()},
            # Snapshots of earlier versions have none of these.
            named={str(key): str(name) for key, name in fields.get("named", {}).items()},
            extensions={str(key): str(name) for key, name in fields.get("extensions", {}).items()},
            leaning={str(key): str(name) for key, name in fields.get("leaning", {}).items()},
        )
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, struct.error, binascii.Error) as error:
        raise ObjectDamaged(
            "the layout of a snapshot cannot be read", why=f"{type(error).__name__}: {error}"
        ) from error


def image_digest(layout: Layout) -> str:
    """Covers what every table, sequence and large object held: SHA-256 over canonical JSON."""
    content = {
        "tables": [[table.label, *totals(table.parts)] for table in layout.tables],
        "sequences": [[s.label, s.last_value, s.is_called] for s in layout.sequences],
        "large_objects": [[o.oid for o in layout.large_objects], *totals(layout.large_object_parts)],
    }
    return sha256(canonical_json(content)).hexdigest()
