r"""Columns: how each one's values are written in a line, and loaded from one.

A line is what LOAD DATA reads with FIELDS TERMINATED BY tab ESCAPED BY backslash LINES TERMINATED BY line feed: `\N` for
NULL; backslash, tab and line feed within values escaped; all other bytes as they are stored, in the column's own
character set. The server writes the lines, so that no value goes through Python.
"""

from __future__ import annotations

from dataclasses import dataclass

from crmbackup.engines.mysql.connection import quoted

#: How a value is loaded: as it is; through a number, since text would be ambiguous; as text of a character set, since
#: MySQL's JSON refuses bytes of none, and UUID and INET of MariaDB take them for what they store.
PLAIN, NUMBER, TEXT = "", "number", "text"

_TEXT = {"char", "varchar", "tinytext", "text", "mediumtext", "longtext"}
_BYTES = {"binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob", "inet6", "inet4", "uuid"}
#: Of MariaDB from 11.7 and MySQL from 9.0 on: the bytes of its numbers.
_VECTOR = "vector"
_GEOMETRY = {
    "geometry",
    "point",
    "linestring",
    "polygon",
    "multipoint",
    "multilinestring",
    "multipolygon",
    "geometrycollection",
    "geomcollection",
}
#: Their text holds no byte that would need an escape.
_BARE = {
    "tinyint",
    "smallint",
    "mediumint",
    "int",
    "bigint",
    "decimal",
    "date",
    "datetime",
    "timestamp",
    "time",
    "year",
}
#: Bytes from which on a value is escaped here. The server moves all that follows with every escape that it adds: 1 MiB of
#: random bytes takes it 3 s, 8 MiB 170 s.
_LONG = 8192
_MAY_BE_LONG = _GEOMETRY | {
    _VECTOR,
    "text",
    "mediumtext",
    "longtext",
    "blob",
    "mediumblob",
    "longblob",
    "json",
}
#: Bytes that a character takes at most, for types whose length is declared in characters or bytes.
_WIDEST = {"varchar": 4, "varbinary": 1}
_FLOATS = {"float", "double"}
_NUMBERS = {"enum", "set", "bit"}
_NETWORK = {"inet6", "inet4", "uuid"}
#: Types by which a table can be cut into ranges: they are compared as they are written.
_RANGE = (_BARE | _TEXT | _BYTES) - _NETWORK - {"year", "timestamp", "time"}


@dataclass(frozen=True)
class Column:
    """type: its name alone, such as "varchar". definition: type and all, as the server shows it. nullable: it may hold NULL."""

    name: str
    type: str
    definition: str
    charset: str | None = None
    collation: str | None = None
    nullable: bool = True

    @property
    def known(self) -> bool:
        """Whether this engine can write its values exactly."""
        return self.type in _TEXT | _BYTES | _GEOMETRY | _BARE | _FLOATS | _NUMBERS | {"json", _VECTOR}

    @property
    def load(self) -> str:
        """How it is loaded: PLAIN, NUMBER or TEXT."""
        if self.type in _NUMBERS:
            return NUMBER
        return TEXT if self.type in _NETWORK | {"json"} else PLAIN

    @property
    def ranged(self) -> bool:
        """Whether ranges of a key can be told by its values."""
        return self.type in _RANGE

    @property
    def text(self) -> bool:
        """Whether its values are compared by a collation."""
        return self.type in _TEXT

    @property
    def numeric(self) -> bool:
        """Whether its values are whole numbers."""
        return self.type in ("tinyint", "smallint", "mediumint", "int", "bigint")

    @property
    def may_be_long(self) -> bool:
        """Whether a value may have so many bytes that the server is not asked to escape it."""
        if self.type in _WIDEST:
            return int(self.definition.partition("(")[2].partition(")")[0]) * _WIDEST[self.type] > _LONG
        return self.type in _MAY_BE_LONG

    @property
    def field(self) -> str:
        """SQL of what a line holds for it; NULL stays NULL."""
        name = quoted(self.name)
        if self.type in _NUMBERS:
            return f"{name}+0"
        if self.type in _FLOATS:
            # FLOAT is printed with six digits: as a double it keeps all of its bits.
            return f"CAST({name} AS DOUBLE)"
        if self.type in _BARE:
            return name
        if self.type in _NETWORK:
            return f"CAST({name} AS CHAR)"
        stored = f"CAST({name} AS CHAR)" if self.type == "json" else name
        raw = f"CAST({stored} AS BINARY)" if self.type in _GEOMETRY | {_VECTOR} else f"CONVERT({stored} USING binary)"
        for plain, escaped in (("5C", "5C5C"), ("09", "5C74"), ("0A", "5C6E")):
            raw = f"REPLACE({raw},X'{plain}',X'{escaped}')"
        return f"IF(LENGTH({stored})>{_LONG},NULL,{raw})" if self.may_be_long else raw

    @property
    def line_sql(self) -> str:
        r"""SQL of its part of a line. A value that is long, or too long for the server, is NULL there, and with it the whole
        line, which is then read another way: `\N` is written for NULLs of the table only.
        """
        return f"IF({quoted(self.name)} IS NULL,X'5C4E',{self.field})" if self.nullable else self.field


def line_sql(columns: tuple[Column, ...]) -> str:
    """SQL of a whole line, with its line feed."""
    parts = []
    for column in columns:
        parts += [column.line_sql, "X'09'"]
    return f"CONCAT({','.join([*parts[:-1], 'X' + repr('0A')])})"


def fields_sql(columns: tuple[Column, ...]) -> str:
    """SQL of the same values as columns of their own, unescaped; for a session that converts no character sets."""
    stored = _TEXT | (_BYTES - _NETWORK) | _GEOMETRY | {"json", _VECTOR}
    return ",".join(quoted(column.name) if column.type in stored else column.field for column in columns)


def escaped(value: bytes | None) -> bytes:
    """One value of a line."""
    if value is None:
        return b"\\N"
    for plain, other in ((b"\\", b"\\\\"), (b"\t", b"\\t"), (b"\n", b"\\n")):
        value = value.replace(plain, other)  # each time the one before is let go
    return value


def unescaped(field: bytes) -> bytes | None:
    """The inverse of `escaped`."""
    if field == b"\\N":
        return None
    parts = field.split(b"\\\\")
    return b"\\".join(part.replace(b"\\t", b"\t").replace(b"\\n", b"\n") for part in parts)


def load_sql(database: str, table: str, columns: tuple[tuple[str, str], ...], charset: str = "binary") -> str:
    """LOAD DATA for lines of these columns, each a name and how it is loaded."""
    names, sets = [], []
    for number, (name, how) in enumerate(columns):
        if how == PLAIN:
            names.append(quoted(name))
            continue
        names.append(f"@v{number}")
        given = f"CONVERT(@v{number} USING utf8mb4)" if how == TEXT else f"CAST(@v{number} AS UNSIGNED)"
        sets.append(f"{quoted(name)}={given}")
    return (
        f"LOAD DATA LOCAL INFILE 'rows' INTO TABLE {quoted(database, table)} CHARACTER SET {charset}"
        " FIELDS TERMINATED BY '\\t' ESCAPED BY '\\\\' LINES TERMINATED BY '\\n'"
        f" ({','.join(names)})" + (f" SET {','.join(sets)}" if sets else "")
    )
