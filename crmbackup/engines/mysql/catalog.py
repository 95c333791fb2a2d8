"""What a database holds, as its information schema tells it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crmbackup.engines.mysql.columns import Column
from crmbackup.engines.mysql.connection import Connection, Version, execute, quoted

#: Engines whose rows belong to snapshots. Those of all others change outside of transactions.
_TRANSACTIONAL = {"InnoDB", "ROCKSDB"}
#: Engines whose rows are elsewhere: another server, a file, other tables, nowhere.
_ELSEWHERE = {"FEDERATED", "CONNECT", "SPIDER", "MRG_MYISAM", "MRG_MyISAM", "BLACKHOLE", "SPHINX", "S3", "OQGRAPH"}
#: From this version on MariaDB takes the history of system-versioned tables back.
_HISTORY = (10, 11)

_TABLES = """
SELECT table_name, table_type, engine, table_rows, data_length FROM information_schema.tables
 WHERE table_schema = %s AND table_type IN ('BASE TABLE', 'SYSTEM VERSIONED') ORDER BY table_name
"""
_COLUMNS = """
SELECT table_name, column_name, data_type, column_type, character_set_name, collation_name, extra,
       coalesce(generation_expression, ''), is_nullable
  FROM information_schema.columns WHERE table_schema = %s ORDER BY table_name, ordinal_position
"""
_KEYS = """
SELECT table_name, index_name, column_name, sub_part, nullable FROM information_schema.statistics
 WHERE table_schema = %s AND non_unique = 0 ORDER BY table_name, index_name <> 'PRIMARY', index_name, seq_in_index
"""


@dataclass(frozen=True)
class Table:
    """One table with rows. size in bytes and rows are the server's estimates. columns: those that are written in lines.

    key: columns of a unique key by which it can be cut into ranges, empty without one. transactional: its rows belong
    to snapshots. elsewhere: its rows are not in this database. history: it keeps rows that are no longer current.
    """

    database: str
    name: str
    engine: str
    rows: int
    size: int
    columns: tuple[Column, ...]
    key: tuple[Column, ...]
    transactional: bool
    elsewhere: bool
    history: bool

    @property
    def sql(self) -> str:
        """Its name, and what makes old rows show."""
        return quoted(self.database, self.name)

    @property
    def source(self) -> str:
        """What rows are selected from."""
        return f"{self.sql} FOR SYSTEM_TIME ALL" if self.history else self.sql

    @property
    def layout_columns(self) -> tuple[tuple[str, str], ...]:
        """For the layout: names, and how each is loaded."""
        return tuple((column.name, column.load) for column in self.columns)

    @property
    def row_bytes(self) -> int:
        """About how long one row is."""
        return max(16, self.size // max(1, self.rows))

    @property
    def unknown(self) -> tuple[Column, ...]:
        """Columns of types that this engine cannot write exactly."""
        return tuple(column for column in self.columns if not column.known)


def read_tables(connection: Connection, database: str, version: Version) -> list[Table]:
    """All tables, in order of their names. Raises pymysql.Error."""
    columns: dict[str, list[Column]] = defaultdict(list)
    explicit: set[str] = set()
    for table, name, kind, definition, charset, collation, extra, expression, nullable in execute(
        connection, _COLUMNS, (database,)
    ):
        versioning = expression.upper() in ("ROW START", "ROW END")
        if versioning:
            explicit.add(table)
        generated = "GENERATED" in extra.upper() and "DEFAULT_GENERATED" not in extra.upper()
        if generated and not versioning:
            continue
        columns[table].append(Column(name, kind.lower(), definition, charset, collation, nullable != "NO"))
    keys = _keys(connection, database)
    tables = []
    for name, kind, engine, rows, size in execute(connection, _TABLES, (database,)):
        history = kind == "SYSTEM VERSIONED" and version.number[:2] >= _HISTORY
        own = columns[name]
        if kind == "SYSTEM VERSIONED" and name not in explicit:
            period = [Column(end, "timestamp", "timestamp(6)") for end in ("row_start", "row_end")]
            own = [*own, *period] if history else own
        elif kind == "SYSTEM VERSIONED" and not history:
            own = [column for column in own if column.name.lower() not in ("row_start", "row_end")]
        by_name = {column.name: column for column in own}
        tables.append(
            Table(
                database=database,
                name=name,
                engine=engine or "",
                rows=int(rows or 0),
                size=int(size or 0),
                columns=tuple(own),
                # Rows of one key lie at many times in a history: no key tells them apart.
                key=() if history else _usable_key(keys.get(name, []), by_name),
                transactional=engine in _TRANSACTIONAL,
                elsewhere=engine in _ELSEWHERE,
                history=history,
            )
        )
    return tables


def _keys(connection: Connection, database: str) -> dict[str, list[list[tuple[str | None, bool]]]]:
    """For each table its unique keys, the primary one first: each column, and whether it is whole and never NULL."""
    found: dict[str, dict[str, list[tuple[str | None, bool]]]] = defaultdict(dict)
    for table, index, column, part, nullable in execute(connection, _KEYS, (database,)):
        found[table].setdefault(index, []).append((column, part is None and nullable != "YES"))
    return {table: list(indexes.values()) for table, indexes in found.items()}


def _usable_key(keys: Sequence[Sequence[tuple[str | None, bool]]], columns: dict[str, Column]) -> tuple[Column, ...]:
    """The key that the rows are stored by, if ranges can be told by it."""
    for key in keys:
        found = [columns.get(name or "") for name, whole in key if whole]
        if len(found) == len(key):
            # That is the one: any other would read rows in an order they are not stored in.
            usable = [column for column in found if column is not None and column.ranged]
            return tuple(usable) if len(usable) == len(key) else ()
    return ()


def read_database(connection: Connection, database: str) -> dict[str, Any]:
    """The properties of a database. Raises pymysql.Error."""
    rows = execute(
        connection,
        "SELECT default_character_set_name, default_collation_name FROM information_schema.schemata"
        " WHERE schema_name = %s",
        (database,),
    )
    charset, collation = rows[0] if rows else ("", "")
    return {"name": database, "charset": charset, "collation": collation}
