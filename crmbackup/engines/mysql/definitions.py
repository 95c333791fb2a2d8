"""The definitions of everything in a database, as the server shows them, and what tells whether two are the same.

They are shipped as one JSON document, canonical, cut into chunks: see `Definitions` for its fields. Statements are as
SHOW CREATE gives them; those of views, routines, triggers and events stand beside the settings that they were made
under, which a restore sets before it runs them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from crmbackup.core.canonical import canonical_json
from crmbackup.core.errors import ObjectDamaged

VERSION = 1
KINDS = ("table", "sequence", "view", "function", "procedure", "package", "package body", "trigger", "event")


@dataclass(frozen=True)
class Definition:
    """One object.

    kind: of KINDS. create: its statement. settings: sql_mode, character_set_client, collation_connection, time_zone, as
    far as the object has them. table: a trigger's. after: the trigger that it follows, with the same table, timing and
    event. definer: "user@host" or empty. enabled: of events, whether it runs on its schedule. columns: of views that work.
    """

    kind: str
    name: str
    create: str
    settings: Mapping[str, str]
    table: str = ""
    after: str = ""
    definer: str = ""
    enabled: bool = True
    columns: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Definitions:
    """All of a database. accounts: statements that make the users who have rights on it, and give them, if asked for."""

    objects: tuple[Definition, ...]
    accounts: tuple[str, ...] = ()

    def of(self, *kinds: str) -> list[Definition]:
        """Those of some kinds, in order."""
        return [each for each in self.objects if each.kind in kinds]


def encode_definitions(definitions: Definitions) -> bytes:
    """As they are shipped."""
    return canonical_json(
        {
            "version": VERSION,
            "objects": [asdict(each) for each in definitions.objects],
            "accounts": list(definitions.accounts),
        }
    )


def decode_definitions(data: bytes) -> Definitions:
    """The inverse of `encode_definitions`. Raises ObjectDamaged."""
    try:
        fields = json.loads(data)
        if fields["version"] != VERSION:
            raise ValueError(f"version {fields['version']!r}")
        objects = tuple(Definition(**{**each, "columns": tuple(each["columns"])}) for each in fields["objects"])
        return Definitions(objects, tuple(map(str, fields["accounts"])))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ObjectDamaged(
            "the definitions of a snapshot cannot be read", why=f"{type(error).__name__}: {error}"
        ) from error


_AUTO_INCREMENT = re.compile(r" AUTO_INCREMENT=\d+(?= |$)")


def table_options(create: str) -> tuple[str, str]:
    """A table's statement up to the end of its columns, and what follows."""
    end = create.rfind("\n)")
    return (create, "") if end < 0 else (create[: end + 2], create[end + 2 :])


def comparable(definition: Definition) -> list[object]:
    """What must be equal for two objects to be the same: not how far a table has counted."""
    create = definition.create
    if definition.kind == "table":
        body, options = table_options(create)
        create = body + _AUTO_INCREMENT.sub("", options)
    if definition.kind == "event":
        # A restored one is off until somebody switches it on.
        create = re.sub(r" (ENABLE|DISABLE ON SLAVE|DISABLE ON REPLICA|DISABLE)(?= (COMMENT|DO) )", "", create)
    return [definition.kind, definition.name, create, dict(sorted(definition.settings.items())), definition.after]


def object_digests(objects: Iterable[Definition]) -> dict[str, str]:
    """A short digest of each object by its label, so that a drill can name those that differ."""
    return {each.label: sha256(canonical_json(comparable(each))).hexdigest()[:16] for each in objects}


def schema_digest(objects: Iterable[Definition], database: Mapping[str, Any]) -> dict[str, object]:
    """The digest that a drill compares, how many objects of each kind there are, and the database's own settings."""
    ordered: Sequence[Definition] = sorted(objects, key=lambda each: (KINDS.index(each.kind), each.table, each.name))
    settings = {key: database[key] for key in ("charset", "collation")}
    counts: dict[str, int] = {}
    for each in ordered:
        counts[each.kind] = counts.get(each.kind, 0) + 1
    content = [settings, [comparable(each) for each in ordered]]
    return {"digest": sha256(canonical_json(content)).hexdigest(), "objects": counts, "settings": settings}
