"""What a database contains: its schema, its settings, its tables and how to read their rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import blake3

from crmbackup.core.canonical import canonical_json
from crmbackup.engines.sqlite import reader
from crmbackup.engines.sqlite.checksums import RowSource
from crmbackup.engines.sqlite.connection import quoted, source_errors

_SETTINGS = ("page_size", "encoding", "user_version", "application_id", "auto_vacuum", "schema_version")
_ROWID_NAMES = ("rowid", "_rowid_", "oid")


@dataclass(frozen=True)
class Table:
    """One table. kind: table, virtual or shadow. root: its first page, 0 without.

    rows is None for a virtual table and for one with a `problem`: why its rows cannot be read.
    """

    name: str
    kind: str
    root: int
    without_rowid: bool
    rows: RowSource | None
    problem: str = ""


@dataclass(frozen=True)
class Contents:
    """A database at one moment. `digest` covers settings and every schema object, not the pages where they begin.

    definitions: the SQL of each table. exact_text: whether text can be read as such without loss.
    """

    settings: dict[str, object]
    counts: dict[str, int]
    digest: str
    definitions: dict[str, str | None]
    tables: tuple[Table, ...]
    freelist: int

    @property
    def exact_text(self) -> bool:
        """Whether reading text as text loses nothing; see the module `checksums`."""
        return self.settings["encoding"] == "UTF-8"

    def schema(self) -> dict[str, object]:
        """As it stands in a manifest."""
        return {"digest": self.digest, "objects": self.counts, "settings": self.settings}


def read_contents(path: Path) -> Contents:
    """Read the schema in the worker's transaction."""
    with source_errors(path):
        return contents(reader.connection())


def contents(connection: apsw.Connection) -> Contents:
    """Read the schema. Raises apsw.Error."""
    settings = {name: connection.pragma(name) for name in _SETTINGS}
    encoding = str(settings["encoding"])

    def text(data: bytes | None) -> str | None:
        # Applications of old wrote Latin-1 into definitions: such text must not stop a backup.
        return None if data is None else data.decode(encoding, "backslashreplace")

    stored: list[tuple[str, bytes, bytes, int, bytes | None]] = connection.execute(
        "SELECT type, CAST(name AS BLOB), CAST(tbl_name AS BLOB), rootpage, CAST(sql AS BLOB)"
        " FROM main.sqlite_schema ORDER BY type, name"
    ).fetchall()  # type: ignore[assignment]
    objects = [(kind, text(name) or "", text(table), root, text(sql)) for kind, name, table, root, sql in stored]
    counts: dict[str, int] = {}
    for kind, *_ in objects:
        counts[kind] = counts.get(kind, 0) + 1
    listed = {text(name): (kind, bool(without_rowid)) for name, kind, without_rowid in _table_list(connection)}
    tables = [
        _table(connection, name, root or 0, *listed.get(name, ("", False)))
        for kind, name, _, root, _ in objects
        if kind == "table"
    ]
    texts = [[kind, name, table, sql] for kind, name, table, _, sql in objects]
    digest = blake3.blake3(canonical_json([settings, texts])).hexdigest()
    definitions = {name: sql for kind, name, _, _, sql in objects if kind == "table"}
    return Contents(settings, counts, digest, definitions, tuple(tables), connection.pragma("freelist_count"))


def _table_list(connection: apsw.Connection) -> list[tuple[bytes, str, int]]:
    # "temp." finds SQLite's own table even when the database has one of that name.
    query = "SELECT CAST(name AS BLOB), type, wr FROM temp.pragma_table_list WHERE schema = 'main'"
    return connection.execute(query).fetchall()  # type: ignore[return-value]


def _table(connection: apsw.Connection, name: str, root: int, kind: str, without_rowid: bool) -> Table:
    if kind == "virtual":
        return Table(name, kind, root, without_rowid, None, _unusable(connection, name))
    try:
        rows = _row_source(connection, name, without_rowid)
    except UnicodeDecodeError:
        return Table(name, kind, root, without_rowid, None, "a name in its definition is not valid text")
    if not rows.columns:
        return Table(name, kind or "table", root, without_rowid, None, "its name is not valid text")
    return Table(name, kind, root, without_rowid, rows)


def _unusable(connection: apsw.Connection, table: str) -> str:
    """Empty when a virtual table can be read, else why not."""
    try:
        connection.execute(f"SELECT 1 FROM main.{quoted(table)} LIMIT 1").fetchall()  # noqa: S608 - a quoted identifier
    except (apsw.Error, UnicodeDecodeError) as error:
        return f"the virtual table cannot be opened here: {error}"
    return ""


def _row_source(connection: apsw.Connection, table: str, without_rowid: bool) -> RowSource:
    columns: list[str] = []
    names: set[str] = set()
    rows: list[tuple[Any, ...]] = connection.execute(f"PRAGMA main.table_xinfo({quoted(table)})").fetchall()
    for _, name, _, _, _, _, hidden in rows:
        names.add(name.lower())
        if hidden in (0, 3):  # 2: generated virtual, 1: hidden column of a virtual table
            columns.append(name)
    if not without_rowid:
        rowid = next((alias for alias in _ROWID_NAMES if alias not in names), None)
        return RowSource(table, rowid, tuple(columns))
    indexes: list[tuple[Any, ...]] = connection.execute(f"PRAGMA main.index_list({quoted(table)})").fetchall()
    return RowSource(table, None, tuple(columns), next(index[1] for index in indexes if index[3] == "pk"))
