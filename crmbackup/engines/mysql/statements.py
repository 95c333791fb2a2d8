"""Statements as the server shows them, cut where a restore needs them cut. What stands in quotes is never looked at."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from crmbackup.engines.mysql.connection import quoted

T = TypeVar("T")

_QUOTED = re.compile(r"`(?:[^`]|``)*`|'(?:[^'\\]|\\.|'')*'|\"(?:[^\"\\]|\\.|\"\")*\"", re.DOTALL)
#: What a quoted text is replaced by, character by character, to look at the rest.
_MASK = "\x00"
_ENTRY = re.compile(
    r"(?P<primary>PRIMARY KEY)|(?P<unique>UNIQUE (?:KEY|INDEX))|(?P<key>(?:FULLTEXT |SPATIAL |VECTOR )?(?:KEY|INDEX)\b)"
    r"|(?P<foreign>(?:CONSTRAINT \x00+ )?FOREIGN KEY)|(?P<column>\x00)"
)
_ENGINE = re.compile(r"^\) ENGINE=(\w+)")
_AUTO_INCREMENT = re.compile(r" AUTO_INCREMENT\b")
_COUNTER = re.compile(r" AUTO_INCREMENT=(\d+)\b")
_DEFINER = re.compile(r"^(CREATE (?:OR REPLACE )?(?:ALGORITHM=\w+ )?)(DEFINER=\x00+(?:@\x00+)? )")
#: What takes a sequence's name, always with its database.
_SEQUENCES = ("nextval(", "lastval(", "setval(")
_OPTION = re.compile(r" (?:(?:DATA|INDEX) DIRECTORY|ENCRYPTION|\x00+) ?= ?(?:\x00+|\w+)")
_PLACE = re.compile(r" (?:DATA|INDEX) DIRECTORY")
#: MySQL's option, and the two that MariaDB shows as they were written.
_ENCRYPTION = re.compile(r" (?:ENCRYPTION|`encrypted`|`encryption_key_id`) ?=", re.IGNORECASE)
#: MySQL's, of a table and of a partition.
_TABLESPACE = re.compile(
    r" (?:/\*!\d+ TABLESPACE \x00+(?: STORAGE (?:DISK|MEMORY))? \*/|TABLESPACE ?=? ?\x00+)", re.IGNORECASE
)
_STATUS = re.compile(r" (ENABLE|DISABLE ON SLAVE|DISABLE ON REPLICA|DISABLE)(?= (?:COMMENT \x00|DO\b))")
_TRIGGER = re.compile(
    r"^(CREATE\s.*?TRIGGER\s+(?:IF\s+NOT\s+EXISTS\s+)?)(\S+)(\s+(?:BEFORE|AFTER)\s+\S+\s+ON\s+)(\S+)(\s+FOR\s+EACH\s+ROW)"
    r"(\s+(?:FOLLOWS|PRECEDES)\s+\S+)?",
    re.DOTALL | re.IGNORECASE,
)


@dataclass(frozen=True)
class TableStatement:
    """A CREATE TABLE. head: up to the first parenthesis. entries: columns, keys and constraints. tail: from `)` on."""

    head: str
    entries: tuple[str, ...]
    tail: str

    def of(self, *kinds: str) -> list[str]:
        """The entries of some kinds: column, primary, unique, key, foreign, other."""
        return [entry for entry in self.entries if entry_kind(entry) in kinds]

    @property
    def text(self) -> str:
        """The statement."""
        return self.head + "(\n  " + ",\n  ".join(self.entries) + "\n" + self.tail

    @property
    def engine(self) -> str:
        """Its storage engine."""
        match = _ENGINE.match(self.tail)
        return match[1] if match else ""

    @property
    def versioned(self) -> bool:
        """Whether it keeps old rows."""
        return "WITH SYSTEM VERSIONING" in masked(self.tail)

    @property
    def counter(self) -> int | None:
        """The next value of its AUTO_INCREMENT column, where it is told."""
        match = _COUNTER.search(masked(self.tail))
        return int(match[1]) if match else None


def masked(text: str) -> str:
    """The text with everything in quotes, and the quotes, replaced by NUL characters: places stay."""
    return _QUOTED.sub(lambda match: _MASK * len(match[0]), text)


def parse_table(create: str) -> TableStatement:
    """Cut a CREATE TABLE. Raises ValueError."""
    seen = masked(create)
    start = seen.find("(")
    if start < 0:
        raise ValueError(f"no columns in {create[:80]!r}")
    depth, begin = 0, start + 1
    entries = []
    for place in range(start, len(seen)):
        letter = seen[place]
        if letter == "(":
            depth += 1
        elif letter == ")":
            depth -= 1
            if not depth:
                entries.append(create[begin:place].strip())
                return TableStatement(create[:start], tuple(entries), create[place:])
        elif letter == "," and depth == 1:
            entries.append(create[begin:place].strip())
            begin = place + 1
    raise ValueError(f"no end of the columns in {create[:80]!r}")


def entry_kind(entry: str) -> str:
    """Of TableStatement.entries."""
    match = _ENTRY.match(masked(entry))
    return str(match.lastgroup) if match else "other"


def split_table(table: TableStatement, *, defer_keys: bool) -> tuple[TableStatement, tuple[str, ...], tuple[str, ...]]:
    """A table to be filled, and the keys and the foreign keys that it gets afterwards.

    Keys stay where the server would not give them back in the same order, where AUTO_INCREMENT needs them, and where rows
    are stored by them.
    """
    foreign = table.of("foreign")
    later: list[str] = []
    if defer_keys and not table.versioned and not _counts_by_a_key(table):
        later = table.of("unique", "key") if table.of("primary") else table.of("key")
    left = [entry for entry in table.entries if entry not in later and entry not in foreign]
    return TableStatement(table.head, tuple(left), table.tail), tuple(later), tuple(foreign)


def _counts_by_a_key(table: TableStatement) -> bool:
    """Whether an AUTO_INCREMENT column is not the first of the primary key."""
    for entry in table.of("column"):
        if _AUTO_INCREMENT.search(masked(entry)):
            name = _first_name(entry)
            return not any(_first_name(key) == name for key in table.of("primary"))
    return False


def _first_name(entry: str) -> str:
    match = re.search(r"`(?:[^`]|``)*`", entry)
    return match[0] if match else ""


def named(entry: str) -> str:
    """The name of a constraint or key, for people."""
    return _first_name(entry).strip("`").replace("``", "`")


def referenced(foreign: str) -> tuple[str, ...]:
    """The table that a foreign key refers to: its name, or database and name."""
    match = re.search(r" REFERENCES (\x00+(?:\.\x00+)?) \(", masked(foreign))
    if not match:
        raise ValueError(f"no table in {foreign[:80]!r}")
    names = _QUOTED.findall(foreign[match.start(1) : match.end(1)])
    return tuple(name[1:-1].replace("``", "`") for name in names)


def sequences_in(create: str) -> list[str]:
    """The sequences that columns' defaults take values from."""
    seen = masked(create)
    found = []
    for match in re.finditer(r"\b(?:nextval|lastval)\((\x00+)(?:\.(\x00+))?\)", seen):
        part = 2 if match[2] else 1
        found.append(create[match.start(part) + 1 : match.end(part) - 1].replace("``", "`"))
    return found


def renamed(text: str, old: str, new: str) -> str:
    """Names that are qualified with one database, qualified with another: of tables and grants."""
    return _renamed(text, old, new, lambda _start, _end: True)


def view_renamed(create: str, old: str, new: str) -> str:
    """The same for a view. There `crm`.`name` may also be a column of a table that is called crm as the database is: the
    server leaves out the database where it can.
    """
    seen = masked(create)

    def named_by_database(start: int, end: int) -> bool:
        before = seen[:start]
        if seen[end : end + 1] in (".", "(") or before.endswith(_SEQUENCES):
            return True
        before = before.rstrip("( ")
        return before.endswith("join") or (before.endswith("from") and _selects(before))

    return _renamed(create, old, new, named_by_database)


def _selects(before: str) -> bool:
    """Whether the FROM at the end is that of a SELECT, not that of a function such as EXTRACT."""
    depth = 0
    for place in range(len(before) - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(before[place], 0)
        if depth < 0:
            return before[place + 1 :].lstrip().startswith(("select", "with"))
    return True


def _renamed(text: str, old: str, new: str, wanted: Callable[[int, int], bool]) -> str:
    """wanted: of a qualified name's places, where it begins and where its second part ends."""
    if old == new:
        return text
    name = quoted(old)
    parts: list[str] = []
    last = 0
    for match in _QUOTED.finditer(text):
        if match[0] != name or text[match.end() : match.end() + 2] != ".`" or text[match.start() - 1] == ".":
            continue
        second = _QUOTED.match(text, match.end() + 1)
        if second and wanted(match.start(), second.end()):
            parts += [text[last : match.start()], quoted(new)]
            last = match.end()
    return "".join([*parts, text[last:]])


def trigger_at(create: str, name: str, table: str) -> str:
    """A trigger's statement as it was typed, for the database at hand, whatever database it names; what says after which
    other one it fires is taken out, since they are made in that order.
    """
    match = _TRIGGER.match(masked(create))
    if not match or not (match[6] or "." in match[2] or "." in match[4]):
        return create
    after = match.end(6) if match[6] else match.end(5)
    kept = [create[match.start(part) : match.end(part)] for part in (1, 3, 5)]
    return f"{kept[0]}{quoted(name)}{kept[1]}{quoted(table)}{kept[2]}{create[after:]}"


def for_drill(create: str, *, private: bool) -> str:
    """A table's statement without what a drill must not follow, which is where its files are, or cannot: a private server
    has none of the keys that tables are encrypted with.
    """
    tail = parse_table(create).tail
    start = len(create) - len(tail)
    parts, last = [create[:start]], 0
    for match in _OPTION.finditer(masked(tail)):
        if _PLACE.match(match[0]) or (private and _ENCRYPTION.match(tail[match.start() : match.end()])):
            parts.append(tail[last : match.start()])
            last = match.end()
    return "".join([*parts, tail[last:]])


def without_tablespace(create: str) -> str:
    """A table's statement without the general tablespaces that it lies in: they belong to the server, not to a database."""
    tail = parse_table(create).tail
    parts, last = [create[: len(create) - len(tail)]], 0
    for match in _TABLESPACE.finditer(masked(tail)):
        parts.append(tail[last : match.start()])
        last = match.end()
    return "".join([*parts, tail[last:]])


def definer_clause(create: str) -> str:
    """The clause "DEFINER=... " of a view, routine, trigger or event; empty without one."""
    match = _DEFINER.match(masked(create))
    return create[match.start(2) : match.end(2)] if match else ""


def with_definer(create: str, clause: str) -> str:
    """The same with another clause, or none."""
    match = _DEFINER.match(masked(create))
    if not match:
        return create
    return create[: match.start(2)] + clause + create[match.end(2) :]


def event_disabled(create: str) -> str:
    """An event's statement, so that it does nothing by itself."""
    match = _STATUS.search(masked(create))
    if not match:
        raise ValueError(f"no status in the event {create[:80]!r}")
    return create[: match.start(1)] + "DISABLE" + create[match.end(1) :]


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Some at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
