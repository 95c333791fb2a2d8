"""Extensions that act by themselves: what a drill leaves out with them.

Such an extension runs jobs or calls other hosts as soon as a server has it, and cannot even be made where its library
is not preloaded. So a drill goes without it: without its tables and sequences, and without what is said about its
objects (rights, comments, policies). Nor can there be what leans on it, such as a view over one of its tables or a foreign
key to one: definitions of that kind are left out with it. Rows are never: a table of the user's that leans on it ends the
drill, as does a sequence or another extension. All else comes back and is compared.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from crmbackup.core.errors import TargetError
from crmbackup.engines.postgres.layout import Layout, SequenceLayout
from crmbackup.engines.postgres.records import SEQUENCES
from crmbackup.engines.postgres.restore_toc import Entry

#: Each with the schema that its script makes for all of its objects.
ACTING: Mapping[str, str] = {"pg_cron": "cron", "pg_net": "net", "pgagent": "pgagent"}

_REASON = "left out of the drill, since {} acts by itself; a restore brings it back"
_LEANING = "left out of the drill, since it cannot be without {}; a restore brings it back"
_MATVIEW = "materialized view "
#: What an archive can say about objects that an extension made.
_SAID = frozenset({"ACL", "COMMENT", "SECURITY LABEL", "DEFAULT ACL", "POLICY", "ROW SECURITY"})


@dataclass(frozen=True)
class LeftOut:
    """What the drill of a snapshot goes without. tables: their labels, each with its extension. leaning: names of
    definitions that need one. matviews: labels of those among them that are filled. keys: of all that leans, in the archive.
    """

    extensions: tuple[str, ...] = ()
    tables: Mapping[str, str] = field(default_factory=dict)
    sequences: tuple[SequenceLayout, ...] = ()
    leaning: tuple[str, ...] = ()
    matviews: tuple[str, ...] = ()
    keys: frozenset[str] = frozenset()

    def reasons(self) -> list[tuple[str, str]]:
        """For the report: each name with the reason; tables by the names of their records."""
        found = [(f"extension {name}", _REASON.format("it")) for name in self.extensions]
        found += [(label, _REASON.format(f"extension {name}")) for label, name in self.tables.items()]
        if self.sequences:
            found.append((SEQUENCES, f"{self.labels()}: left out of the drill with the extension"))
        found += [(name, _LEANING.format(", ".join(self.extensions))) for name in (*self.matviews, *self.leaning)]
        return found

    def labels(self) -> str:
        """The sequences, for people."""
        return ", ".join(sequence.label for sequence in self.sequences)


def left_out(layout: Layout) -> LeftOut:
    """What a drill of this snapshot goes without. Raises TargetError where that would be more than definitions."""
    keys = {key: name for key, name in layout.extensions.items() if name in ACTING}
    tables = {}
    for table in layout.tables:
        owner = next((keys[key] for key in layout.needs.get(table.label, ()) if key in keys), None)
        if table.extension and owner:
            tables[table.label] = owner
    schemas = {ACTING[name] for name in keys.values()}
    sequences = tuple(found for found in layout.sequences if found.schema in schemas)
    extensions = tuple(sorted(keys.values()))
    _refuse_rows(layout, extensions)
    named = {name for name in layout.leaning.values() if name}
    matviews = tuple(label for label in layout.refresh if f"{_MATVIEW}{label}" in named)
    leaning = tuple(sorted(named - {f"{_MATVIEW}{label}" for label in matviews}))
    return LeftOut(extensions, tables, sequences, leaning, matviews, frozenset(layout.leaning))


def _refuse_rows(layout: Layout, extensions: Sequence[str]) -> None:
    found = [f"table {table.label}" for table in layout.tables if f"1259/{table.oid}" in layout.leaning]
    sequences = {f"sequence {sequence.label}" for sequence in layout.sequences}
    found += [name for key, name in layout.leaning.items() if name in sequences or (name and key.startswith("3079/"))]
    if found:
        raise TargetError(
            f"a drill goes without {', '.join(extensions)}, and not all rows can come back then",
            why=f"cannot be without: {', '.join(found)}",
            hint="restore to a server of yours that has the extension, and look at it there",
        )


def entries_of(entries: Iterable[Entry], extensions: Collection[str], leaning: Collection[str]) -> list[Entry]:
    """Those of the archive that make these extensions or say something about what they make, and by their keys those that
    lean on them.
    """
    schemas = {ACTING[name] for name in extensions}
    return [
        entry
        for entry in entries
        if (entry.kind == "EXTENSION" and entry.bare.strip() in extensions)
        or (entry.kind in _SAID and _schema_of(entry) in schemas)
        or entry.key in leaning
    ]


def _schema_of(entry: Entry) -> str:
    """Where the object lies that an entry tells of, or which schema it is."""
    schema, _, rest = entry.text.partition(" ")
    if schema == "-" and rest.startswith("SCHEMA "):
        return rest.split(" ")[1]
    return schema


def without(kinds: Mapping[str, Mapping[str, str]], extensions: Sequence[str]) -> dict[str, dict[str, str]]:
    """A `describe.listing` as it is of a database that never had these extensions."""
    if not extensions:
        return {kind: dict(found) for kind, found in kinds.items()}
    names = "|".join(map(re.escape, extensions))
    schemas = "|".join(re.escape(ACTING[name]) for name in extensions)
    # Names begin as `describe_sql` makes them: the schema, or a word for the kind and then the schema.
    told = rf"extension (?:{names})(?: .*)?|[a-z ]+ (?:{schemas})(?:[. ].*)?"
    patterns = {
        "extensions": names,
        "comments": told,
        "privileges": told,
        "security_labels": told,
        "policies": rf"(?:{schemas})\..*",
        "default_privileges": rf".* (?:{schemas}) .",
    }
    result = {}
    for kind, found in kinds.items():
        pattern = re.compile(patterns[kind], re.DOTALL) if kind in patterns else None
        result[kind] = {name: text for name, text in found.items() if not (pattern and pattern.fullmatch(name))}
    return result
