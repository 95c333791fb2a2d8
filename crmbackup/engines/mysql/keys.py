"""Keys of rows, and the conditions that cut a table into ranges by them.

A key is a tuple of one value for each column, as bytes: for text in the column's own character set, for all else as the
server writes it. Comparisons are the server's, by each column's own collation.
"""

from __future__ import annotations

from collections.abc import Sequence

from crmbackup.core.errors import SourceUnreadable
from crmbackup.engines.mysql.columns import Column, unescaped
from crmbackup.engines.mysql.connection import quoted

Key = tuple[bytes, ...]
_QUOTED = {"date", "datetime"}


def key_of(line: bytes, columns: Sequence[Column], key: Sequence[Column]) -> Key:
    """The key of a row from its line. Raises SourceUnreadable for a NULL, which no key holds."""
    if not key:
        return ()
    fields = line[:-1].split(b"\t")
    values = []
    for column in key:
        found = unescaped(fields[columns.index(column)])
        if found is None:
            raise SourceUnreadable(f"a key of column {column.name} is NULL")
        values.append(found)
    return tuple(values)


def literal_of(column: Column, found: bytes) -> str:
    """A value of a key as SQL, of the column's own type, character set and collation."""
    if column.text:
        return f"_{column.charset} X'{found.hex()}' COLLATE {column.collation}"
    if column.numeric or column.type == "decimal":
        return found.decode("ascii")
    if column.type in _QUOTED:
        return f"'{found.decode('ascii')}'"
    return f"X'{found.hex()}'"


def between(key: Sequence[Column], low: Key, high: Key) -> str:
    """A WHERE for low < key <= high; an empty one is open-ended."""
    parts = []
    if low:
        parts.append(_side(key, low, ">", ">"))
    if high:
        parts.append(at_most(key, high))
    return f" WHERE {' AND '.join(parts)}" if parts else ""


def at_most(key: Sequence[Column], high: Key) -> str:
    """A condition for key <= high."""
    return _side(key, high, "<", "<=")


def _side(key: Sequence[Column], border: Key, beyond: str, last: str) -> str:
    """One side of a range, spelt out: servers do not use indexes for comparisons of rows. With several columns the
    first is bounded by itself too, which is what they look at.
    """
    text = _compared(key[-1], last, border[-1])
    for column, found in zip(reversed(key[:-1]), reversed(border[:-1]), strict=True):
        text = f"({_compared(column, beyond, found)} OR ({_compared(column, '=', found)} AND {text}))"
    return text if len(key) == 1 else f"{_compared(key[0], beyond + '=', border[0])} AND {text}"


def _compared(column: Column, operator: str, found: bytes) -> str:
    return f"{quoted(column.name)} {operator} {literal_of(column, found)}"


def order_by(key: Sequence[Column]) -> str:
    """The order that ranges are cut in; none for tables without a key."""
    return f" ORDER BY {','.join(quoted(column.name) for column in key)}" if key else ""
