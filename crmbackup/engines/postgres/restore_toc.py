"""The table of contents of pg_dump's archive: what there is, what belongs to what, and which of it comes back."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from crmbackup.core.errors import ObjectDamaged

_LINE = re.compile(r"^(\d+); (\d+) (\d+) (.*)$")
_DEPENDS = re.compile(r"^;\s+depends on:((?: \d+)+)\s*$")
#: Kinds of more than one word, longest first, so that none hides another (pg_dump.c, pg_backup_archiver.c).
_KINDS = (
    "TEXT SEARCH CONFIGURATION",
    "TEXT SEARCH DICTIONARY",
    "PUBLICATION TABLES IN SCHEMA",
    "TEXT SEARCH TEMPLATE",
    "FOREIGN DATA WRAPPER",
    "TEXT SEARCH PARSER",
    "MATERIALIZED VIEW DATA",
    "PROCEDURAL LANGUAGE",
    "DATABASE PROPERTIES",
    "SUBSCRIPTION TABLE",
    "MATERIALIZED VIEW",
    "PUBLICATION TABLE",
    "SEQUENCE OWNED BY",
    "CHECK CONSTRAINT",
    "OPERATOR FAMILY",
    "OPERATOR CLASS",
    "ACCESS METHOD",
    "FK CONSTRAINT",
    "FOREIGN TABLE",
    "SECURITY LABEL",
    "EVENT TRIGGER",
    "USER MAPPING",
    "ROW SECURITY",
    "TABLE ATTACH",
    "INDEX ATTACH",
    "SHELL TYPE",
    "SEQUENCE SET",
    "DEFAULT ACL",
    "ACL LANGUAGE",
    "TABLE DATA",
    "BLOB METADATA",
    "STATISTICS DATA",
)
#: What can be left out with what it tells of, and says nothing by itself.
_REMARKS = frozenset({"COMMENT", "ACL", "SECURITY LABEL", "ACL LANGUAGE"})
#: What is a part of the tables that it depends on.
_PARTS = frozenset(
    {
        "DEFAULT",
        "CONSTRAINT",
        "CHECK CONSTRAINT",
        "FK CONSTRAINT",
        "INDEX",
        "INDEX ATTACH",
        "TABLE ATTACH",
        "TRIGGER",
        "POLICY",
        "ROW SECURITY",
        "RULE",
        "STATISTICS",
        "SEQUENCE OWNED BY",
    }
)
#: What joins one table to another, and comes back with both only.
_JOINING = frozenset({"FK CONSTRAINT", "TABLE ATTACH", "INDEX ATTACH"})
_RELATIONS = frozenset({"TABLE", "FOREIGN TABLE", "MATERIALIZED VIEW", "VIEW"})


@dataclass(frozen=True)
class Entry:
    """One object of the archive. key: "classid/oid" of the catalog. text: schema, name and owner, with spaces between."""

    id: int
    key: str
    kind: str
    text: str
    needs: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """For people: kind, schema and name."""
        schema, _, rest = self.text.partition(" ")
        name = rest.rpartition(" ")[0] or rest
        return f"{self.kind} {name}" if schema == "-" else f"{self.kind} {schema}.{name}"

    @property
    def fills_view(self) -> bool:
        """Whether it makes a view what it is: a part of the view, not of the tables that it reads."""
        return self.kind == "RULE" and self.bare.endswith(" _RETURN")

    @property
    def bare(self) -> str:
        """The name, without its kind and owner."""
        return self.label.removeprefix(f"{self.kind} ")


def parse_toc(text: str) -> list[Entry]:
    """What `pg_restore --list --verbose` printed. Raises ObjectDamaged for what it cannot have printed."""
    found: list[Entry] = []
    for line in text.splitlines():
        depends = _DEPENDS.match(line)
        if depends and found:
            last = found.pop()
            needs = tuple(dict.fromkeys(map(int, depends[1].split())))
            found.append(Entry(last.id, last.key, last.kind, last.text, needs))
        if not line or line.startswith(";"):
            continue
        match = _LINE.match(line)
        if not match:
            raise ObjectDamaged("the definitions of the snapshot cannot be read", why=f"no such entry: {line[:80]}")
        number, catalog, oid, rest = match.groups()
        kind = next((kind for kind in _KINDS if rest.startswith(f"{kind} ")), rest.partition(" ")[0])
        found.append(Entry(int(number), f"{catalog}/{oid}", kind, rest[len(kind) + 1 :]))
    return found


@dataclass(frozen=True)
class Choice:
    """entries: what comes back, in the archive's order. along: what comes along though it was not asked for.

    left_out: foreign keys and other parts without their other table.
    """

    entries: tuple[Entry, ...]
    along: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def without(entries: Sequence[Entry], dropped: Collection[int]) -> list[Entry]:
    """All but these, and what is only said about these."""
    return [
        entry
        for entry in entries
        if entry.id not in dropped and not (entry.kind in _REMARKS and any(need in dropped for need in entry.needs))
    ]


def choose_tables(entries: Sequence[Entry], wanted: Collection[str], needs: Mapping[str, Sequence[str]]) -> Choice:
    """The tables with these keys, all that they need, and all that is a part of them.

    needs: for a table's key, the keys that the catalogs say it needs.
    """
    closure = _Closure(entries, needs)
    asked = {entry.id for entry in entries if entry.key in wanted and entry.kind in _RELATIONS}
    closure.add_all(asked)
    there = {entry.key for entry in entries}
    for key in wanted:
        if key not in there:
            closure.add_all(list(closure.needed(key)))  # an extension makes it
    left_out = closure.join(asked)
    # Of what is left out nothing may be said either.
    chosen = without([entry for entry in entries if entry.id in closure.chosen], left_out)
    along = [
        entry.label
        for entry in chosen
        if entry.id not in asked and entry.kind not in _PARTS and entry.kind not in _REMARKS
    ]
    return Choice(tuple(chosen), tuple(along), tuple(entry.label for entry in entries if entry.id in left_out))


class _Closure:
    """Entries that are chosen, and what follows from each."""

    def __init__(self, entries: Sequence[Entry], needs: Mapping[str, Sequence[str]]) -> None:
        self._entries = entries
        self._needs = needs
        self._by_id = {entry.id: entry for entry in entries}
        self._by_key = {entry.key: entry for entry in entries if not entry.key.startswith("0/")}
        self._parts: dict[int, list[Entry]] = defaultdict(list)
        self.chosen: set[int] = set()
        for entry in entries:
            if (entry.kind in _PARTS and entry.kind not in _JOINING) or entry.kind in _REMARKS:
                for need in entry.needs:
                    if not entry.fills_view or (need in self._by_id and self._by_id[need].kind == "VIEW"):
                        self._parts[need].append(entry)

    def add_all(self, numbers: Collection[int]) -> None:
        """These, what they need, and what is a part of any of them."""
        waiting = list(numbers)
        while waiting:
            number = waiting.pop()
            if number in self.chosen or number not in self._by_id:
                continue
            self.chosen.add(number)
            waiting += self._following(self._by_id[number])

    def _following(self, entry: Entry) -> Iterator[int]:
        yield from entry.needs
        yield from self.needed(entry.key)
        for part in self._parts[entry.id]:
            yield part.id

    def needed(self, key: str) -> Iterator[int]:
        """What the catalogs say that this one needs."""
        for other in self._needs.get(key, ()):
            found = self._by_key.get(other)
            if found and found.kind not in _JOINING:
                yield found.id

    def join(self, filled: Collection[int]) -> set[int]:
        """Add what joins two tables where both are chosen; gives the ids of what joins one to another that is not.

        filled: the tables that get rows. A foreign key to another one cannot hold.
        """
        left_out = set()
        for entry in self._entries:
            touched = set(entry.needs) & self._by_id.keys()
            if entry.kind not in _JOINING or not touched & self.chosen:
                continue
            tables = {number for number in touched if self._by_id[number].kind in _RELATIONS}
            if touched <= self.chosen and (entry.kind != "FK CONSTRAINT" or tables <= set(filled)):
                self.add_all([entry.id])
            else:
                left_out.add(entry.id)
        return left_out
